"""Who serves what: signed announcements, their log, the view made of them, and the service that carries them.

Invariants: no torch, no libp2p; records and views are pure, only ``service`` awaits anything.
"""
