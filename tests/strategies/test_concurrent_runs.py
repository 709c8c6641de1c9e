"""Two runs of the same parties on one log: a witness that the other run took further is neither stale nor lied to."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_core import messages
from fl_core.trust.verify import verify_ledger
from tests.support import Federation, digits


@pytest.mark.parametrize("step", [messages.ROUND, messages.CLOSE, messages.WITNESS])
def test_run_that_ends_while_another_waits_for_answers_is_taken_for_no_fork(tmp_path: Path, step: str) -> None:
    """The second run happens whole between the first one's checkpoint and the parties' look at it."""
    one, two = Federation(tmp_path), Federation(tmp_path)
    asked: list[str] = []

    def interrupt(party: str, at: str, arrays: dict[str, bytes]) -> dict[str, bytes]:
        asked.append(at)
        if at == step and asked.count(step) == (5 if step == messages.ROUND else 2):  # one party has looked already
            two.run(digits(name="other", train__rounds=1), run="run-2")
        return arrays

    one.run(digits(), request=interrupt)
    assert "run-2" in {e.run for e in one.entries()}
    assert not [e.body for e in one.entries() if e.kind in ("drop", "failure", "refusal")]
    assert [e.body["missing"] for e in one.entries("aggregate", run="run-1")] == [[], [], [], []]
    report = verify_ledger(one.home.ledger)
    assert (report.status, {r.state for r in report.runs.values()}) == (0, {"witnessed"})
