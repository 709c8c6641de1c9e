"""The owner's store of uses: whoever races, crashes, comes back or turns a clock, nothing is doubled and nothing lost."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import time

import pytest

from fl_core.errors import BadMessage, BadSignature, BudgetExceeded, FedsealError, RefusedError
from fl_core.trust import grant_store
from fl_core.trust.catalog import UNLIMITED
from fl_core.trust.grant_statements import Approval, Denial, GrantRequest, Revocation, Used
from fl_core.trust.grant_store import GrantStore, Waiting
from fl_core.trust.grants import Grant, Signer, Usage, check
from fl_core.trust.identity import Identity
from tests.fl_core.trust.consent import (
    BEGIN,
    END,
    LOG,
    ONE,
    approve,
    dataset_card,
    make_request,
    make_state,
    make_terms,
)

KILLS = 30


@pytest.fixture
def store(tmp_path):
    return GrantStore(tmp_path / "home" / "grants.db")


@pytest.fixture
def owner(parties):
    return parties["bank_a"]


@pytest.fixture(scope="session")
def lab():
    return Identity.create("lab")


@pytest.fixture
def new_grant(owner, lab):
    def make(*chain, **changes):
        signers = tuple(Signer.of(who.card) for who in (*chain, owner))
        return Grant(make_terms("bank_a", Signer.of(lab.card), **changes), signers)

    return make


@pytest.fixture
def grant(new_grant):
    return new_grant()


def reserve(store, grant, run, *, state=None, **request):
    return store.reserve(grant, make_request(grant.terms, **request), run, make_state(grant, **(state or {})))


def keep_all(store, statements, *identities):
    cards = {identity.name: identity.card for identity in identities}
    return [store.keep(statement, cards[statement.by], log=LOG) for statement in statements]


# ---- two phases


def test_uses_and_epsilon_add_up_until_they_are_gone(store, grant):
    assert reserve(store, grant, "a").new
    assert store.account(grant).usage == Usage(0, 1, 0, ONE, ONE)
    assert store.commit("a", ONE // 2)
    account = store.account(grant)
    assert account.usage == Usage(1, 0, ONE // 2, 0, ONE // 2)
    assert (account.uses_left, account.epsilon_left) == (1, 5 * ONE // 2)
    reserve(store, grant, "b", epsilon=5 * ONE // 2)
    with pytest.raises(RefusedError, match=r"^uses: 1 used and 1 under way; allowed: 2; epsilon: with this job 4; "):
        reserve(store, grant, "c")
    assert store.open_runs() == ("b",) and [use.run for use in store.uses()] == ["a", "b"]


def test_short_epsilon_alone_is_the_budgets_refusal(store, new_grant):
    grant = new_grant(uses=10)
    reserve(store, grant, "a", epsilon=2 * ONE)
    with pytest.raises(BudgetExceeded, match=r"^epsilon: with this job 3\.000001; the grant allows 3$"):
        reserve(store, grant, "b", epsilon=ONE + 1)
    assert store.use("b") is None
    reserve(store, grant, "b", epsilon=ONE)


def test_budget_belongs_to_the_name_through_all_versions_and_grants(store, new_grant):
    many = {"uses": 10, "epsilon": 10 * ONE, "version": ""}
    first, second, other = new_grant(**many), new_grant(**many), new_grant(**many, dataset="people")
    reserve(store, first, "a", epsilon=3 * ONE)
    store.commit("a", 3 * ONE)
    new_version = {"card": dataset_card("bank_a", version="ef" * 32, published=200)}
    with pytest.raises(BudgetExceeded, match=r"^budget: with this job 5\.000001 of bank_a/credit; its owner allows 5$"):
        reserve(store, second, "b", epsilon=2 * ONE + 1, version="ef" * 32, state=new_version)
    reserve(store, second, "b", epsilon=2 * ONE, version="ef" * 32, state=new_version)
    reserve(store, other, "c", epsilon=5 * ONE, state={"card": dataset_card("bank_a", name="people")})
    assert store.spent("bank_a", "credit") == (3 * ONE, 2 * ONE) and store.spent("bank_a", "people") == (0, 5 * ONE)


def test_no_limit_stays_within_what_numbers_can_hold(store, new_grant):
    grant = new_grant(uses=UNLIMITED, epsilon=UNLIMITED)
    card = {"card": dataset_card("bank_a", epsilon=UNLIMITED)}
    reserve(store, grant, "a", epsilon=UNLIMITED, state=card)
    with pytest.raises(BudgetExceeded):
        reserve(store, grant, "b", epsilon=1, state=card)


def test_resumed_run_neither_loses_nor_doubles(store, new_grant):
    grant = new_grant(uses=1, epsilon=ONE)
    first = reserve(store, grant, "a")
    for later in (BEGIN + 1, END - 1):
        again = reserve(GrantStore(store.path), grant, "a", time=later)
        assert not again.new and again.use == first.use
    assert store.account(grant).usage == Usage(0, 1, 0, ONE, ONE)


def test_resumed_run_is_stopped_by_a_grant_that_has_ended(store, grant, owner):
    reserve(store, grant, "a")
    with pytest.raises(RefusedError, match=f"^time: {END}; the grant ended at {END}$"):
        reserve(store, grant, "a", time=END)
    store.set_clock(BEGIN)
    reserve(store, grant, "a")
    keep_all(store, [Revocation(grant.id, "a change of mind").sign(owner, log=LOG)], owner)
    with pytest.raises(RefusedError, match=r"^revoked"):
        reserve(store, grant, "a")
    assert store.use("a").state == "reserved"


def test_run_cannot_change_what_it_asked_for(store, new_grant):
    grant = new_grant(uses=9)
    reserve(store, grant, "a")
    for change in ({"job": "ee" * 32}, {"epsilon": 1}, {"receivers": ()}, {"cohort": 4}):
        with pytest.raises(RefusedError, match=r"^run: a holds a use for another grant or request$"):
            reserve(store, grant, "a", **change)
    with pytest.raises(RefusedError, match="another grant"):
        reserve(store, new_grant(uses=9), "a")


def test_replayed_run_gets_no_second_look_at_the_data(store, grant):
    reserve(store, grant, "a")
    store.commit("a", ONE)
    with pytest.raises(RefusedError, match=r"^run: a has had its use; allowed: a new run$"):
        reserve(store, grant, "a")
    assert store.account(grant).usage == Usage(1, 0, ONE, 0, ONE)


def test_repeated_commit_counts_once_and_another_epsilon_is_refused(store, grant):
    reserve(store, grant, "a")
    with pytest.raises(BudgetExceeded, match="1000001 millionths of ε; reserved are 1000000"):
        store.commit("a", ONE + 1)
    assert store.use("a").state == "reserved"
    assert store.commit("a", 5) is True and store.commit("a", 5) is False
    with pytest.raises(RefusedError, match="committed with 5 millionths of ε before, not 6"):
        store.commit("a", 6)
    assert store.release("a") is False and store.use("a").spent == 5


@pytest.mark.parametrize("epsilon", [-1, 0.5, True, "1", 2**53])
def test_commit_of_no_number_is_refused(store, grant, epsilon):
    reserve(store, grant, "a")
    with pytest.raises(BadMessage):
        store.commit("a", epsilon)


def test_nothing_is_committed_without_a_reservation(store, grant):
    for _ in range(2):
        with pytest.raises(RefusedError, match="run a: no use is reserved"):
            store.commit("a", 0)
        reserve(store, grant, "a")
        assert store.release("a") and not store.release("a")


def test_released_use_is_free_for_the_same_run_and_others(store, new_grant):
    grant = new_grant(uses=1)
    reserve(store, grant, "a")
    assert store.release("a") and store.account(grant).usage == Usage()
    reserve(store, grant, "b", epsilon=3 * ONE)
    with pytest.raises(RefusedError, match=r"^uses: 0 used and 1 under way"):
        reserve(store, grant, "a")
    store.release("b")
    assert reserve(store, grant, "a", job="ee" * 32).new
    assert store.account(grant).usage == Usage(0, 1, 0, ONE, ONE)


@pytest.mark.parametrize("run", ["", "a b", "x" * 129, "é", "a\n"])
def test_malformed_runs_are_refused(store, grant, run):
    with pytest.raises(BadMessage, match="run id"):
        reserve(store, grant, run)


# ---- the clock


def test_grant_ends_at_its_edge(store, new_grant):
    grant = new_grant(uses=9)
    with pytest.raises(RefusedError, match=r"^time"):
        reserve(store, grant, "a", time=BEGIN - 1)
    reserve(store, grant, "a", time=BEGIN)
    reserve(store, grant, "b", time=END - 1, epsilon=1)
    with pytest.raises(RefusedError, match=r"^time"):
        reserve(store, grant, "c", time=END)


def test_clock_set_back_makes_no_grant_young_again_and_is_said(store, new_grant):
    grant = new_grant(uses=9)
    with pytest.raises(RefusedError):
        reserve(store, grant, "a", time=END)  # refused, and yet the time was seen
    with pytest.raises(RefusedError, match=f"^time: {END}; .*; this machine's clock is 7 ms behind the latest time"):
        reserve(GrantStore(store.path), grant, "a", time=END - 7)
    assert store.latest() == END
    store.set_clock(BEGIN + 5)
    held = reserve(store, grant, "a", time=BEGIN)
    assert held.warning.startswith("this machine's clock is 5 ms behind") and held.use.time == BEGIN + 5
    assert reserve(store, grant, "b", time=BEGIN + 5).warning == ""


# ---- statements


def test_store_itself_knows_who_has_signed(store, new_grant, parties, owner):
    first = parties["bank_b"]
    grant = new_grant(first)
    signed = approve(grant, [first, owner])
    nobody = {"approvals": ()}
    assert keep_all(store, signed[:1], first) == [True]
    with pytest.raises(RefusedError, match=r"^approvals: not signed in turn by bank_a$"):
        reserve(store, grant, "a", state=nobody)
    assert keep_all(store, [signed[0], signed[1], signed[1]], first, owner) == [False, True, False]
    assert reserve(store, grant, "a", state=nobody).new
    assert store.account(grant).approvals == grant.approvals and store.statements(grant.id) == tuple(signed)


def test_revocation_holds_even_if_it_came_first_and_is_hidden_later(store, grant, owner, parties):
    stranger = parties["bank_c"]
    stop = Revocation(grant.id, "a change of mind")
    keep_all(store, [stop.sign(stranger, log=LOG)], stranger)
    reserve(store, grant, "a")
    keep_all(store, [stop.sign(owner, log=LOG)], owner)
    with pytest.raises(RefusedError, match=r"^revoked: the grant was revoked$"):
        reserve(store, grant, "b", state={"revoked": False})
    assert store.account(grant).revoked == grant.approvals
    assert store.commit("a", 1)  # what was used stays used


def test_statements_that_are_not_theirs_are_not_kept(store, grant, owner, lab, parties):
    stranger = parties["bank_c"]
    request = GrantRequest(grant.terms)
    bad = [
        (request.sign(stranger, log=LOG), stranger, BadMessage, "grant-request by bank_c under a key that has no say"),
        (Approval(grant).sign(stranger, log=LOG), stranger, BadMessage, "no say; allowed: bank_a"),
        (Approval(grant).sign(owner, log="fedseal/" + "f" * 16), owner, BadMessage, "a statement for fedseal/f"),
        (Approval(grant).sign(owner, log=LOG), stranger, BadSignature, "checked against the card of bank_c"),
        (Used("commit", grant.id, "ee" * 32, 0).sign(owner, log=LOG), owner, BadMessage, "writes itself"),
        (dataset_card("bank_a").sign(owner, log=LOG), owner, BadMessage, "not about grants"),
    ]
    wider = dataclasses.replace(grant, terms=dataclasses.replace(grant.terms, uses=99))
    altered = dataclasses.replace(Approval(grant).sign(owner, log=LOG), body=Approval(wider).to_dict())
    bad.append((altered, owner, BadSignature, "not signed with its key"))
    false = Identity.create("bank_a")
    bad.append((Approval(grant).sign(false, log=LOG), false, BadMessage, "no say"))
    for statement, signer, error, words in bad:
        with pytest.raises(error, match=words):
            store.keep(statement, signer.card, log=LOG)
    assert store.accounts() == () and store.waiting() == () and store.statements(grant.id) == ()


def test_requests_wait_until_the_owner_answers(store, new_grant, owner, lab, parties):
    asked = [GrantRequest(new_grant().terms) for _ in range(3)]
    statements = [request.sign(lab, log=LOG) for request in asked]
    keep_all(store, [*statements, statements[0]], lab)
    waiting = [Waiting(s.digest, r) for s, r in zip(statements, asked, strict=True)]
    assert list(store.waiting()) == waiting
    stranger = parties["bank_b"]
    keep_all(store, [Denial(statements[0].digest, "not yours to say").sign(stranger, log=LOG)], stranger)
    halfway = dataclasses.replace(new_grant(stranger), request=statements[1].digest)
    first, second = approve(halfway, [stranger, owner])
    keep_all(store, [first], stranger)
    assert list(store.waiting()) == waiting
    keep_all(store, [Denial(statements[0].digest, "too much").sign(owner, log=LOG), second], owner)
    assert list(store.waiting()) == waiting[2:]


def test_owners_page_lists_every_grant_and_use(store, new_grant, owner):
    kept, used = new_grant(), new_grant()
    keep_all(store, approve(kept, [owner]), owner)
    reserve(store, used, "a")
    store.commit("a", 7)
    first, second = store.accounts()
    assert (first.grant, first.approvals, first.uses, first.uses_left) == (kept, kept.approvals, (), 2)
    assert (second.grant, second.approvals, second.epsilon_left) == (used, (), 3 * ONE - 7)
    (use,) = second.uses
    assert dataclasses.asdict(use) == {
        "run": "a", "grant": used.id, "dataset": "bank_a/credit", "job": "cd" * 32, "asked": ONE, "spent": 7,
        "state": "committed", "time": BEGIN,
    }  # fmt: skip


# ---- against a dictionary


def test_random_runs_against_plain_bookkeeping(store, new_grant):
    """600 acts of 12 runs on two grants of one dataset, against a dictionary that is summed each time."""
    chance, books = random.Random(5), {}
    grants = [new_grant(uses=3, epsilon=30), new_grant(uses=UNLIMITED, epsilon=UNLIMITED)]
    state = {"card": dataset_card("bank_a", epsilon=60)}
    outcomes = set()
    for _ in range(600):
        run = f"run-{chance.randrange(12)}"
        held = books.get(run, {"state": "none"})
        act = chance.choice(("reserve", "reserve", "commit", "release"))
        if act == "reserve":
            number, epsilon = chance.randrange(2), chance.choice((10, 15))
            counted = [b for r, b in books.items() if r != run and b["state"] in ("reserved", "committed")]
            mine = [b for b in counted if b["grant"] == number]
            amount = lambda rows: sum(b["spent"] if b["state"] == "committed" else b["asked"] for b in rows)  # noqa: E731
            fits = (number == 1 or (len(mine) < 3 and amount(mine) + epsilon <= 30)) and amount(counted) + epsilon <= 60
            same = held["state"] != "reserved" or (held["grant"], held["asked"]) == (number, epsilon)
            expected = fits and same and held["state"] != "committed"
            done = lambda: reserve(store, grants[number], run, epsilon=epsilon, state=state)  # noqa: E731
            after = {"state": "reserved", "grant": number, "asked": epsilon}
        elif act == "commit":
            spent = chance.choice((0, 10, 11))
            again = held["state"] == "committed" and held["spent"] == spent
            expected = again or (held["state"] == "reserved" and spent <= held["asked"])
            done = lambda: store.commit(run, spent)  # noqa: E731
            after = {**held, "state": "committed", "spent": spent}
        else:
            expected = held["state"] == "reserved"
            done = lambda: store.release(run)  # noqa: E731
            after = {**held, "state": "released"}
        try:
            result = done()
            allowed = result is not False or act == "commit"
        except RefusedError:
            allowed = False
        assert allowed == expected, (act, run, held)
        outcomes.add((act, held["state"], allowed))
        if expected:
            books[run] = after
        if chance.random() < 0.05:  # the owner's house is cleared now and then: else all is soon spent
            store.path.unlink()
            books = {}
            store = GrantStore(store.path)
    assert len(outcomes) >= 12, outcomes


# ---- several processes


def _racer(path, grant, state, epsilon, number, barrier, results):
    def slow(*args):  # leaves the others time to come in between, if anything lets them
        time.sleep(0.02)
        reasons = check(*args)
        time.sleep(0.02)
        return reasons

    grant_store.check = slow  # in this process only
    barrier.wait()
    try:
        request = make_request(grant.terms, epsilon=epsilon)
        GrantStore(path).reserve(grant, request, f"run-{number}", state)
        results.put("")
    except RefusedError as error:
        results.put(str(error))


def race(path, grants, *, epsilon, state=None):
    """One process a grant, started together; returns what each was told."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(len(grants)), context.Queue()
    workers = [
        context.Process(
            target=_racer, args=(path, grant, make_state(grant, **(state or {})), epsilon, number, barrier, results)
        )
        for number, grant in enumerate(grants)
    ]
    for worker in workers:
        worker.start()
    told = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    return told


@pytest.mark.parametrize(
    ("terms", "card", "topic"),
    [
        ({"uses": 1, "epsilon": UNLIMITED}, {}, "uses"),
        ({"uses": 9, "epsilon": ONE}, {}, "epsilon"),
        ({"uses": 9, "epsilon": 9 * ONE}, {"epsilon": ONE}, "budget"),
    ],
)
def test_of_two_jobs_racing_for_the_last_of_it_exactly_one_gets_it(tmp_path, new_grant, terms, card, topic):
    for number in range(4):
        first = new_grant(**terms)
        second = new_grant(**terms) if topic == "budget" else first  # two grants on one dataset
        path = tmp_path / f"{number}.db"  # made by whoever comes first
        state = {"card": dataset_card("bank_a", **card)}
        won, lost = sorted(race(path, [first, second], epsilon=ONE, state=state))
        assert won == "" and lost.startswith(topic)
        assert len(GrantStore(path).uses()) == 1


def test_eight_jobs_racing_for_three_uses(tmp_path, new_grant):
    grant = new_grant(uses=3)
    told = race(tmp_path / "grants.db", [grant] * 8, epsilon=1)
    assert told.count("") == 3 and GrantStore(tmp_path / "grants.db").account(grant).usage == Usage(0, 3, 0, 3, 3)


# ---- kill -9


def _work_until_killed(path, grant, state, life, pipe):
    """Reserve and commit for ever, saying each as soon as it is done."""
    store = GrantStore(path)
    for number in range(1_000_000):
        run = f"{life}-{number}"
        store.reserve(grant, make_request(grant.terms, epsilon=10), run, state)
        os.write(pipe, f"reserved {run}\n".encode())
        store.commit(run, number % 10)
        os.write(pipe, f"committed {run}\n".encode())


def _live_and_die(delay, *args):
    """Fork a worker, kill it `delay` seconds after its first word; return everything it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _work_until_killed(*args, writing)
        finally:
            os._exit(1)
    os.close(writing)
    text = os.read(reading, 1 << 16)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as rest:
        text += rest.read()
    return [tuple(line.split()) for line in text.decode().splitlines()]


def test_killed_at_any_moment_nothing_is_lost_or_doubled(tmp_path, new_grant):
    path, chance = tmp_path / "grants.db", random.Random(3)
    grant = new_grant(uses=UNLIMITED, epsilon=UNLIMITED)
    state = make_state(grant, card=dataset_card("bank_a", epsilon=UNLIMITED))
    store = GrantStore(path)
    expected, ends = {}, set()
    for life in range(KILLS):
        said = _live_and_die(chance.uniform(0, 0.02), path, grant, state, life)
        assert said, "the worker died by itself"
        uses = {use.run: use for use in store.uses()}
        for word, run in said:
            assert uses[run].state == word or (word == "reserved" and uses[run].state == "committed")
        mine = [use for run, use in uses.items() if run.startswith(f"{life}-")]
        assert len(mine) - sum(word == "reserved" for word, _ in said) in (0, 1)
        assert sum(use.state == "reserved" for use in mine) in (0, 1)
        ends.add((said[-1][0], mine[-1].state, len(mine) - sum(word == "reserved" for word, _ in said)))
        for use in mine:  # the worker comes back to what it was at
            spent = int(use.run.partition("-")[2]) % 10
            if use.state == "reserved":
                assert not store.reserve(grant, make_request(grant.terms, epsilon=10), use.run, state).new
                assert store.commit(use.run, spent)
            else:
                assert use.spent == spent and not store.commit(use.run, spent)
            expected[use.run] = spent
        total = sum(expected.values())
        assert store.account(grant).usage == Usage(len(expected), 0, total, 0, total)
    assert len(ends) >= 3, "the kills came at one point only"


# ---- the file


def test_file_is_the_owners_alone(store):
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert store.path.parent.stat().st_mode & 0o777 == 0o700


def test_damaged_or_foreign_file_is_one_clear_line(tmp_path, grant):
    path = tmp_path / "grants.db"
    path.write_bytes(b"not a database, and long enough to be taken for one" * 40)
    with pytest.raises(FedsealError, match=r"grants\.db: not a file of grants") as caught:
        reserve(GrantStore(path), grant, "a")
    assert "\n" not in str(caught.value)
