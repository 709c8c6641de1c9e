"""Oblivious transfer: one key of each pair, the right one, and no keys from points that are not of the group."""

from __future__ import annotations

import hashlib
import struct
import threading

import numpy as np
import pytest
from nacl import bindings as sodium

from fl_core.crypto import oblivious_transfer
from fl_core.crypto.oblivious_transfer import choose_keys, send_keys
from fl_core.errors import BadFrame
from tests.fl_core.protocols.parties import converse

IDENTITY = bytes([1]) + bytes(31)
ORDER_2 = bytes([0xEC]) + bytes([0xFF]) * 30 + bytes([0x7F])
ORDER_4 = bytes(32)
ORDER_8 = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
NOT_CANONICAL = bytes([0xEE]) + bytes([0xFF]) * 30 + bytes([0x7F])


def transfer(choices, *, label=b"test", chooser_label=b"test", fault=None):
    programs = {
        "s": lambda channel: send_keys(channel, "c", len(choices), label=label),
        "c": lambda channel: choose_keys(channel, "s", np.array(choices, dtype=bool), label=chooser_label),
    }
    return converse(programs, fault=fault)


def mixed_order():
    point = sodium.crypto_core_ed25519_from_uniform(bytes(range(32)))
    return sodium.crypto_core_ed25519_add(point, ORDER_8)


def test_the_chosen_key_is_the_senders_and_the_other_is_not():
    choices = np.random.default_rng(1).integers(0, 2, 64) == 1
    session = transfer(choices.tolist())
    pairs, keys = session.result("s"), session.result("c")
    assert all(key == pair[int(choice)] for key, pair, choice in zip(keys, pairs, choices, strict=True))
    assert len({key for pair in pairs for key in pair}) == 128
    assert {len(key) for pair in pairs for key in pair} == {16}


def test_no_transfers_are_an_empty_run():
    session = transfer([])
    assert session.result("s") == session.result("c") == []


def test_another_label_gives_other_keys():
    session = transfer([0, 1], chooser_label=b"another")
    assert not set(session.result("c")) & {key for pair in session.result("s") for key in pair}


def test_what_the_sender_hears_does_not_show_the_choices():
    """Every point is one of the subgroup, and fresh, whatever was chosen."""
    heard = [transfer([bit] * 20).heard_by("s")[0].data for bit in (0, 1)]
    points = [data[at : at + 32] for data in heard for at in range(0, 640, 32)]
    assert len(set(points)) == 40
    assert all(sodium.crypto_core_ed25519_is_valid_point(point) for point in points)


@pytest.mark.parametrize(
    "point", [IDENTITY, ORDER_2, ORDER_4, ORDER_8, NOT_CANONICAL, mixed_order(), bytes([255]) * 32]
)
def test_a_point_outside_the_group_is_refused_by_both(point):
    def offer(sender, to, step, data):
        return point if step == "transfer offer" else data

    def choice(sender, to, step, data):
        return data[:32] + point + data[64:] if step == "transfer choices" else data

    assert "its point is not one of the group" in str(transfer([0, 1, 1], fault=offer).results["c"])
    refused = transfer([0, 1, 1], fault=choice).results["s"]
    assert isinstance(refused, BadFrame) and "party c in step 'transfer choices': point 1 of 3" in str(refused)


def test_the_senders_own_point_as_a_choice_is_refused():
    """It would make one key the hash of the identity, and the other known as well."""
    seen = {}

    def echo(sender, to, step, data):
        seen.setdefault(step, data)
        return seen["transfer offer"] if step == "transfer choices" else data

    assert isinstance(transfer([0], fault=echo).results["s"], BadFrame)


def test_a_missing_point_is_refused():
    session = transfer([0, 1], fault=lambda s, t, step, data: data[:32])
    assert "32 bytes instead of 64" in str(session.results["s"])


# ---- a slow reference: edwards25519 in integers, RFC 8032, section 5.1

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
BASE_Y = 4 * pow(5, -1, P) % P


def x_of(y, sign):
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    return P - x if x & 1 != sign else x


def add(a, b):
    t = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + t, -1, P) % P
    return x, (a[1] * b[1] + a[0] * b[0]) * pow(1 - t, -1, P) % P


def times(scalar, point):
    total = (0, 1)
    while scalar:
        total, point, scalar = (add(total, point) if scalar & 1 else total), add(point, point), scalar >> 1
    return total


def encode(point):
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def key(index, offer, point, shared):
    fixed = (b"fedseal/oblivious-transfer/v1", b"memory", b"s", b"c", b"test", offer)
    start = b"".join(struct.pack(">I", len(part)) + part for part in fixed)
    return hashlib.sha256(start + struct.pack(">I", index) + point + shared).digest()[:16]


def test_keys_are_those_of_a_slow_reference(monkeypatch):
    a, b = 0x1234567 << 200 | 99, [5 << 240 | 3, 77777777777]
    scalars = {"s": [a], "c": list(b)}

    def scalar():
        return scalars[threading.current_thread().name].pop(0).to_bytes(32, "little")

    monkeypatch.setattr(oblivious_transfer, "_secret_scalar", scalar)
    session = transfer([1, 0])
    base = (x_of(BASE_Y, 0), BASE_Y)
    offer = times(a, base)
    minus = (P - offer[0], offer[1])
    points = [add(times(b[0], base), offer), times(b[1], base)]
    pairs = []
    for index, point in enumerate(points):
        shared = [encode(times(a, point)), encode(times(a, add(point, minus)))]
        pairs.append(tuple(key(index, encode(offer), encode(point), one) for one in shared))
    assert session.result("s") == pairs
    assert session.result("c") == [pairs[0][1], pairs[1][0]]
