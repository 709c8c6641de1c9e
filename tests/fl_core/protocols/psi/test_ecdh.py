"""Intersection by Diffie-Hellman of two: the right rows or the right number, and nothing for one who is not told."""

from __future__ import annotations

import numpy as np
import pytest

from fl_core.errors import BadFrame
from fl_core.protocols.psi import ecdh
from tests.fl_core.protocols.parties import converse, hashed

P = 2**255 - 19


def intersect(mine, theirs, *, tell=True, fault=None):
    """A run for the rows; the receiver is r, the helper h."""
    a, b = hashed(mine), hashed(theirs)
    return converse(
        {
            "r": lambda c: ecdh.receive(c, "h", a, helper_size=len(b), tell=tell),
            "h": lambda c: ecdh.help_receive(c, "r", b, receiver_size=len(a), told=tell),
        },
        fault=fault,
    )


def size(mine, theirs, *, tell=True, fault=None):
    """A run for the number."""
    a, b = hashed(mine), hashed(theirs)
    return converse(
        {
            "r": lambda c: ecdh.count(c, "h", a, helper_size=len(b), tell=tell),
            "h": lambda c: ecdh.help_count(c, "r", b, receiver_size=len(a), told=tell),
        },
        fault=fault,
    )


SETS = [
    ([1], [1]),
    ([1], [2]),
    ([1, 2], [2, 1]),
    ([5], range(1000)),
    (range(1000), [5]),
    (range(100), range(100)),
    (range(100), range(100, 200)),
    (range(0, 300, 2), range(0, 300, 3)),
]


@pytest.mark.parametrize(("mine", "theirs"), SETS, ids=lambda v: f"{len(v)}")
def test_both_get_the_intersection_in_one_order(mine, theirs):
    session = intersect(mine, theirs)
    left, right = [mine[i] for i in session.result("r")], [theirs[i] for i in session.result("h")]
    assert left == right and sorted(left) == sorted(set(mine) & set(theirs))


@pytest.mark.parametrize(("mine", "theirs"), SETS, ids=lambda v: f"{len(v)}")
def test_both_get_the_size(mine, theirs):
    session = size(mine, theirs)
    assert session.result("r") == session.result("h") == len(set(mine) & set(theirs))


@pytest.mark.parametrize("run", [intersect, size])
def test_lists_of_several_parts_of_unequal_length(run, monkeypatch):
    monkeypatch.setattr(ecdh, "PART", 16)
    for n, m in ((16, 17), (50, 3), (3, 50)):
        mine, theirs = range(n), range(2, 2 + m)
        session, common = run(mine, theirs), sorted(set(mine) & set(theirs))
        if run is size:
            assert session.result("r") == session.result("h") == len(common)
        else:
            assert sorted(mine[i] for i in session.result("r")) == common
            assert [mine[i] for i in session.result("r")] == [theirs[i] for i in session.result("h")]


@pytest.mark.parametrize("tell", [False, True])
@pytest.mark.parametrize("run", [intersect, size])
def test_a_transcript_has_one_shape_whatever_is_common(run, tell):
    shapes = []
    for theirs in (range(40), range(20, 60), range(40, 80)):
        said = run(range(40), theirs, tell=tell).said
        shapes.append([[m.outline for m in said if m.sender == name] for name in "rh"])
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize("run", [intersect, size])
def test_a_helper_who_is_not_told_hears_only_masked_items(run):
    session = run(range(40), range(40), tell=False)
    assert session.result("h") is None and {m.step for m in session.heard_by("h")} == {"psi masked"}


@pytest.mark.parametrize("run", [intersect, size])
def test_lists_are_shuffled_and_keys_are_fresh(run):
    """No point twice in two runs over the same items."""
    points = [m.data[at : at + 32] for _ in range(2) for m in run(range(30), range(30)).said for at in range(0, 960, 32)
              if m.step == "psi masked"]  # fmt: skip
    assert len(points) == len(set(points)) == 120
    assert all(int.from_bytes(point, "little") < P for point in points)


def test_where_an_item_stands_in_the_list_is_random():
    """The helper's only item that the receiver has comes to stand in both halves of the list, in 30 runs."""
    halves = set()
    for _ in range(30):
        messages = {m.step: m.data for m in intersect([7], range(20)).said}
        (position,) = np.frombuffer(messages["psi result"], dtype="<u4")
        halves.add(position < 10)
    assert halves == {True, False}


def test_for_the_size_the_receiver_gets_its_items_back_unrecognisable():
    """In ascending order, cut: which is which shows neither by place nor by value."""
    said = size(range(50), range(50)).said
    (message,) = [m.data for m in said if m.step == "psi masked twice"]
    values = [message[at : at + 7] for at in range(0, 350, 7)]
    assert values == sorted(values) and len(set(values)) == 50


POINTS = {"not canonical": P.to_bytes(32, "little"), "high bit": bytes([9] * 31 + [0x80]), "small order": bytes(32)}


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("liar", ["r", "h"])
@pytest.mark.parametrize("run", [intersect, size])
def test_a_point_that_is_none_is_refused(run, liar, name):
    def fault(sender, to, step, data):
        return data[:64] + POINTS[name] + data[96:] if (sender, step) == (liar, "psi masked") else data

    refused = run(range(5), range(5), fault=fault).results["h" if liar == "r" else "r"]
    assert isinstance(refused, BadFrame) and f"from party {liar} in step 'psi masked'" in str(refused)


@pytest.mark.parametrize("change", [lambda data: data + b"\0", lambda data: data[:-1]], ids=["longer", "shorter"])
@pytest.mark.parametrize(
    ("run", "liar", "step"),
    [(run, *case) for run in (intersect, size) for case in
     [("r", "psi masked"), ("h", "psi masked"), ("h", "psi masked twice"), ("r", "psi result")]],
)  # fmt: skip
def test_a_message_of_another_size_is_refused_by_step(run, liar, step, change):
    def fault(sender, to, said, data):
        return change(data) if (sender, said) == (liar, step) else data

    refused = run(range(20), range(20), fault=fault).results["h" if liar == "r" else "r"]
    assert isinstance(refused, BadFrame) and f"from party {liar} in step {step!r}" in str(refused)


@pytest.mark.parametrize("positions", [[0, 0], [5, 0], [0xFFFFFFFF, 0]], ids=["twice", "outside", "after the end"])
def test_positions_that_cannot_be_are_refused(positions):
    def fault(sender, to, step, data):
        return np.array(positions, dtype="<u4").tobytes() if step == "psi result" else data

    refused = intersect(range(2), range(5), fault=fault).results["h"]
    assert isinstance(refused, BadFrame) and "no rows of a list of 5" in str(refused)


def test_a_size_that_cannot_be_is_refused():
    def fault(sender, to, step, data):
        return (6).to_bytes(8, "big") if step == "psi result" else data

    refused = size(range(5), range(9), fault=fault).results["h"]
    assert isinstance(refused, BadFrame) and "a count of 6, at most 5 is possible" in str(refused)
