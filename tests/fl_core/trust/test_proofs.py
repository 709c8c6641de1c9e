"""Proof documents verify offline, and every altered one is refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fl_core.errors import UsageError
from fl_core.trust import canonical
from fl_core.trust.proofs import consistency_proof_document, inclusion_proof_document
from fl_core.trust.verify import verify_consistency_proof, verify_inclusion_proof

ROOT = Path(__file__).parents[3]


def leaves(value, path=()):
    """Yield the path of every string and integer in a document."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*path, key))
    else:
        yield path


def altered(document, path, value):
    changed = copy.deepcopy(document)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def at(document, path):
    for key in path:
        document = document[key]
    return document


def wrong_values(value):
    yield from (None, 1.5, [], {}, True, "", "x", -1, 10**9)
    if isinstance(value, str):
        yield from (value[:-1], value + "0", value.upper() if value != value.upper() else value.lower())
        for place in {0, len(value) // 2, len(value) - 1} if value else ():
            yield value[:place] + chr(ord(value[place]) ^ 1) + value[place + 1 :]
    else:
        yield value + 1


def assert_every_change_is_refused(document, verify):
    assert verify(document).status == 0
    canonical.encode(document)
    for path in list(leaves(document)):
        value = at(document, path)
        for wrong in wrong_values(value):
            if wrong != value or type(wrong) is not type(value):
                assert verify(altered(document, path, wrong)).status == 1, (path, wrong)
    for key in document:
        assert verify({name: value for name, value in document.items() if name != key}).status == 1
        assert verify({**document, "surplus": 1}).status == 1
        for wrong in (None, 1, "x", [], {}, [1], [["x"]]):
            if wrong == document[key]:
                continue
            assert verify({**document, key: wrong}).status == 1, (key, wrong)
    for hostile in (None, 1, [], "x", {}):
        assert verify(hostile).status == 1


def test_every_entry_has_a_proof_that_verifies_offline(scenario):
    scenario.run()
    for seq in range(scenario.ledger.size):
        document = json.loads(json.dumps(inclusion_proof_document(scenario.ledger, seq)))
        report = verify_inclusion_proof(document, coordinator_key_hex=scenario.coordinator.card.ed25519)
        assert (report.status, report.size, report.root) == (0, 12, scenario.ledger.root.hex())


def test_every_pair_of_checkpoints_has_a_proof_that_verifies_offline(scenario):
    scenario.run()
    sizes = scenario.ledger.checkpoint_sizes()
    for new in sizes:
        for old in (size for size in sizes if size <= new):
            document = json.loads(json.dumps(consistency_proof_document(scenario.ledger, old, new)))
            assert verify_consistency_proof(document).status == 0


@pytest.mark.parametrize("seq", [0, 6, 11])
def test_every_alteration_of_an_inclusion_proof_is_refused(scenario, seq):
    scenario.run()
    assert_every_change_is_refused(inclusion_proof_document(scenario.ledger, seq), verify_inclusion_proof)


@pytest.mark.parametrize(("old", "new"), [(5, 12), (8, 12), (1, 4), (12, 12)])
def test_every_alteration_of_a_consistency_proof_is_refused(scenario, old, new):
    scenario.run()
    document = consistency_proof_document(scenario.ledger, old, new)
    assert_every_change_is_refused(document, verify_consistency_proof)
    extra = {**document, "proof": [*document["proof"], "00" * 32]}
    assert verify_consistency_proof(extra).status == 1
    if old < new:
        swapped = {**document, "old": document["new"], "new": document["old"]}
        assert verify_consistency_proof(swapped).status == 1


def test_proof_of_another_coordinator_is_refused(scenario):
    scenario.run()
    document = inclusion_proof_document(scenario.ledger, 3)
    assert verify_inclusion_proof(document, coordinator_key_hex="00" * 32).status == 1


def test_entries_and_sizes_without_a_checkpoint_are_a_usage_error(scenario):
    scenario.ledger.append([scenario.say("bank_a", "join")])
    for seq in (-1, 4, 99):
        with pytest.raises(UsageError):
            inclusion_proof_document(scenario.ledger, seq)
    for old, new in [(2, 4), (4, 5), (4, 1), (0, 4)]:
        with pytest.raises(UsageError):
            consistency_proof_document(scenario.ledger, old, new)


def test_command_line_verifies_proof_files(scenario, tmp_path):
    scenario.run()
    for name, document in [
        ("inclusion", inclusion_proof_document(scenario.ledger, 6)),
        ("consistency", consistency_proof_document(scenario.ledger, 4, 12)),
    ]:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(document))
        command = [sys.executable, "-m", "fl_core.trust.verify", str(path)]
        assert subprocess.run(command, capture_output=True, check=False, cwd=ROOT).returncode == 0
        path.write_text(json.dumps({**document, "proof": []}))
        assert subprocess.run(command, capture_output=True, check=False, cwd=ROOT).returncode == 1
