"""A witness in a process of its own: it co-signs a run, an auditor counts it, and a log issued anew gets nothing."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys

import pytest

from fl_core.home import Home
from fl_core.messages import COORDINATOR
from fl_core.trust.checkpoint import cosign
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.outside import WITNESS_KEY, VerifierKey
from tests.e2e.process import REPO, wait_until

pytestmark = pytest.mark.e2e

JOB = """
kind = "psi"
name = "meet"
[[party]]
name = "bank"
data = "bank.csv"
id = "id"
[[party]]
name = "bureau"
data = "bureau.csv"
id = "id"
"""


@pytest.fixture
def place(fresh):
    for name, start in (("bank", 0), ("bureau", 50)):
        (fresh.path / f"{name}.csv").write_text("id\n" + "".join(f"id{n}\n" for n in range(start, start + 100)))
    (fresh.path / "meet.toml").write_text(JOB)
    return fresh


def serve(place) -> dict[str, str]:
    """Start a witness for this place's log; return the policy's entry of it."""
    log = place.fedseal("witness", "log").out.strip()
    key = place.fedseal("witness", "key", "--as", "notary", "--home", "elsewhere").out.strip()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = place.start(
        "witness", "serve", "--as", "notary", "--home", "elsewhere", "--log", log, "--listen", f"127.0.0.1:{port}"
    )

    def answers() -> bool:
        assert running.process.poll() is None, running.end()
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    wait_until(answers, "the witness")
    return {"key": key, "url": f"http://127.0.0.1:{port}"}


def issue_anew(real: Home, home: Home) -> None:
    """The coordinator writes the log again under its own key, and all parties co-sign it."""
    shutil.copytree(real.path, home.path)
    with Ledger.open(real.ledger) as ledger:
        entries, size = list(ledger.entries()), ledger.checkpoint_sizes()[-1]
        parties = {path.name: Identity.load_or_create(path, path.name) for path in (real.path / "parties").iterdir()}
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (home.path / name).unlink(missing_ok=True)
    with Ledger.open(home.ledger, Identity.load_or_create(home.coordinator, COORDINATOR)) as forged:
        for entry in entries[1:size]:
            forged.append([entry.statement])
        note = forged.checkpoint()
        forged.add_cosignatures(forged.size, {name: cosign(party, note) for name, party in parties.items()})


def test_coordinator_and_parties_cannot_issue_a_witnessed_log_anew(place):
    notary = serve(place)
    gone = {"key": VerifierKey.of(Identity.create("gone"), algorithm=WITNESS_KEY).text, "url": "http://127.0.0.1:9"}
    table = {"type": "fedseal witness policy v1", "quorum": 1, "witnesses": [notary, gone]}
    (place.home / "witnesses.json").write_text(json.dumps(table))
    (place.path / "both.json").write_text(json.dumps(table | {"quorum": 2}))

    done = place.fedseal("run", "meet.toml")
    assert done.code == 0 and "1 of 2 co-signed, 1 must: notary; witness gone: http://127.0.0.1:9" in done.out, done
    (summary,) = place.path.glob("runs/*/summary.json")
    told = json.loads(summary.read_text())
    assert (told["witnesses"]["quorum"], told["witnesses"]["signed"]) == (1, ["notary"])

    policy = place.home / "witnesses.json"
    (place.path / "kept").write_text(place.fedseal("audit", "checkpoint").out)
    assert place.fedseal("audit", "export", "meet", "--out", "pack").code == 0
    checked = place.fedseal("audit", "verify", "pack", "--witnesses", policy, "--json").json
    assert (checked["verdict"], list(checked["outside"]["signed"])) == ("VALID", ["notary"])
    assert checked["outside"]["covered"] == checked["size"] >= checked["outside"]["due"]
    assert place.fedseal("audit", "verify", "--witnesses", policy).code == 0
    short = place.fedseal("audit", "verify", "pack", "--witnesses", "both.json")
    assert short.code == 4 and "1 of 2 co-signed" in short.out
    command = [sys.executable, "-m", "fl_core.trust.verify", place.path / "pack", "--witnesses", policy]
    assert subprocess.run(command, cwd=REPO, capture_output=True, check=False).returncode == 0

    (place.path / "bureau.csv").write_text("id\nid1\nid1\n")
    assert place.fedseal("run", "meet.toml").code != 0
    with Ledger.open(Home(place.home).ledger) as ledger:
        head = ledger.checkpoint_sizes()[-1]
        assert [entry.kind for entry in ledger.entries(head - 1)] == ["failure"]
        assert list(ledger.outside_cosignatures(head)) == [notary["key"]], "a run that failed is witnessed too"

    forged = Home(place.path / "forged")
    issue_anew(Home(place.home), forged)
    assert place.fedseal("audit", "verify", "--ledger", forged.ledger).code == 0, "consistent in itself"
    refused = place.fedseal("witness", "ask", "--home", forged.path, "--json")
    assert refused.code == 4 and "are others" in refused.json["missing"]["notary"]
    kept = list((place.path / "elsewhere" / "witness" / "contradictions").iterdir())
    assert {path.suffix for path in kept} == {".note", ".signed"}
    assert place.fedseal("audit", "verify", "--ledger", forged.ledger, "--witnesses", policy).code == 4
    caught = place.fedseal("audit", "verify", "--ledger", forged.ledger, "--since", "kept")
    assert caught.code == 1 and "rewritten" in caught.out
