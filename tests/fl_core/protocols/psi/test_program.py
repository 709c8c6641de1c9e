"""The party program: every plan gives Python's own set operations, members that differ part at once, bounds hold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.errors import BadFrame, DataError, JobFileError, RefusedError, UsageError
from fl_core.protocols.psi import program
from fl_core.protocols.psi.ids import hash_ids
from fl_core.protocols.psi.parameters import MAX_ITEMS
from fl_core.protocols.psi.program import Plan, align, choose, compare, first_receiver, needs_comparer
from tests.fl_core.protocols.parties import converse, hashed

NAMES = ("ann", "bob", "cleo", "dan")


def plan_for(count, **options):
    names, output = NAMES[:count], options.get("output", "receivers")
    return Plan(names, comparer="zoe" if needs_comparer(names, output) else None, **options)


def run(sets, plan, *, fault=None, others=(), timeout=30.0):
    """All members at work; `others` replaces the plan of some."""
    plans = dict.fromkeys(plan.members, plan) | dict(others)

    def member(name):
        if name == plan.comparer:
            return lambda c: compare(c, plans[name])
        items = hashed(sets[plan.parties.index(name)])
        return lambda c: align(c, items, plans[name])

    return converse({name: member(name) for name in plan.members}, fault=fault, timeout=timeout)


def check(sets, plan):
    """Compare with Python's sets."""
    session, sets = run(sets, plan), [list(one) for one in sets]
    common = set.intersection(*map(set, sets))
    found = {name: session.result(name) for name in plan.parties}
    columns = []
    for (name, mine), own in zip(found.items(), sets, strict=True):
        assert list(mine.sizes.values()) == [len(one) if plan.pad_to is None else plan.pad_to for one in sets]
        if name not in plan.receivers:
            assert mine.rows is None and mine.count is None
        elif plan.output == "cardinality":
            assert mine.rows is None and mine.count == len(common)
        elif plan.output == "receivers":
            assert mine.count == len(common)
            columns.append([own[i] for i in mine.rows])
        else:
            columns.append([None if i < 0 else own[i] for i in mine.rows])
            assert sorted(x for x in columns[-1] if x is not None) == sorted(own)
    rows = [set(row) - {None} for row in zip(*columns, strict=True)]
    assert all(len(row) <= 1 for row in rows)
    if plan.output == "receivers":
        assert sorted(x for row in rows for x in row) == sorted(common) and len(rows) == len(common)
    if plan.output == "union":
        assert sorted(x for row in rows for x in row) == sorted(set.union(*map(set, sets)))


@st.composite
def jobs(draw):
    count = draw(st.integers(2, 4))
    output = draw(st.sampled_from(program.OUTPUTS))
    protocols = ["auto", "ecdh", "cm20"] if count == 2 and output == "receivers" else ["auto", "ecdh"]
    least = program.MIN_CARDINALITY_SET if output == "cardinality" else 0
    sets = [sorted(draw(st.sets(st.integers(0, 40), min_size=least, max_size=25))) for _ in range(count)]
    receivers = () if output == "union" else tuple(draw(st.sets(st.sampled_from(NAMES[:count]))))
    pad_to = draw(st.sampled_from([None, 25, 40]))
    plan = plan_for(count, receivers=receivers, protocol=draw(st.sampled_from(protocols)), output=output, pad_to=pad_to)
    return sets, plan


@settings(max_examples=50, deadline=None)
@given(jobs())
def test_every_plan_gives_the_set_operation(job):
    check(*job)


@pytest.mark.parametrize("protocol", ["cm20", "ecdh"])
@pytest.mark.parametrize("sizes", [(0, 0), (0, 2), (1, 1), (1, 2), (2, 2), (1000, 1)])
@pytest.mark.parametrize("receivers", [(), ("ann",), ("bob",)])
def test_tiny_and_very_unequal_sets(protocol, sizes, receivers):
    check([range(n) for n in sizes], plan_for(2, protocol=protocol, receivers=receivers))


def test_ids_of_real_columns_meet():
    left = hash_ids([pa.array(["Zoë ", "a,b", "x"]), pa.array([1, 2, 3])], ["name", "no"], where="ann")
    right = hash_ids([pa.array(["a", "Zoe\u0308", "X"]), pa.array(["b,2", "1", "3"])], ["n", "k"], where="bob")
    plan = plan_for(2)
    ends = {"ann": lambda c: align(c, left.hashes, plan), "bob": lambda c: align(c, right.hashes, plan)}
    session = converse(ends)
    assert session.result("ann").rows.tolist() == [0] and session.result("bob").rows.tolist() == [1]


# ---- what is agreed


@pytest.mark.parametrize(
    "change",
    [
        {"pad_to": 100},
        {"receivers": ("bob",)},
        {"protocol": "cm20"},
        {"parties": ("bob", "ann")},
        {"output": "cardinality"},
    ],
)
def test_another_plan_at_a_peer_is_refused_by_its_name(change):
    plan = plan_for(2)
    session = run([range(20)] * 2, plan, others={"bob": dataclasses.replace(plan, **change)}, timeout=5)
    for name, peer in (("ann", "bob"), ("bob", "ann")):
        assert isinstance(session.results[name], RefusedError)
        assert f"party {peer} has another plan" in str(session.results[name])


def test_another_plan_at_the_comparer_is_refused():
    plan = plan_for(3)
    session = run([range(3)] * 3, plan, others={"zoe": plan_for(3, receivers=("ann",))}, timeout=5)
    assert all("party zoe has another plan" in str(session.results[name]) for name in plan.parties)


def test_names_cannot_be_moved_between_fields_of_a_digest():
    plans = [
        plan_for(2),
        plan_for(3),
        plan_for(2, receivers=("ann",)),
        plan_for(2, output="union"),
        plan_for(2, pad_to=2),
    ]
    assert len({plan.digest() for plan in plans}) == len(plans)
    assert plan_for(2).digest() == plan_for(2, receivers=("bob", "ann")).digest()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"parties": ("ann",)}, "party: 1 parties"),
        ({"parties": ("ann", "ann")}, "party: 2 parties"),
        ({"protocol": "kkrt"}, "psi.protocol: 'kkrt'; allowed: auto, cm20, ecdh"),
        ({"output": "sum"}, "psi.output: 'sum'; allowed: receivers, cardinality, union"),
        ({"receivers": ("eve",)}, "psi.receivers: 'eve' is no party; allowed: ann, bob"),
        ({"protocol": "cm20", "output": "cardinality"}, "psi.protocol: cm20 with 2 parties and output 'cardinality'"),
        ({"protocol": "cm20", "parties": NAMES, "comparer": "zoe"}, "psi.protocol: cm20 with 4 parties"),
        ({"output": "union", "receivers": ("ann",), "comparer": "zoe"}, "psi.receivers: not all parties"),
        ({"pad_to": 0}, f"psi.pad_to: 0; allowed: 1 to {MAX_ITEMS}"),
        ({"pad_to": MAX_ITEMS + 1}, "psi.pad_to"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_key(options, problem):
    with pytest.raises(JobFileError) as refused:
        Plan(**{"parties": ("ann", "bob"), **options})
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [{"parties": NAMES}, {"output": "union"}, {"output": "union", "comparer": "ann"}, {"comparer": "zoe"}],
)
def test_a_comparer_is_named_exactly_where_one_is_needed(options):
    with pytest.raises(UsageError, match="comparer"):
        Plan(**{"parties": ("ann", "bob"), **options})


def test_who_is_not_in_the_plan_or_the_session_is_refused():
    plan = plan_for(2)
    stranger = converse({"eve": lambda c: align(c, hashed([1]), plan), "bob": lambda c: None})
    assert "party eve: no party of the plan" in str(stranger.results["eve"])
    alone = converse({"ann": lambda c: align(c, hashed([1]), plan), "zoe": lambda c: compare(c, plan)})
    assert "bob is not in the session" in str(alone.results["ann"])
    assert "zoe: not the comparer" in str(alone.results["zoe"])


# ---- sizes


def test_small_sets_are_no_cardinality():
    plan = plan_for(2, output="cardinality")
    session = run([range(9), range(10)], plan, timeout=2)
    assert "party ann has 9 ids, too few for a cardinality; allowed: 10 or more" in str(session.results["ann"])
    assert isinstance(session.results["ann"], RefusedError)
    padded = run([range(9), range(10)], plan_for(2, output="cardinality", pad_to=20), timeout=2)
    assert isinstance(padded.results["ann"], RefusedError)


def test_a_peers_small_set_is_refused_by_its_name():
    def fault(sender, to, step, data):
        return data[:32] + (9).to_bytes(8, "big") if (sender, step) == ("bob", "psi plan") else data

    refused = run([range(10)] * 2, plan_for(2, output="cardinality"), fault=fault, timeout=2).results["ann"]
    assert isinstance(refused, RefusedError) and "party bob has 9 ids" in str(refused)


@pytest.mark.parametrize(("pad_to", "told"), [(None, MAX_ITEMS + 1), (None, 2**64 - 1), (30, 29), (30, 31), (30, 0)])
def test_a_size_that_cannot_be_is_refused_before_anything_is_allocated(pad_to, told):
    def fault(sender, to, step, data):
        return data[:32] + told.to_bytes(8, "big") if (sender, step) == ("bob", "psi plan") else data

    session = run([range(10)] * 2, plan_for(2, pad_to=pad_to), fault=fault, timeout=2)
    assert isinstance(session.results["ann"], BadFrame) and f"a list of {told} ids" in str(session.results["ann"])


def test_a_comparer_with_ids_is_refused():
    def fault(sender, to, step, data):
        return data[:32] + (1).to_bytes(8, "big") if (sender, step) == ("zoe", "psi plan") else data

    refused = run([range(3)] * 3, plan_for(3), fault=fault, timeout=2).results["ann"]
    assert isinstance(refused, BadFrame) and "a list of 1 ids; allowed: 0" in str(refused)


def test_a_list_over_its_bound_and_an_id_twice_are_the_owners_errors():
    plan = plan_for(2, pad_to=4)
    assert "party ann: 5 ids; allowed: at most 4" in str(run([range(5), [1]], plan, timeout=1).results["ann"])
    twice = run([[1, 2, 1], [1]], plan, timeout=1).results["ann"]
    assert isinstance(twice, DataError) and "party ann: an id twice" in str(twice)


@pytest.mark.parametrize(
    ("count", "output", "protocol"),
    [
        (2, "receivers", "cm20"),
        (2, "receivers", "ecdh"),
        (2, "cardinality", "ecdh"),
        (3, "receivers", "ecdh"),
        (3, "cardinality", "ecdh"),
        (3, "union", "ecdh"),
    ],
)
def test_padding_hides_a_size(count, output, protocol):
    """Everything but the content of messages is the same with 12 ids as with 30."""
    plan = plan_for(count, output=output, protocol=protocol, pad_to=30)
    shapes = []
    for n in (12, 30):
        said = run([range(n)] * count, plan).said
        shapes.append([[m.outline for m in said if m.sender == name] for name in plan.members])
    assert shapes[0] == shapes[1]


def test_items_of_another_form_are_a_mistake_of_the_caller():
    for items in (np.zeros((3, 16), np.uint8), np.zeros((3, 32), np.int64), np.zeros(32, np.uint8)):
        error = converse({"ann": lambda c, items=items: align(c, items, plan_for(2)), "bob": lambda c: None})
        assert isinstance(error.results["ann"], ValueError)


# ---- which protocol


@pytest.mark.parametrize(
    ("plan", "sizes", "protocol"),
    [
        (plan_for(2), (1024, 1024), "ecdh"),
        (plan_for(2), (1025, 3), "cm20"),
        (plan_for(2), (10, 1 << 20), "cm20"),
        (plan_for(2, protocol="ecdh"), (1 << 20, 1 << 20), "ecdh"),
        (plan_for(2, protocol="cm20"), (1, 1), "cm20"),
        (plan_for(2, output="cardinality"), (1 << 20, 1 << 20), "ecdh"),
        (plan_for(2, output="union"), (1 << 20, 1 << 20), "ecdh"),
        (plan_for(3), (1 << 20, 1 << 20, 1 << 20), "ecdh"),
    ],
)
def test_auto_chooses_by_parties_output_and_sizes(plan, sizes, protocol):
    assert choose(plan, dict(zip(plan.parties, sizes, strict=True))) == protocol


@pytest.mark.parametrize(
    ("receivers", "sizes", "first"),
    [
        ((), (5, 9), "ann"),
        ((), (9, 5), "bob"),
        ((), (5, 5), "ann"),
        (("ann",), (9, 5), "ann"),
        (("bob",), (5, 9), "bob"),
    ],
)
def test_the_smaller_set_receives_where_both_may(receivers, sizes, first):
    assert first_receiver(plan_for(2, receivers=receivers), dict(zip(NAMES, sizes, strict=False))) == first
