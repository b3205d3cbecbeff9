"""Text out of a stream of tokens: whole characters only, and nothing that might belong to a stop string.

Invariants: pure. The pieces together are what decoding all ids at once gives, up to the stop string; a piece never
ends in the middle of a character. What has been given out is never taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

CONTEXT_IDS = 8
"""Decoders look back: a piece is decoded together with so many ids before it, ..."""
CONTEXT_IDS_MAX = 256
"""... and with more, up to this, while those have no text (special tokens), for a text's first space is often cut."""
PENDING_IDS_MAX = 16
"""A character has at most four bytes; ids that are no character after so many are given out as they are."""
BROKEN = "\ufffd"
"""What decoders write for bytes that are not (yet) a character."""


class TextStream:
    """Decodes the ids of one row as they come.

    Attributes:
        text: everything given out so far.
        stopped: a stop string was found; it, and all that came after it, is not in ``text``.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int], stop: Sequence[str]) -> None:
        self._decode = decode
        self._before: list[int] = []
        self._before_text = ""
        self._pending = list(context[-CONTEXT_IDS_MAX:])
        self._settle()
        self._held = ""
        self._stop = tuple(s for s in stop if s)
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take the next id; returns the text that is certain now, often one token's, sometimes none."""
        if self.stopped:
            return ""
        self._pending.append(token)
        fresh = self._fresh()
        if fresh.endswith(BROKEN) and len(self._pending) < PENDING_IDS_MAX:
            return ""
        self._settle()
        return self._give(fresh, last=False)

    def finish(self) -> str:
        """No more ids come: whatever was held back for a stop string; bytes that became no character are dropped."""
        if self.stopped:
            return ""
        fresh = self._fresh().rstrip(BROKEN)
        self._settle()
        return self._give(fresh, last=True)

    def _fresh(self) -> str:
        """The text that the pending ids add to what stands before them."""
        both = self._decode([*self._before, *self._pending])
        # A context that was cut within a character, or a decoder that trims, may change its end.
        common = len(self._before_text)
        while not both.startswith(self._before_text[:common]):
            common -= 1
        return both[common:]

    def _settle(self) -> None:
        known = [*self._before, *self._pending][-CONTEXT_IDS_MAX:]
        self._before, self._pending = known[-CONTEXT_IDS:], []
        self._before_text = self._decode(self._before)
        if not self._before_text and len(known) > CONTEXT_IDS:
            self._before, self._before_text = known, self._decode(known)

    def _give(self, fresh: str, *, last: bool) -> str:
        self._held += fresh
        found = [at for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            sure = min(found)
        else:
            sure = len(self._held) if last else len(self._held) - self._possible_stop()
        piece, self._held = self._held[:sure], self._held[sure:]
        self.text += piece
        return piece

    def _possible_stop(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest
