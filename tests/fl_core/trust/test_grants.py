"""Grants: what the rules decide is what a slow list of sentences decides, and nobody's signature is worth another's."""

from __future__ import annotations

import collections
import dataclasses
import random

import pytest

from fl_core.errors import BadMessage, BadSignature
from fl_core.trust import canonical
from fl_core.trust.catalog import UNLIMITED
from fl_core.trust.entry import Statement
from fl_core.trust.grant_statements import (
    Approval,
    Denial,
    GrantRequest,
    Revocation,
    Used,
    approved_by,
    read_body,
    revoked_by,
    shown,
)
from fl_core.trust.grants import ANYBODY, Grant, Request, Signer, Terms, Usage, check
from fl_core.trust.identity import Identity
from tests.fl_core.trust.consent import (
    BEGIN,
    END,
    JOB,
    LOG,
    ONE,
    VERSION,
    approve,
    dataset_card,
    make_request,
    make_state,
    make_terms,
)


@pytest.fixture
def chain(parties):
    """Two who must agree before the owner, bank_a."""
    return [parties["bank_c"], parties["bank_b"], parties["bank_a"]]


@pytest.fixture(scope="session")
def lab():
    return Identity.create("lab")


@pytest.fixture
def grant(chain, lab):
    return Grant(make_terms("bank_a", Signer.of(lab.card)), tuple(Signer.of(who.card) for who in chain))


def topics(reasons):
    return [reason.partition(":")[0] for reason in reasons]


def verdict(grant, *, request=None, state=None):
    """What `check` says of the good job with these changes."""
    return topics(check(grant, make_request(grant.terms, **(request or {})), make_state(grant, **(state or {}))))


# ---- the rules


def test_what_is_granted_is_allowed(grant):
    assert verdict(grant) == []


def test_grant_holds_from_its_first_millisecond_to_before_its_last(grant):
    edges = {BEGIN - 1: ["time"], BEGIN: [], BEGIN + 1: [], END - 1: [], END: ["time"], END + 1: ["time"]}
    assert {time: verdict(grant, request={"time": time}) for time in edges} == edges


@pytest.mark.parametrize(
    ("request_changes", "topic"),
    [
        ({"owner": "bank_b"}, "dataset"), ({"dataset": "people"}, "dataset"), ({"version": "ee" * 32}, "version"),
        ({"version": ""}, "version"), ({"grantee": "ee" * 32}, "grantee"), ({"kind": "psi"}, "kind"),
        ({"algorithm": "cnn"}, "algorithm"), ({"model": "ee" * 32}, "model"), ({"receivers": ("lab", "eve")}, "receivers"),
        ({"epsilon": 0}, "noise"), ({"epsilon": 3 * ONE + 1}, "epsilon"), ({"cohort": 2}, "cohort"),
    ],
    ids=str,
)  # fmt: skip
def test_altered_request_is_refused_for_that_reason(grant, request_changes, topic):
    assert verdict(grant, request=request_changes) == [topic]


def test_another_job_than_the_approved_one_is_refused(grant):
    pinned = dataclasses.replace(grant, terms=dataclasses.replace(grant.terms, job=JOB))
    assert verdict(pinned) == [] and verdict(pinned, request={"job": "ee" * 32}) == ["job"]


def test_what_the_state_forbids(grant, chain, lab):
    card = dataset_card("bank_a")
    cases = [
        ({"owner_key": "ee" * 32}, ["owner"]),
        ({"approvals": grant.approvals[:2]}, ["approvals"]),
        ({"approvals": grant.approvals[::-1]}, ["approvals"]),
        ({"revoked": True}, ["revoked"]),
        ({"withdrawn": True}, ["withdrawn"]),
        ({"revoked_keys": frozenset({lab.card.fingerprint})}, ["keys"]),
        ({"revoked_keys": frozenset({chain[1].card.fingerprint})}, ["keys"]),
        ({"revoked_keys": frozenset({"ee" * 32})}, []),
        ({"card": None}, ["catalog"]),
        ({"card": dataclasses.replace(card, name="people")}, ["catalog"]),
        ({"card": dataclasses.replace(card, kinds=("psi",))}, ["catalog"]),
        ({"card": dataclasses.replace(card, purposes=("fraud",))}, ["purpose"]),
        ({"card": dataclasses.replace(card, epsilon=ONE - 1)}, ["budget"]),
        ({"card": dataclasses.replace(card, epsilon=ONE)}, []),
        ({"usage": Usage(uses_committed=1)}, []),
        ({"usage": Usage(uses_committed=1, uses_reserved=1)}, ["uses"]),
        ({"usage": Usage(epsilon_committed=ONE, epsilon_reserved=ONE)}, []),
        ({"usage": Usage(epsilon_committed=ONE, epsilon_reserved=ONE + 1)}, ["epsilon"]),
        ({"usage": Usage(budget_spent=4 * ONE)}, []),
        ({"usage": Usage(budget_spent=4 * ONE + 1)}, ["budget"]),
        ({"strict": True}, []),
    ]
    for changes, expected in cases:
        assert verdict(grant, state=changes) == expected, changes


def test_self_issued_grants_are_refused_where_real_ones_are_asked_for(grant):
    own = dataclasses.replace(grant, approvals=grant.approvals[-1:], self_issued=True)
    assert verdict(own) == [] and verdict(own, state={"strict": True}) == ["self-issued"]


def test_every_reason_is_said_in_one_line_of_words(grant):
    request = Request(
        "bank_b", "people", "", "ee" * 32, "psi", "cnn", "ee" * 32, ("eve",), 9 * ONE, 1, END, "ee" * 32
    )  # fmt: skip
    state = make_state(grant, approvals=(), revoked=True, withdrawn=True, usage=Usage(2, 0, ONE, 0, ONE))
    reasons = check(grant, request, state)
    assert len(reasons) == 15 and all("\n" not in reason for reason in reasons)
    assert "receivers: eve; allowed: lab" in reasons
    assert "approvals: not signed in turn by bank_c, bank_b, bank_a" in reasons
    assert "uses: 2 used and 0 under way; allowed: 2" in reasons
    assert "epsilon: with this job 10; the grant allows 3" in reasons
    assert "budget: with this job 10 of bank_a/credit; its owner allows 5" in reasons


def reference(g, r, s):
    """The rules as plain sentences over plain tables, in the order in which they are said."""
    t, out = g["terms"], []
    card = s["card"]
    if card and (card["owner"] != t["owner"] or card["name"] != t["dataset"]):
        card = None
    if r["owner"] != t["owner"] or r["dataset"] != t["dataset"]:
        out.append("dataset")
    if t["version"] != "" and t["version"] != r["version"]:
        out.append("version")
    standing = t["grantee"] == {"name": "*", "fingerprint": "*"}
    if not standing and r["grantee"] != t["grantee"]["fingerprint"]:
        out.append("grantee")
    if r["kind"] not in t["kinds"]:
        out.append("kind")
    if "*" not in t["algorithms"] and r["algorithm"] not in t["algorithms"]:
        out.append("algorithm")
    if t["model"] != "*" and r["model"] != t["model"]:
        out.append("model")
    if t["job"] != "" and t["job"] != r["job"]:
        out.append("job")
    if "*" not in t["receivers"] and set(r["receivers"]) - set(t["receivers"]):
        out.append("receivers")
    if t["private_only"] and r["epsilon"] == 0:
        out.append("noise")
    if not t["not_before"] <= r["time"] < t["not_after"]:
        out.append("time")
    if s["owner_key"] != g["approvals"][-1]["fingerprint"]:
        out.append("owner")
    if s["approvals"][: len(g["approvals"])] != g["approvals"]:
        out.append("approvals")
    if s["revoked"]:
        out.append("revoked")
    keys = {who["fingerprint"] for who in [t["grantee"], *g["approvals"]]} | ({r["grantee"]} if standing else set())
    if keys & s["revoked_keys"]:
        out.append("keys")
    if s["strict"] and g["self_issued"]:
        out.append("self-issued")
    if s["withdrawn"]:
        out.append("withdrawn")
    if not card:
        out.append("catalog")
    else:
        if r["kind"] not in card["kinds"]:
            out.append("catalog")
        if t["purpose"] != "*" and t["purpose"] not in card["purposes"]:
            out.append("purpose")
        if r["cohort"] < card["min_cohort"]:
            out.append("cohort")
    u = s["usage"]
    if u["uses_committed"] + u["uses_reserved"] >= t["uses"]:
        out.append("uses")
    if r["epsilon"] > t["epsilon"] - u["epsilon_committed"] - u["epsilon_reserved"]:
        out.append("epsilon")
    if card and r["epsilon"] > card["epsilon"] - u["budget_spent"]:
        out.append("budget")
    return out


class Draw:
    """Random triples: mostly what fits, with one value or a few beside it, and numbers at their boundaries."""

    def __init__(self, seed, chain, lab):
        self.chance = random.Random(seed)
        self.signers = [Signer.of(identity.card) for identity in (*chain, lab)]
        self.card = dataset_card("bank_a")

    def odd(self, usual, *others, often=0.03):
        return self.chance.choice(others) if self.chance.random() < often else usual

    def near(self, limit, low=0):
        """A number at a limit, or one beside it, or any; mostly not over it."""
        beside = self.odd(self.chance.choice((limit, limit - 1)), limit + 1, often=0.1)
        return max(self.odd(beside, self.chance.randrange(max(limit, 1)), often=0.3), low)

    def triple(self):
        c = self.chance
        *others, owner, lab = self.signers
        approvals = (*c.sample(others, c.randrange(3)), owner)
        self_issued = len(approvals) == 1 and c.random() < 0.5
        standing = len(approvals) == 1 and not self_issued and c.random() < 0.7
        grantee = ANYBODY if standing else self.odd(lab, others[0])
        terms = make_terms(
            "bank_a", grantee, version=self.odd(VERSION, ""), kinds=self.odd(("horizontal", "psi"), ("psi",)),
            algorithms=self.odd(("mlp",), ("*",), ("cnn", "mlp"), often=0.4), model=self.odd("", "ee" * 32),
            job=c.choice(("", JOB)), private_only=c.random() < 0.5, uses=c.choice((1, 2, 3, UNLIMITED)),
            epsilon=c.choice((0, 1, ONE, 3 * ONE, UNLIMITED)), receivers=c.choice((("lab",), ("lab", "eve"), ("eve", "lab"))),
            not_after=c.choice((BEGIN + 1, BEGIN + 2, END)), purpose=self.odd("fraud", "marketing"),
        )  # fmt: skip
        if standing and c.random() < 0.8:
            wide = {"model": "*", "receivers": ("*",), "purpose": "*"}
            names = c.sample(sorted(wide), c.randrange(1, 4))
            terms = dataclasses.replace(terms, **{name: wide[name] for name in names})
        grant = Grant(terms, approvals, self_issued=self_issued)
        budget = c.choice((0, ONE, 5 * ONE, UNLIMITED))
        split = self.near(terms.epsilon)
        before = c.randrange(split + 1)
        epsilon = self.odd(max(terms.epsilon - split, 0), max(terms.epsilon - split, 0) + 1, 0, often=0.2)
        epsilon = min(epsilon, self.odd(ONE, UNLIMITED), UNLIMITED)
        uses = self.near(terms.uses - 1)
        reserved = c.randrange(min(uses, 5) + 1)
        edge = c.choice((terms.not_before, terms.not_before + 1, terms.not_after - 1))
        request = make_request(
            terms, owner=self.odd("bank_a", "bank_b"), dataset=self.odd("credit", "people"), version=self.odd(VERSION, "", "ee" * 32),
            grantee=(self.odd(lab, owner) if standing else self.odd(terms.grantee, owner)).fingerprint, kind=self.odd("horizontal", "psi", "vertical"),
            algorithm=self.odd("mlp", "cnn"), model=self.odd(terms.model.strip("*"), "", "dd" * 32), job=self.odd(JOB, "ee" * 32),
            receivers=self.odd(("lab",), (), ("eve",), ("lab", "eve", "mal"), often=0.2), epsilon=epsilon,
            cohort=self.odd(3, 2, 4), time=self.odd(edge, terms.not_before - 1, terms.not_after, often=0.1),
        )  # fmt: skip
        card = self.odd(
            dataclasses.replace(
                self.card, epsilon=budget, kinds=self.odd(self.card.kinds, ("psi",)), min_cohort=self.odd(3, 4, 2),
                name=self.odd("credit", "people"), owner=self.odd("bank_a", "bank_b"),
            ),
            None,
        )  # fmt: skip
        state = make_state(
            grant, card=card, owner_key=self.odd(owner, others[0]).fingerprint, withdrawn=self.odd(False, True),
            revoked=self.odd(False, True), strict=c.random() < 0.3,
            revoked_keys=self.odd(frozenset(), frozenset({c.choice(self.signers).fingerprint}), often=0.1),
            approvals=self.odd(approvals, approvals[:-1], approvals[::-1], (*approvals, lab), (), tuple(others), often=0.15),
            usage=Usage(uses - reserved, reserved, before, split - before, self.near(max(budget - epsilon, 0))),
        )  # fmt: skip
        return grant, request, state


def test_ten_thousand_random_requests_are_decided_as_by_the_slow_reference(chain, lab):
    draw = Draw(7, chain, lab)
    seen, allowed = collections.Counter(), 0
    for _ in range(10_000):
        grant, request, state = draw.triple()
        reasons = topics(check(grant, request, state))
        plain = dataclasses.asdict(state) | {"approvals": [dataclasses.asdict(who) for who in state.approvals]}
        assert reasons == reference(grant.to_dict(), dataclasses.asdict(request), plain)
        seen.update(reasons)
        allowed += not reasons
    assert 1_000 < allowed < 9_000 and len(seen) == 22 and min(seen.values()) >= 100, (allowed, seen)


def test_each_rule_alone_refuses(chain, lab):
    """Where one reason is given, undoing it would let the job in: no rule hides behind another."""
    draw, alone = Draw(8, chain, lab), collections.Counter()
    for _ in range(5_000):
        reasons = topics(check(*draw.triple()))
        if len(reasons) == 1:
            alone.update(reasons)
    assert len(alone) == 22, alone


# ---- records from outside


def test_grants_survive_the_ledger(grant):
    assert Grant.from_dict(canonical.decode(canonical.encode(grant.to_dict()))) == grant
    request = GrantRequest(grant.terms)
    assert GrantRequest.from_dict(canonical.decode(canonical.encode(request.to_dict()))) == request


def test_grants_of_equal_terms_are_two(grant):
    again = Grant(grant.terms, grant.approvals)
    assert again.id != grant.id and grant.id == dataclasses.replace(grant).id


def test_every_field_is_in_the_id(grant):
    terms = {
        "owner": None, "dataset": "x", "version": "", "grantee": grant.approvals[0], "kinds": ("psi",),
        "algorithms": ("*",), "model": "ee" * 32, "job": JOB, "private_only": False, "uses": 1, "epsilon": 1,
        "receivers": (), "not_before": 1, "not_after": END + 1, "purpose": "x",
    }  # fmt: skip
    assert list(terms) == [field.name for field in dataclasses.fields(Terms)]
    del terms["owner"]  # the last approval says it as well
    changed = [
        dataclasses.replace(grant, terms=dataclasses.replace(grant.terms, **{name: value}))
        for name, value in terms.items()
    ]
    changed += [
        dataclasses.replace(grant, approvals=grant.approvals[-1:]),
        dataclasses.replace(grant, request="ee" * 32),
        dataclasses.replace(grant, nonce="ee" * 16),
        dataclasses.replace(grant, approvals=grant.approvals[-1:], self_issued=True),
    ]
    assert len({one.id for one in (grant, *changed)}) == len(changed) + 1


@pytest.mark.parametrize(
    "change",
    [
        {"surplus": 1}, {"owner": "Bank"}, {"dataset": "a/b"}, {"version": None}, {"version": "AB" * 32}, {"version": []},
        {"grantee": "lab"}, {"grantee": {"name": "lab"}}, {"grantee": {"name": "lab", "fingerprint": "00"}},
        {"kinds": []}, {"kinds": "psi"}, {"kinds": ["psi", "psi"]}, {"kinds": ["*"]}, {"algorithms": []},
        {"algorithms": ["*", "mlp"]}, {"algorithms": [1]}, {"model": 0}, {"job": "x"}, {"private_only": 1},
        {"uses": 0}, {"uses": True}, {"uses": 1.0}, {"uses": "2"}, {"uses": 2**53}, {"epsilon": -1}, {"epsilon": 0.5},
        {"receivers": ["*"]}, {"receivers": ["lab", "lab"]}, {"receivers": None}, {"not_before": -1},
        {"not_before": END}, {"not_after": BEGIN}, {"not_after": "never"}, {"purpose": ""}, {"purpose": "a\tb"},
        {"purpose": ["fraud"]},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_terms_are_refused(grant, change):
    table = grant.to_dict()
    with pytest.raises(BadMessage):
        Grant.from_dict({**table, "terms": {**table["terms"], **change}})


@pytest.mark.parametrize("missing", [*(field.name for field in dataclasses.fields(Terms))])
def test_terms_without_a_field_are_refused(grant, missing):
    table = grant.to_dict()["terms"]
    del table[missing]
    with pytest.raises(BadMessage, match="expected exactly"):
        Terms.from_dict(table)


def test_malformed_grants_are_refused(grant):
    table = grant.to_dict()
    first, _, owner = table["approvals"]
    changes = [
        {"surplus": 1}, {"terms": []}, {"approvals": []}, {"approvals": [first]}, {"approvals": [owner, first]},
        {"approvals": [first, first, owner]}, {"approvals": [{**first, "fingerprint": owner["fingerprint"]}, owner]},
        {"approvals": first}, {"approvals": [[], owner]}, {"nonce": ""}, {"nonce": 1}, {"request": "x"},
        {"self_issued": 1}, {"self_issued": True}, {"id": grant.id},
        {"approvals": [*({"name": f"p{i}", "fingerprint": f"{i:064x}"} for i in range(16)), owner]},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(BadMessage):
            Grant.from_dict({**table, **change})
    for name in table:
        with pytest.raises(BadMessage, match="expected exactly"):
            Grant.from_dict({key: value for key, value in table.items() if key != name})


@pytest.mark.parametrize(
    "change",
    [
        {"owner": ""}, {"dataset": "A"}, {"version": "x"}, {"grantee": ""}, {"kind": "*"}, {"algorithm": ""},
        {"model": None}, {"receivers": ["lab"]}, {"epsilon": -1}, {"epsilon": 1.0}, {"cohort": 0}, {"time": -1},
        {"time": 1.5}, {"job": ""},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_requests_are_refused(grant, change):
    with pytest.raises(BadMessage):
        make_request(grant.terms, **change)


def test_bodies_are_closed(grant, lab):
    bodies = [
        GrantRequest(grant.terms), Approval(grant), Denial("ee" * 32, "too much"), Revocation(grant.id, "a change of mind"),
        Used("commit", grant.id, JOB, shown(1)),
    ]  # fmt: skip
    for body in bodies:
        statement = body.sign(lab, log=LOG, run="r")
        assert read_body(Statement.decode(statement.encode())) == body
        table = body.to_dict()
        for bad in [{**table, "surplus": 1}, {}, *({k: v for k, v in table.items() if k != name} for name in table)]:
            with pytest.raises(BadMessage):
                read_body(Statement.make(lab, log=LOG, kind=body.KIND, run="", body=bad))
        for name in table:
            with pytest.raises(BadMessage):
                read_body(Statement.make(lab, log=LOG, kind=body.KIND, run="", body={**table, name: 17}))
    with pytest.raises(BadMessage, match="not about grants"):
        read_body(Statement.make(lab, log=LOG, kind="update", run="", body={}))


def test_ledger_shows_epsilon_rounded_up_only(grant):
    assert [shown(n) for n in (0, 1, 10_000, 10_001)] == [0, 10_000, 10_000, 20_000]
    with pytest.raises(BadMessage, match="not rounded up"):
        Used("commit", grant.id, JOB, 10_001)


# ---- signatures


def pairs(statements, chain, *others):
    cards = {identity.name: identity.card for identity in (*chain, *others)}
    return [(statement, cards[statement.by]) for statement in statements]


def test_chain_is_approved_as_far_as_it_signed_in_turn(grant, chain):
    signed = pairs(approve(grant, chain), chain)
    for count in range(4):
        assert approved_by(grant, signed[:count]) == grant.approvals[:count]
    assert approved_by(grant, reversed(signed)) == grant.approvals


def test_out_of_turn_approvals_count_for_nothing(grant, chain):
    first, second, owner = chain
    early = [Approval(grant).sign(owner, log=LOG), Approval(grant).sign(second, log=LOG)]
    assert approved_by(grant, pairs(early, chain)) == ()
    one = Approval(grant).sign(first, log=LOG)
    assert approved_by(grant, pairs([one, *early], chain)) == grant.approvals[:1]
    skipping = Approval(grant, one.digest).sign(owner, log=LOG)
    assert approved_by(grant, pairs([one, skipping], chain)) == grant.approvals[:1]


def test_approval_by_another_key_counts_for_nothing(grant, chain, lab):
    first = chain[0]
    false = Identity.create(first.name)
    statement = Approval(grant).sign(false, log=LOG)
    assert approved_by(grant, [(statement, false.card)]) == ()
    assert approved_by(grant, [(statement, first.card)]) == ()
    assert approved_by(grant, pairs([Approval(grant).sign(lab, log=LOG)], chain, lab)) == ()


def test_approval_of_another_grant_is_no_approval_of_this_one(grant, chain):
    wider = dataclasses.replace(grant, terms=dataclasses.replace(grant.terms, uses=100))
    signed = pairs(approve(grant, chain), chain)
    assert approved_by(wider, signed) == ()
    altered = []
    for statement, card in signed:
        body = {**statement.body, "grant": wider.to_dict()}
        altered.append((dataclasses.replace(statement, body=body), card))
        with pytest.raises(BadSignature):
            altered[-1][0].verify(card)
    assert approved_by(wider, altered) == ()
    assert approved_by(grant, [*altered, *signed]) == grant.approvals


def test_second_signature_of_an_approver_does_not_break_the_chain(grant, chain):
    first, second, _ = chain
    a, again = (Approval(grant).sign(first, log=LOG, run=run) for run in ("", "r"))
    b = Approval(grant, again.digest).sign(second, log=LOG)
    assert approved_by(grant, pairs([a, again, b], chain)) == grant.approvals[:2]


def test_anybody_of_the_chain_revokes_and_nobody_else(grant, chain, lab):
    stop = Revocation(grant.id, "a change of mind")
    for signer in chain:
        assert revoked_by(grant, pairs([stop.sign(signer, log=LOG)], chain)) == (Signer.of(signer.card),)
    assert revoked_by(grant, pairs([stop.sign(lab, log=LOG)], chain, lab)) == ()
    false = Identity.create("bank_a")
    assert revoked_by(grant, [(stop.sign(false, log=LOG), false.card)]) == ()
    assert revoked_by(grant, pairs([stop.sign(false, log=LOG)], chain)) == ()
    other = Revocation("ee" * 32, "another grant").sign(chain[0], log=LOG)
    assert revoked_by(grant, pairs([other], chain)) == ()
    assert revoked_by(grant, pairs([Denial(grant.id, "no").sign(chain[0], log=LOG)], chain)) == ()


# ---- standing grants


WIDE = {"model": "*", "receivers": ("*",), "purpose": "*"}


@pytest.fixture
def standing(grant):
    terms = dataclasses.replace(grant.terms, grantee=ANYBODY, **WIDE)
    return Grant(terms, grant.approvals[-1:])


def test_a_standing_grant_covers_whoever_comes_and_whoever_receives(standing):
    for changes in ({}, {"grantee": "ee" * 32}, {"receivers": ("eve", "lab")}, {"model": "dd" * 32}):
        assert verdict(standing, request=changes) == []
    assert verdict(standing, request={"kind": "psi"}) == ["kind"]
    assert verdict(standing, request={"grantee": "ee" * 32}, state={"revoked_keys": frozenset({"ee" * 32})}) == ["keys"]
    assert verdict(standing, state={"owner_key": "ee" * 32}) == ["owner"]


@pytest.mark.parametrize("change", [{name: value} for name, value in WIDE.items()], ids=str)
def test_only_a_standing_grant_is_for_everything(grant, change):
    with pytest.raises(BadMessage):
        dataclasses.replace(grant.terms, **change)


def test_a_standing_grant_is_its_owners_own_decision(grant, standing, lab):
    for changes in (
        {"approvals": grant.approvals}, {"self_issued": True}, {"request": "ee" * 32}, {"approvals": (ANYBODY,)},
    ):  # fmt: skip
        with pytest.raises(BadMessage):
            dataclasses.replace(standing, **changes)
    assert Grant.from_dict(canonical.decode(canonical.encode(standing.to_dict()))) == standing
    for half in (("*", "ee" * 32), ("lab", "*")):
        with pytest.raises(BadMessage):
            Signer(*half)


def test_nobody_asks_for_a_standing_grant(standing, lab):
    """Nobody has its grantee's key, so a request for one has no signer who may make it."""
    statement = GrantRequest(standing.terms).sign(lab, log=LOG)
    assert Signer.of(lab.card) != GrantRequest.from_dict(statement.body).terms.grantee
