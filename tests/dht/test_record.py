"""Announcements: what is signed survives, and nothing else gets in."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.config import RecordConfig, WireLimits
from p2pllm.dht import record as r
from p2pllm.dht.keys import peer_id_of
from p2pllm.errors import RemoteProtocolError
from p2pllm.types import ModelId, Numerics, PeerId, ServerState, Span

KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
PEER = peer_id_of(KEY.public_key().public_bytes_raw())
OTHER_PEER = peer_id_of(OTHER.public_key().public_bytes_raw())
ANN = r.Announcement(
    model=ModelId("ab12"),
    span=Span(2, 6),
    num_blocks=8,
    state=ServerState.ONLINE,
    numerics=Numerics("float32", "none", "torch-2.13.0", "avx512", True),
    throughput=r.Throughput(100.0, 4000.0, 900.5),
    cache_tokens_free=10_000,
    queue=3,
    adapters=("poet/v1",),
    pings=((OTHER_PEER, 0.04),),
    name="Ünder the desk",
    model_name="demo",
    version="0.1.0",
    relayed=False,
    peer=PEER,
    addrs=(f"/ip4/192.0.2.7/tcp/1/p2p/{PEER}", f"/dns4/a.example/tcp/1/p2p/{OTHER_PEER}/p2p-circuit/p2p/{PEER}"),
    sequence=1_800_000_000_001,
    issued_ms=1_800_000_000_000,
    ttl_ms=180_000,
)
RECORD = r.sign_announcement(ANN, KEY.sign)


def forge(sign=KEY.sign, **fields):
    """A record whose map was altered before signing."""
    body = dict(msgpack.unpackb(RECORD[:-64]))
    for key, value in fields.items():
        if value is None:
            del body[key]
        else:
            body[key] = value
    packed = msgpack.packb(dict(sorted(body.items())))
    return packed + sign(r.DOMAIN + packed)


def test_what_is_signed_comes_back_and_is_shared():
    ann = r.verify(RECORD)
    assert ann == ANN
    assert r.verify(bytes(bytearray(RECORD))) is ann
    assert len(RECORD) < 700


def test_bounds_agree_with_the_wire():
    assert WireLimits().record_bytes_max == r.ENTRY_BYTES_MAX
    assert RecordConfig().ttl_max_s * 1000 == r.TTL_MAX_MS
    assert WireLimits().blocks_max == r.BLOCKS_MAX


def test_a_full_record_fits():
    full = replace(
        ANN,
        addrs=tuple((f"/dns4/{i:x>170}/tcp/1/p2p/{PEER}") for i in range(r.ADDRS_MAX)),
        pings=((OTHER_PEER, 1.0),) * r.PINGS_MAX,
        name="n" * 64,
        model_name="m" * 128,
        version="v" * 48,
    )
    assert r.verify(r.sign_announcement(full, KEY.sign)) == full


def test_unknown_fields_are_ignored():
    assert r.verify(forge(zz={"from": "the future"})) == ANN


@settings(max_examples=300)
@given(st.integers(0, len(RECORD) - 1), st.integers(1, 255))
def test_no_altered_byte_passes(position, change):
    altered = bytearray(RECORD)
    altered[position] ^= change
    with pytest.raises(RemoteProtocolError):
        r.verify(bytes(altered))


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data):
    with pytest.raises(RemoteProtocolError):
        r.verify(data)


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
json_like = st.recursive(
    scalars | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=500)
@given(st.sampled_from("abcdghiklmnpqrstuvwx"), json_like)
def test_a_signed_record_with_any_value_anywhere_is_valid_or_refused(key, value):
    body = dict(msgpack.unpackb(RECORD[:-64])) | {key: value}
    packed = msgpack.packb(dict(sorted(body.items())))
    record = packed + KEY.sign(r.DOMAIN + packed)
    try:
        ann = r.verify(record)
    except RemoteProtocolError:
        return
    assert r.sign_announcement(ann, KEY.sign) == record


@pytest.mark.parametrize(
    "fields",
    [
        {"p": str(OTHER_PEER)},  # somebody else's name
        {"p": "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"},  # an id that hides its key
        {"b": [2, 9]},
        {"b": [6, 2]},
        {"b": [-1, 2]},
        {"b": [True, 2]},
        {"x": 0},
        {"x": 5000},
        {"s": 4},
        {"s": True},
        {"r": [1.0, 2.0]},
        {"r": [float("nan"), 1.0, 1.0]},
        {"r": [-1.0, 1.0, 1.0]},
        {"r": [1, 1, 1]},
        {"c": -1},
        {"t": 0},
        {"t": 1 << 60},
        {"i": -5},
        {"l": 0},
        {"l": 86_400_000},
        {"m": ""},
        {"m": "../x"},
        {"n": "\x1b[2J"},
        {"n": "n" * 65},
        {"w": 7},
        {"k": 1},
        {"u": ["float32", "none", "k", "i"]},
        {"u": ["float32", "none", "k", "a b", True]},
        {"a": ["not an address"]},
        {"a": [f"/ip4/1.2.3.4/tcp/1/p2p/{OTHER_PEER}"]},
        {"a": [f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}"] * 17},
        {"a": [f"/ip4/{'1' * 300}/tcp/1/p2p/{PEER}"]},
        {"d": ["a b"]},
        {"g": [["x", 1.0]]},
        {"g": [[str(OTHER_PEER), 1e9]]},
        {"v": 2},
        {"v": None},
        {"m": None},
        {"zz": "x" * 9000},
    ],
    ids=lambda fields: next(iter(f"{k}={v!r:.30}" for k, v in fields.items())),
)
def test_fields_out_of_bounds_are_refused(fields):
    with pytest.raises(RemoteProtocolError):
        r.verify(forge(**fields))


def test_a_signature_by_another_key_or_for_another_purpose_is_refused():
    with pytest.raises(RemoteProtocolError, match="did not sign"):
        r.verify(forge(sign=OTHER.sign))
    body = RECORD[:-64]
    with pytest.raises(RemoteProtocolError, match="did not sign"):
        r.verify(body + KEY.sign(body))


def test_only_the_canonical_form_is_accepted():
    body = msgpack.unpackb(RECORD[:-64])
    for packed in (
        msgpack.packb(dict(reversed(body.items()))),
        msgpack.packb(body, use_single_float=True),
        RECORD[:-64] + b"\x00",
        msgpack.packb([body]),
        msgpack.packb({1: 2}),
        msgpack.packb(msgpack.ExtType(4, b"x")),
        b"\xc1",
        b"\x91" * 2000,
    ):
        with pytest.raises(RemoteProtocolError):
            r.verify(packed + KEY.sign(r.DOMAIN + packed))


@pytest.mark.parametrize(
    "change",
    [
        {"num_blocks": 3},
        {"ttl_ms": 1},
        {"name": "a\nb"},
        {"addrs": ("nowhere",)},
        {"sequence": 0},
        {"name": "x" * 9000},
    ],
)
def test_our_own_mistakes_are_told_before_signing(change):
    with pytest.raises(ValueError, match="cannot announce"):
        r.sign_announcement(replace(ANN, **change), KEY.sign)


def test_keys():
    assert r.record_key(ANN.model, PEER) == f"/p2pllm/ab12/{PEER}"
    assert r.model_key(ANN.model) == "/p2pllm/ab12"


def test_the_dht_stores_a_record_only_under_its_own_key_and_in_time():
    r.validate_dht(r.record_key(ANN.model, PEER), RECORD)
    now = ANN.issued_ms / 1000
    r.validate_dht(r.record_key(ANN.model, PEER), RECORD, now + 599)
    for key, value, at in [
        (r.record_key(ANN.model, OTHER_PEER), RECORD, None),
        (r.record_key(ModelId("other"), PEER), RECORD, None),
        (r.record_key(ANN.model, PEER), RECORD[:-1] + b"\0", None),
        (r.record_key(ANN.model, PEER), bytes(20_000), None),
        (r.record_key(ANN.model, PEER), RECORD, now + 601),
        (r.record_key(ANN.model, PEER), RECORD, now - 601),
        ("", b"", None),
    ]:
        with pytest.raises(RemoteProtocolError):
            r.validate_dht(key, value, at)


def test_the_higher_sequence_is_newer_and_ties_are_broken_one_way():
    later = r.sign_announcement(replace(ANN, sequence=ANN.sequence + 1, queue=0), KEY.sign)
    twin = r.sign_announcement(replace(ANN, queue=4), KEY.sign)
    assert r.newer(later, RECORD)
    assert not r.newer(RECORD, later)
    assert not r.newer(RECORD, RECORD)
    assert r.newer(twin, RECORD) != r.newer(RECORD, twin)
    assert r.newer(RECORD, b"junk")
    assert not r.newer(b"junk", RECORD)


@given(st.floats(0, 1e7))
def test_entries_carry_the_age(age):
    entry = r.pack_entry(RECORD, age)
    record, back = r.unpack_entry(entry)
    assert record == RECORD
    assert back == pytest.approx(min(age, 4_294_967.295), abs=0.001)


@pytest.mark.parametrize("entry", [b"", b"\0\0\0\0", bytes(r.ENTRY_BYTES_MAX + 1)])
def test_entries_have_a_size(entry):
    with pytest.raises(RemoteProtocolError):
        r.unpack_entry(entry)


def test_the_memo_is_bounded(monkeypatch):
    monkeypatch.setattr(r, "_MEMO_RECORDS", 10)
    monkeypatch.setattr(r, "_memo", type(r._memo)())
    for i in range(30):
        r.verify(r.sign_announcement(replace(ANN, sequence=i + 1), KEY.sign))
    assert len(r._memo) == 10


def test_ids_that_are_no_keys():
    with pytest.raises(ValueError, match="cannot announce"):
        r.sign_announcement(replace(ANN, peer=PeerId("me")), KEY.sign)


def test_the_example_in_the_protocol_page_is_a_record():
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    section = page.split("## Announcements")[1].split("\n## ")[0]
    example = re.findall(r"^    ([0-9a-f]{2,})$", section, re.MULTILINE)
    ann = r.verify(bytes.fromhex("".join(example)))
    assert (ann.peer, ann.span, ann.name) == (PEER, Span(2, 6), "desk")
    keys = re.findall(r"^\| `(.)` \|", section, re.MULTILINE)
    assert keys == list(msgpack.unpackb(RECORD[:-64]))
