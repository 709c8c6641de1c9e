"""CM20: the right rows for both, nothing for a sender who is not told, and no message that the protocol has not."""

from __future__ import annotations

import numpy as np
import pytest

from fl_core.errors import BadFrame
from fl_core.protocols.psi import cm20
from tests.fl_core.protocols.parties import converse, hashed


def intersect(mine, theirs, *, tell=True, threads=1, fault=None):
    """A run of the two programs; the receiver is r, the sender s."""
    a, b = hashed(mine), hashed(theirs)
    return converse(
        {
            "r": lambda c: cm20.receive(c, "s", a, sender_size=len(b), tell=tell, threads=threads),
            "s": lambda c: cm20.send(c, "r", b, receiver_size=len(a), told=tell, threads=threads),
        },
        fault=fault,
    )


def ids(session, mine, theirs):
    """The common ids as each got them, in its order."""
    return [mine[i] for i in session.result("r")], [theirs[i] for i in session.result("s")]


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ([1], [1]),
        ([1], [2]),
        ([1, 2], [2]),
        ([2], [1, 2]),
        ([1, 2], [2, 1]),
        ([1, 2], [3, 4]),
        ([5], range(1000)),
        ([5000], range(1000)),
        (range(1000), [5]),
        (range(300), range(300)),
        (range(300), range(299, -1, -1)),
        (range(300), range(300, 600)),
        (range(0, 900, 2), range(0, 900, 3)),
    ],
    ids=lambda v: f"{len(v)}",
)
def test_both_get_the_intersection_in_one_order(mine, theirs):
    left, right = ids(intersect(mine, theirs), mine, theirs)
    assert left == right and sorted(left) == sorted(set(mine) & set(theirs))


def test_rows_stand_in_a_new_order_each_time():
    first, second = (ids(intersect(range(200), range(200)), range(200), range(200))[0] for _ in range(2))
    assert first != second and list(range(200)) not in (first, second)


def test_several_threads_give_the_same():
    """More columns than one message takes, so that several are under way."""
    left, right = ids(intersect(range(5000), range(2500, 7500), threads=3), range(5000), range(2500, 7500))
    assert left == right and sorted(left) == list(range(2500, 5000))


@pytest.mark.slow
def test_2_to_the_16_ids_a_party():
    mine, theirs = range(1 << 16), range(1 << 15, 3 << 15)
    left, right = ids(intersect(mine, theirs, threads=2), mine, theirs)
    assert left == right and sorted(left) == list(range(1 << 15, 1 << 16))


@pytest.mark.parametrize("tell", [False, True])
def test_a_transcript_has_one_shape_whatever_is_common(tell):
    """Who speaks, the step and the size of every message; the marks too are as long without any match."""
    shapes = []
    for theirs in (range(100), range(50, 150), range(100, 200)):
        said = intersect(range(100), theirs, tell=tell).said
        shapes.append(sorted(m.outline for m in said if m.sender == "r") + [m.outline for m in said if m.sender == "s"])
    assert shapes[0] == shapes[1] == shapes[2]


def test_a_sender_who_is_not_told_hears_nothing_after_it_has_sent_its_values():
    session = intersect(range(50), range(50), tell=False)
    assert session.result("s") is None and session.said[-1].step == "psi values"
    assert {m.step for m in session.heard_by("s")} == {"transfer offer", "psi key", "psi columns"}


def test_the_prf_key_leaves_only_after_the_choices_have_come():
    steps = [m.step for m in intersect(range(20), range(20)).said]
    assert steps.index("transfer choices") < steps.index("psi key") < steps.index("psi columns")


def test_keys_columns_and_values_are_fresh_each_time():
    runs = [intersect(range(20), range(20)) for _ in range(2)]
    for step in ("transfer offer", "transfer choices", "psi key", "psi columns", "psi values"):
        first, second = ([m.data for m in run.said if m.step == step] for run in runs)
        assert first != second, step


def test_columns_look_random_to_the_sender():
    """A ⊕ D ⊕ PRG(k1): as many ones as zeros, within 6 standard deviations, though D is mostly ones."""
    data = b"".join(m.data for m in intersect(range(2000), range(10)).said if m.step == "psi columns")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    assert abs(bits.mean() - 0.5) < 6 * 0.5 / np.sqrt(len(bits))


def test_values_leave_in_ascending_order():
    (message,) = [m.data for m in intersect(range(100), range(100)).said if m.step == "psi values"]
    values = [message[at : at + 7] for at in range(0, 700, 7)]  # ⌈(40 + log2 10^4) / 8⌉ = 7 bytes
    assert values == sorted(values) and len(message) == 700


STEPS = [
    ("s", "transfer choices", "r"),
    ("s", "psi values", "r"),
    ("r", "transfer offer", "s"),
    ("r", "psi key", "s"),
    ("r", "psi columns", "s"),
    ("r", "psi matches", "s"),
]


@pytest.mark.parametrize("change", [lambda data: data + b"\0", lambda data: data[:-1]], ids=["longer", "shorter"])
@pytest.mark.parametrize(("liar", "step", "victim"), STEPS)
def test_a_message_of_another_size_is_refused_by_step(liar, step, victim, change):
    session = intersect(
        range(30), range(30), fault=lambda sender, to, said, data: change(data) if said == step else data
    )
    refused = session.results[victim]
    assert isinstance(refused, BadFrame) and f"from party {liar} in step {step!r}" in str(refused)


def test_values_out_of_order_are_refused():
    def fault(sender, to, step, data):
        size = len(data) // 30
        return data[size:] + data[:size] if step == "psi values" else data

    assert "not in ascending order" in str(intersect(range(30), range(30), fault=fault).results["r"])


def test_a_mark_behind_the_last_value_is_refused():
    def fault(sender, to, step, data):
        return data[:-1] + bytes([data[-1] | 1]) if step == "psi matches" else data

    refused = intersect(range(30), range(30), fault=fault).results["s"]
    assert isinstance(refused, BadFrame) and "a mark behind the 30 values" in str(refused)


def test_altered_columns_end_in_fewer_rows_and_never_in_wrong_ones():
    def fault(sender, to, step, data):
        return bytes(len(data)) if step == "psi columns" else data

    session = intersect(range(100), range(50, 150), fault=fault)
    left, right = ids(session, range(100), range(50, 150))
    assert left == right == []
