"""Roles: nobody does what is not theirs, and the table that people read is the one that is asked."""

from __future__ import annotations

import itertools

import pytest

from fl_core.errors import BadMessage, RefusedError
from fl_core.trust.roles import ALLOWED, Action, Role, may, read_roles, require, table

# Written out a second time, by role, as README says it.
EXPECTED = {
    "data-owner": "publish decide contribute receive ask catalog ledger witness",
    "model-owner": "submit stop-own runs request receive serve catalog ledger witness",
    "receiver": "receive ask catalog ledger witness",
    "auditor": "runs catalog ledger export witness",
    "operator": "stop-any runs catalog ledger admit revoke-key",
}
WORDS = {
    "submit": Action.SUBMIT_JOB, "stop-own": Action.STOP_OWN_RUN, "stop-any": Action.STOP_ANY_RUN,
    "runs": Action.SEE_RUNS, "request": Action.REQUEST_GRANT, "publish": Action.PUBLISH_DATA,
    "decide": Action.DECIDE_GRANT, "contribute": Action.CONTRIBUTE_DATA, "receive": Action.RECEIVE_RESULT,
    "serve": Action.SERVE_PREDICTIONS, "ask": Action.ASK_PREDICTIONS, "catalog": Action.SEE_CATALOG,
    "ledger": Action.READ_LEDGER, "export": Action.EXPORT_PACK, "witness": Action.WITNESS, "admit": Action.ADMIT,
    "revoke-key": Action.REVOKE_KEY,
}  # fmt: skip


def test_each_role_may_do_exactly_what_is_written():
    assert set(WORDS.values()) == set(Action)
    for role in Role:
        assert ALLOWED[role] == {WORDS[word] for word in EXPECTED[role].split()}


def test_several_roles_may_do_what_any_of_them_may_and_nothing_more():
    for count in range(len(Role) + 1):
        for roles in itertools.combinations(Role, count):
            for action in Action:
                assert may(roles, action) == any(action in ALLOWED[role] for role in roles)


def test_role_without_the_right_is_refused_in_one_line():
    require("ann", {Role.MODEL_OWNER}, Action.SUBMIT_JOB)
    with pytest.raises(RefusedError) as caught:
        require("ann", {Role.RECEIVER, Role.AUDITOR}, Action.SUBMIT_JOB)
    assert str(caught.value) == "ann (receiver, auditor) may not submit or check a job; allowed: model-owner"
    with pytest.raises(RefusedError, match=r"^bob \(no role\) may not read the ledger; allowed: data-owner or "):
        require("bob", (), Action.READ_LEDGER)


def test_the_one_who_runs_the_machines_can_neither_consent_nor_start_nor_receive():
    for action in (Action.DECIDE_GRANT, Action.SUBMIT_JOB, Action.RECEIVE_RESULT, Action.CONTRIBUTE_DATA):
        assert not may({Role.OPERATOR}, action)


def test_the_table_cannot_be_changed_by_who_asks():
    with pytest.raises(TypeError):
        ALLOWED[Role.AUDITOR] = frozenset(Action)


def test_every_action_is_somebodys():
    assert frozenset().union(*ALLOWED.values()) == set(Action) and set(ALLOWED) == set(Role)


@pytest.mark.parametrize("texts", [["admin"], ["Auditor"], ["auditor", 1], [], [None], [["auditor"]], ["auditor "]])
def test_unknown_roles_are_refused(texts):
    with pytest.raises(BadMessage, match="allowed: data-owner, model-owner, receiver, auditor, operator"):
        read_roles(texts)


def test_roles_are_read_once_each():
    assert read_roles(["auditor", "operator", "auditor"]) == {Role.AUDITOR, Role.OPERATOR}


def test_the_markdown_says_what_the_code_does():
    head, rule, *rows = table().splitlines()
    assert head == "| may | data owner | model owner | receiver | auditor | operator |"
    assert rule == "| --- | --- | --- | --- | --- | --- |" and len(rows) == len(Action)
    for row, action in zip(rows, Action, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == action.value
        assert [cell == "✓" for cell in cells[1:]] == [may({role}, action) for role in Role]
