"""The witness: forks, rollbacks, missing statements, stale proofs, and its own crashes and races."""

from __future__ import annotations

import multiprocessing
import stat

import pytest

from fl_core.errors import BadMessage, BadSignature, ForkDetected, IntegrityError, LedgerBroken
from fl_core.trust.checkpoint import Checkpoint, log_id, sign_checkpoint, verify_cosignature
from fl_core.trust.identity import Identity
from fl_core.trust.witness import OwnLeaf, StaleProof, Witness

FORK = multiprocessing.get_context("fork")


class Party:
    """A party's witness, and the coordinator's answers to it."""

    def __init__(self, scenario, path, name="bank_a"):
        self.scenario, self.ledger = scenario, scenario.ledger
        self.witness = Witness(path, scenario.parties[name])
        self.name, self.seen = name, 0

    def speak(self, run="run-1", **body):
        """Make and remember a statement; return it."""
        statement = self.scenario.say(self.name, "update", body, run)
        self.witness.remember_statement(run, statement)
        return statement

    def leaf(self, seq, size):
        (entry,) = self.ledger.entries(seq, seq + 1)
        return OwnLeaf(entry.encode(), seq, tuple(self.ledger.inclusion(seq, size)))

    def look(self, note=None, **change):
        """Observe the ledger's head with an honest proof from the size seen before."""
        note = note or self.ledger.checkpoint()
        size = int(note.split("\n")[1])
        given = {"mine": None, "start": self.seen, **change}
        if "proof" not in given:
            given["proof"] = self.ledger.consistency(self.seen, size) if self.seen else []
        line = self.witness.observe(note, self.scenario.coordinator.card, given.pop("proof"), **given)
        self.seen = size
        return line


@pytest.fixture
def party(scenario, tmp_path):
    return Party(scenario, tmp_path / "witness")


def grow(scenario, entries=1):
    scenario.ledger.append([scenario.say("coordinator", "round", {"n": n}) for n in range(entries)])


@pytest.fixture
def fork(make_scenario, tmp_path):
    """The same coordinator's other history."""
    other = make_scenario(tmp_path / "fork.db")
    other.ledger.append([other.say("coordinator", "round", {"forged": True})])
    other.show_cards()
    return other


def test_every_growth_is_cosigned(party, scenario):
    for entries in (0, 1, 1, 2, 3, 8, 0):
        grow(scenario, entries)
        note = scenario.ledger.checkpoint()
        line = party.look()
        assert verify_cosignature(note, line, scenario.parties["bank_a"].card) > 1_600_000_000
        assert party.witness.last(scenario.ledger.log) == note


@pytest.mark.parametrize("explicit", [True, False])
def test_fork_is_detected_at_every_size(party, scenario, fork, tmp_path, explicit):
    for _ in range(8):
        seen = party.look()
        assert seen
        grow(fork)
        size = fork.ledger.size
        if size >= party.seen:
            proof = fork.ledger.consistency(party.seen, size)
            start = party.seen if explicit else None
            refusal = ForkDetected if explicit else IntegrityError
            with pytest.raises(refusal):
                party.look(fork.ledger.checkpoint(), proof=proof, start=start)
        grow(scenario)
    assert party.look()  # none of the forks was taken over


def test_unmarked_proof_that_shows_the_fork_is_no_stale_proof(party, scenario, fork):
    grow(scenario, 1)  # size 5, no power of two
    party.look()
    grow(fork, 3)
    with pytest.raises(ForkDetected):
        party.look(fork.ledger.checkpoint(), proof=fork.ledger.consistency(5, fork.ledger.size), start=None)


def test_two_heads_of_one_size_are_a_fork(party, scenario, fork):
    grow(scenario)
    party.look()
    assert fork.ledger.size == scenario.ledger.size
    for start in (None, party.seen):
        with pytest.raises(ForkDetected):
            party.look(fork.ledger.checkpoint(), proof=[], start=start)


def test_rollback_is_never_cosigned(party, scenario):
    old_note, old_size = scenario.ledger.checkpoint(), scenario.ledger.size
    grow(scenario, 5)
    party.look()
    remembered = party.witness.last(scenario.ledger.log)
    with pytest.raises(ForkDetected, match="shrank from size 9 to 4"):
        party.look(old_note, proof=[], start=party.seen)
    for proof, start in [(scenario.ledger.consistency(old_size, 9), old_size), ([], None)]:
        with pytest.raises(StaleProof) as caught:  # an older head that is a prefix: late, not false
            party.look(old_note, proof=proof, start=start)
        assert caught.value.size == 9
    assert party.witness.last(scenario.ledger.log) == remembered


def test_smaller_head_that_is_no_prefix_is_a_fork(party, scenario, fork):
    fork_size = fork.ledger.size
    grow(scenario, 5)
    party.look()
    with pytest.raises(ForkDetected):
        party.look(fork.ledger.checkpoint(), proof=scenario.ledger.consistency(fork_size, 9), start=fork_size)


def test_stale_proof_names_the_size_to_ask_for(party, scenario):
    party.look()
    first = party.seen
    grow(scenario, 3)
    party.look()
    grow(scenario, 3)
    with pytest.raises(StaleProof) as caught:
        party.look(proof=scenario.ledger.consistency(first, scenario.ledger.size), start=first)
    assert caught.value.size == party.seen
    with pytest.raises(StaleProof) as caught:
        party.look(proof=scenario.ledger.consistency(first, scenario.ledger.size), start=None)
    assert caught.value.size == party.seen and issubclass(StaleProof, IntegrityError)
    assert party.look()


def test_first_sight_needs_no_proof_and_a_proof_tells_of_lost_memory(party, scenario):
    grow(scenario, 3)
    with pytest.raises(StaleProof) as caught:
        party.look(proof=scenario.ledger.consistency(4, 7), start=4)
    assert caught.value.size == 0
    assert party.look(start=None)


def test_empty_checkpoint_is_refused(party, scenario):
    origin = log_id(scenario.coordinator.card)
    note = sign_checkpoint(scenario.coordinator, Checkpoint(origin, 0, bytes(32)))
    with pytest.raises(LedgerBroken, match="no entries"):
        party.look(note, proof=[], start=0)


def test_missing_own_statement_is_noticed(party, scenario):
    party.speak(round=1)
    grow(scenario)
    with pytest.raises(LedgerBroken, match="not shown"):
        party.look(run="run-1")
    assert party.look(run="run-2")  # another run needs no proof of this one


def test_own_statement_must_be_the_last_one_unaltered_and_in_place(party, scenario):
    first, second = party.speak(round=1), party.speak(round=2)
    ledger = scenario.ledger
    (entry_1, entry_2), _ = ledger.commit([first, second])
    size = ledger.size
    mine = party.leaf(entry_2.seq, size)
    other = ledger.append([scenario.say("bank_b", "update", {"round": 2})])[0]
    size = ledger.size
    mine = party.leaf(entry_2.seq, size)
    wrong = {
        "an older statement": party.leaf(entry_1.seq, size),
        "another party's": party.leaf(other.seq, size),
        "another place": OwnLeaf(mine.entry, mine.seq + 1, mine.proof),
        "another time": OwnLeaf(mine.entry.replace(b'"t":1', b'"t":2'), mine.seq, mine.proof),
        "no proof": OwnLeaf(mine.entry, mine.seq, ()),
        "a proof of another entry": OwnLeaf(mine.entry, mine.seq, party.leaf(other.seq, size).proof),
    }
    for what, leaf in wrong.items():
        with pytest.raises(LedgerBroken):
            party.look(mine=leaf, run="run-1")
        assert party.witness.last(ledger.log) is None, what
    with pytest.raises(BadMessage):
        party.look(mine=OwnLeaf(mine.entry + b" ", mine.seq, mine.proof))
    with pytest.raises(LedgerBroken, match="run-1"):
        party.look(mine=mine, run="run-2")
    assert party.look(mine=mine, run="run-1")


def test_statement_that_was_never_made_is_refused(party, scenario):
    (entry,) = scenario.ledger.append([scenario.say("bank_a", "update", {"round": 9}, "run-9")])
    with pytest.raises(LedgerBroken, match="not my last statement"):
        party.look(mine=party.leaf(entry.seq, scenario.ledger.size))


def test_own_statement_not_yet_under_the_checkpoint_is_refused(party, scenario):
    note, size = scenario.ledger.checkpoint(), scenario.ledger.size
    (entry,) = scenario.ledger.append([party.speak(round=1)])
    leaf = OwnLeaf(entry.encode(), entry.seq, tuple(scenario.ledger.inclusion(size - 1, size)))
    with pytest.raises(LedgerBroken):
        party.look(note, mine=leaf, run="run-1")


def test_note_of_another_coordinator_is_refused(party, scenario):
    grow(scenario)
    stranger = Identity.create("coordinator")
    with pytest.raises(BadMessage):
        party.witness.observe(scenario.ledger.checkpoint(), stranger.card, [], mine=None)
    unsigned = scenario.ledger.checkpoint().replace("\n\n", "\n\n— x AAAAAAAA\n", 1).rsplit("\n— fedseal", 1)[0] + "\n"
    with pytest.raises(BadSignature):
        party.witness.observe(unsigned, scenario.coordinator.card, [], mine=None)


def test_memory_survives_the_process_and_is_private(party, scenario, tmp_path):
    statement = party.speak(round=1)
    grow(scenario)
    party.look()
    again = Party(scenario, tmp_path / "witness")
    grow(scenario)
    with pytest.raises(StaleProof) as caught:
        again.look()
    assert caught.value.size == party.seen
    again.seen = caught.value.size
    with pytest.raises(LedgerBroken, match="not shown"):
        again.look(run="run-1")
    (entry,) = scenario.ledger.append([statement])
    assert again.look(mine=again.leaf(entry.seq, scenario.ledger.size), run="run-1")
    assert stat.S_IMODE((tmp_path / "witness").stat().st_mode) == 0o600


def test_no_cosignature_leaves_before_the_memory_is_on_the_disk(party, scenario, monkeypatch):
    from fl_core.trust import witness as module

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "cosign", killed)
    with pytest.raises(KeyboardInterrupt):
        party.look()
    monkeypatch.undo()
    party.seen = scenario.ledger.size
    grow(scenario)
    assert party.look()  # it had moved before it would have signed


def _race(witness, note, card, proof, results):
    try:
        results.put(witness.observe(note, card, proof, mine=None, start=4))
    except (StaleProof, ForkDetected) as error:
        results.put(type(error).__name__)


def test_of_two_racing_forks_a_party_signs_one(party, scenario, make_scenario, tmp_path):
    import shutil

    party.look()
    scenario.ledger.close()
    shutil.copy(scenario.path, tmp_path / "fork.db")
    sides = [make_scenario(scenario.path), make_scenario(tmp_path / "fork.db")]
    offers = []
    for side in sides:
        side.ledger.append([side.say("coordinator", "round", {"side": str(side.path)})])
        offers.append((side.ledger.checkpoint(), side.coordinator.card, side.ledger.consistency(4, 5)))
    results = FORK.Queue()
    children = [FORK.Process(target=_race, args=(party.witness, *offer, results)) for offer in offers * 3]
    for child in children:
        child.start()
    outcomes = [results.get(timeout=30) for _ in children]
    for child in children:
        child.join()
    signed = [line for line in outcomes if line.startswith("—")]
    assert len(signed) == 1 and set(outcomes) - set(signed) == {"StaleProof"}
