"""Roles of registered nodes, against what jobs would have them do."""

from __future__ import annotations

import pytest

from fl_core.config import load_job
from fl_core.errors import RefusedError
from server.coordinator.nodes import Node
from server.coordinator.rights import check_parties

JOBS = {
    "horizontal": {
        "kind": "horizontal", "name": "h", "model": {"name": "logistic"},
        "train": {"rounds": 1, "learning_rate": 0.1, "receivers": ["desk"]},
    },
    "psi": {"kind": "psi", "name": "p", "psi": {"receivers": ["a"]}},
    "vertical": {"kind": "vertical", "name": "v", "vertical": {"algorithm": "logistic"}},
}  # fmt: skip


def job_of(kind: str):
    parties = [{"name": name, "data": name, "id": "id", "label": "y" if name == "a" else None} for name in "abc"]
    if kind != "vertical":
        parties = [{k: v for k, v in party.items() if k != "label" or kind == "horizontal"} for party in parties]
    parties = [{k: v for k, v in party.items() if v is not None} for party in parties]
    if kind == "horizontal":
        parties = [{**party, "label": "y"} for party in parties]
    return load_job({**JOBS[kind], "runtime": "deployment", "party": parties})


def nodes(**roles: str) -> dict[str, Node]:
    given = {"a": "data-owner", "b": "data-owner", "c": "data-owner", "desk": "receiver"} | roles
    return {name: Node(name, "0" * 64, {"key": ""}, roles=tuple(words.split())) for name, words in given.items()}


@pytest.mark.parametrize("kind", JOBS)
def test_data_owners_and_receivers_do_what_is_theirs(kind):
    check_parties(job_of(kind), nodes())


@pytest.mark.parametrize("kind", JOBS)
@pytest.mark.parametrize("role", ["receiver", "model-owner", "receiver model-owner"])
def test_a_node_that_is_no_data_owner_brings_no_data(kind, role):
    with pytest.raises(RefusedError, match=r"^b \(.*\) may not take part in a job with data; allowed: data-owner$"):
        check_parties(job_of(kind), nodes(b=role))


def test_a_receiver_without_data_needs_a_role_that_receives():
    for role in ("receiver", "data-owner", "model-owner"):
        check_parties(job_of("horizontal"), nodes(desk=role))
    nobody = nodes()
    object.__setattr__(nobody["desk"], "roles", ("operator",))
    with pytest.raises(RefusedError, match=r"^desk \(operator\) may not receive a result"):
        check_parties(job_of("horizontal"), nobody)
