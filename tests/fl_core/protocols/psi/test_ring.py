"""Many parties and a comparer: the right answer for each, and in nobody's view two lists that could be compared."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from fl_core.crypto import curve25519
from fl_core.errors import BadFrame
from fl_core.protocols.psi import ecdh, ring
from fl_core.protocols.psi.ring import Ring
from tests.fl_core.protocols.parties import converse, hashed

SETS = {
    "overlap": [range(30), range(10, 40), range(20, 50), range(5, 45)],
    "all equal": [range(20)] * 4,
    "none common": [range(9), range(9, 20), range(20, 33), range(33, 35)],
    "common in pairs only": [[1, 2, 8, 9], [2, 3, 9, 10], [3, 1, 10, 8], [1, 2, 3]],
    "one to many": [[7], range(500), range(7, 9), [7, 8]],
    "tiny": [[1], [1], [1, 2], [2, 1]],
}
CASES = [(count, name) for count in (2, 3, 4) for name in SETS]


def together(sets, output, *, receivers=None, fault=None):
    names = "abcd"[: len(sets)]
    receivers = names if receivers is None else receivers
    circle = Ring({name: len(one) for name, one in zip(names, sets, strict=True)}, "z")

    def party(name, own):
        items = hashed(own)
        if output == "union":
            return lambda c: ring.unite(c, circle, items)
        work = ring.intersect if output == "receivers" else ring.count
        return lambda c: work(c, circle, items, told=name in receivers)

    comparer = {
        "union": lambda c: ring.compare_union(c, circle),
        "receivers": lambda c: ring.compare_intersection(c, circle, receivers),
        "cardinality": lambda c: ring.compare_count(c, circle, receivers),
    }
    programs = {name: party(name, own) for name, own in zip(names, sets, strict=True)}
    return converse({**programs, "z": comparer[output]}, fault=fault)


@pytest.mark.parametrize(("count", "name"), CASES)
def test_all_get_the_intersection_of_all_in_one_order(count, name):
    sets = SETS[name][:count]
    session = together(sets, "receivers")
    found = [[own[i] for i in session.result(party)] for party, own in zip("abcd", sets, strict=False)]
    assert all(one == found[0] for one in found)
    assert sorted(found[0]) == sorted(set.intersection(*map(set, sets)))


@pytest.mark.parametrize(("count", "name"), CASES)
def test_all_get_the_size(count, name):
    sets = SETS[name][:count]
    session = together(sets, "cardinality")
    assert {session.result(party) for party in "abcd"[:count]} == {len(set.intersection(*map(set, sets)))}


@pytest.mark.parametrize(("count", "name"), CASES)
def test_all_get_their_rows_of_the_union(count, name):
    sets = SETS[name][:count]
    session = together(sets, "union")
    found = [
        [None if i < 0 else own[i] for i in session.result(party)] for party, own in zip("abcd", sets, strict=False)
    ]
    rows = [set(row) - {None} for row in zip(*found, strict=True)]
    assert all(len(row) == 1 for row in rows)
    assert sorted(next(iter(row)) for row in rows) == sorted(set.union(*map(set, sets)))
    assert all(sorted(x for x in one if x is not None) == sorted(own) for one, own in zip(found, sets, strict=True))


@pytest.mark.parametrize("output", ["receivers", "cardinality", "union"])
def test_lists_of_several_parts_of_unequal_length(output, monkeypatch):
    monkeypatch.setattr(ecdh, "PART", 8)
    sets = [range(3), range(1, 30), range(2, 18)]
    session = together(sets, output)
    if output == "receivers":
        assert [own[i] for party, own in zip("abc", sets, strict=True) for i in session.result(party)] == [2] * 3
    else:
        expected = 1 if output == "cardinality" else 30
        found = [session.result(party) for party in "abc"]
        assert [one if output == "cardinality" else len(one) for one in found] == [expected] * 3


def test_an_empty_list_is_part_of_a_union():
    session = together([range(3), [], range(2, 5)], "union")
    assert session.result("b").tolist() == [-1] * 5
    assert sorted(session.result("a").tolist()) == [-1, -1, 0, 1, 2]
    assert together([[], []], "union").result("a").tolist() == []


@pytest.mark.parametrize("output", ["receivers", "union"])
def test_rows_stand_in_a_new_order_each_time(output):
    runs = [together([range(100), range(100)], output).result("a").tolist() for _ in range(2)]
    assert runs[0] != runs[1] and list(range(100)) not in runs


@pytest.mark.parametrize("output", ["receivers", "cardinality"])
def test_who_is_no_receiver_hears_the_same_whatever_is_common(output):
    shapes = []
    for sets in SETS["all equal"][:3], [range(20), range(20, 40), range(40, 60)]:
        session = together(sets, output, receivers="a")
        assert session.result("b") is None and session.result("c") is None
        assert {m.step for name in "bc" for m in session.heard_by(name)} == {"psi ring"}
        shapes.append([m.outline for name in "abcz" for m in session.heard_by(name)])
    assert shapes[0] == shapes[1]


def values(message, size):
    """A list's values by their first six bytes, enough to tell 16 · 4 of them apart."""
    return {message.data[at : at + 6] for at in range(0, len(message.data), size)}


@pytest.mark.parametrize("count", [2, 3, 4])
def test_no_party_sees_two_lists_that_its_own_key_could_compare(count, monkeypatch):
    """All have the same ids, so two lists under the same masks are equal.

    What a party can make of its view: each list that it hears, that list under its own key as well, what it sends,
    and its own items, hashed to the curve, with and without its key.
    """
    keys = {}

    def new_key():
        key = keys[threading.current_thread().name] = curve25519.new_key()
        return key

    monkeypatch.setattr(ring, "new_key", new_key)
    said = together([range(16)] * count, "receivers").said
    cut = Ring(dict.fromkeys("abcd"[:count], 16), "z").value_bytes
    for place, me in enumerate("abcd"[:count]):
        owners = ["abcd"[(place - passed) % count] for passed in range(count)]
        sent = [m for m in said if m.sender == me and m.step != "psi plan"]
        heard = [m for m in said if m.to == me and m.step == "psi ring"]
        own = curve25519.hash_to_curve(hashed(range(16)), tag=b"fedseal/psi-point/v1\0memory")
        lists = [(me, {row.tobytes()[:6] for row in own})]
        in_file_order = curve25519.mask(own, keys[me]).tobytes()
        assert values(sent[0], 32) == {in_file_order[at : at + 6] for at in range(0, 512, 32)}
        assert sent[0].data != in_file_order
        for owner, message in zip(owners, sent, strict=True):
            lists.append((owner, values(message, 32 if message.step == "psi ring" else cut)))
        for owner, message in zip(owners[1:], heard, strict=True):
            points = np.frombuffer(message.data, dtype=np.uint8).reshape(-1, 32)
            masked = {row.tobytes()[:6] for row in curve25519.mask(points, keys[me])}
            assert (owner, masked) in lists  # it passed it on: equal lists are seen as such
            lists.append((owner, values(message, 32)))
        for (owner, one), (other_owner, other) in itertools.combinations(lists, 2):
            assert len(one) == len(other) == 16
            assert not one & other, (owner, other_owner)


@pytest.mark.parametrize("output", ["receivers", "union"])
def test_rows_do_not_stand_in_the_order_of_values_that_a_neighbour_saw(output):
    """From places in that order a party could tell where its own items lie among the values it sent for another."""
    said = together([range(32)] * 2, output).said
    size = Ring({"a": 32, "b": 32}, "z").value_bytes
    (list_of_a,) = [m.data for m in said if (m.sender, m.step) == ("b", "psi compare")]
    (result,) = [m.data for m in said if (m.to, m.step) == ("a", "psi result") and len(m.data) == 4 * 32]
    numbers = np.frombuffer(result, dtype="<u4")
    by_row = numbers if output == "receivers" else np.argsort(numbers)
    values_by_row = [list_of_a[at * size : (at + 1) * size] for at in by_row]
    assert len(set(values_by_row)) == 32 and values_by_row != sorted(values_by_row)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_partys_own_list_reaches_the_comparer_from_its_neighbour(count):
    said = together([range(10)] * count, "receivers").said
    names = "abcd"[:count]
    assert sorted((m.sender, m.to) for m in said if m.step == "psi ring") == sorted(
        (name, names[(i + 1) % count]) for i, name in enumerate(names) for _ in range(count - 1)
    )
    assert sorted(m.sender for m in said if m.step == "psi compare") == sorted(names)


@pytest.mark.parametrize("output", ["receivers", "cardinality", "union"])
@pytest.mark.parametrize("change", [lambda data: data + b"\0", lambda data: data[:-1]], ids=["longer", "shorter"])
@pytest.mark.parametrize(("step", "victims"), [("psi ring", "abc"), ("psi compare", "z"), ("psi result", "abc")])
def test_a_message_of_another_size_is_refused_by_step(output, step, victims, change):
    session = together([range(12)] * 3, output, fault=lambda s, t, said, data: change(data) if said == step else data)
    refused = [session.results[name] for name in victims]
    assert any(isinstance(error, BadFrame) and f"in step {step!r}" in str(error) for error in refused)


def test_a_point_that_is_none_is_refused():
    def fault(sender, to, step, data):
        return data[:32] + bytes([255]) * 32 + data[64:] if (sender, step) == ("a", "psi ring") else data

    refused = together([range(5)] * 3, "receivers", fault=fault).results["b"]
    assert isinstance(refused, BadFrame) and "from party a in step 'psi ring': point 1 of 5" in str(refused)


def test_a_value_twice_in_a_list_is_refused_by_the_comparer():
    """It would count twice, or stand for a row that is none."""

    def fault(sender, to, step, data):
        return data[: len(data) // 5] * 5 if (sender, step) == ("a", "psi compare") else data

    refused = together([range(5)] * 3, "receivers", fault=fault).results["z"]
    assert isinstance(refused, BadFrame) and "a value twice in the list of party b" in str(refused)


@pytest.mark.parametrize("places", [[0, 0, 1], [0, 1, 9]], ids=["twice", "outside"])
def test_places_that_are_no_rows_of_the_union_are_refused(places):
    def fault(sender, to, step, data):
        return np.array(places, dtype="<u4").tobytes() if step == "psi result" and len(data) == 12 else data

    refused = together([range(3), range(3)], "union", fault=fault).results["a"]
    assert isinstance(refused, BadFrame) and "places that are no rows of a union of 3" in str(refused)
