"""`FEDSEAL_LEDGER=postgresql://…` by the command line: runs, everything an auditor does, and no password anywhere."""

from __future__ import annotations

import shutil
import signal
import subprocess
import urllib.request
from urllib.parse import quote

import pytest

from tests.e2e.process import FEDSEAL, Place
from tests.e2e.test_psi import job, people, write_people
from tests.postgres import PASSWORD, start_server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SECRETS = (PASSWORD, quote(PASSWORD, safe=""))


@pytest.fixture(scope="module")
def postgres():
    server = start_server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def ran(postgres, tmp_path_factory):
    """A place whose ledger is on the server, its URL, and what a run there said."""
    place, url = Place(tmp_path_factory.mktemp("team")), postgres.url()
    for name, rows in {"bank": people(300, 0), "bureau": people(250, 100)}.items():
        write_people(place.path / f"{name}.csv", rows)
    done = place.fedseal("run", job(place, ["bank", "bureau"]), "--out", "out", "--json", FEDSEAL_LEDGER=url)
    assert done.code == 0, done
    yield place, url, done
    place.clear()


def test_a_run_writes_its_ledger_there_and_nothing_says_the_password(ran):
    place, _, done = ran
    assert done.json["ledger"]["path"].startswith("postgresql://fedseal:***@127.0.0.1:")
    assert not (place.home / "ledger.db").exists()
    texts = [
        done.out,
        done.err,
        *(p.read_bytes().decode(errors="replace") for p in place.path.rglob("*") if p.is_file()),
    ]
    assert not [text for text in texts if any(secret in text for secret in SECRETS)]


def test_auditors_commands_work_there(ran):
    place, url, done = ran
    run = done.json["run"]
    for words in (["--ledger", url], []):
        found = place.fedseal("audit", "verify", *words, "--json", **({} if words else {"FEDSEAL_LEDGER": url}))
        assert found.code == 0, found
        assert (found.json["verdict"], found.json["ledger"]) == ("VALID", done.json["ledger"]["path"])
        assert found.json["entries"] > 5
    told = place.fedseal("audit", "verify", "--ledger", url)
    assert told.code == 0 and f"VALID  {done.json['ledger']['path']}" in told.out
    note = place.path / "kept"
    note.write_text(place.fedseal("audit", "checkpoint", FEDSEAL_LEDGER=url).out)
    assert place.fedseal("audit", "verify", "--since", note, FEDSEAL_LEDGER=url).code == 0
    assert "entries, head" in place.fedseal("audit", "show", run, FEDSEAL_LEDGER=url).out
    proof = place.path / "proof.json"
    proof.write_text(place.fedseal("audit", "prove", "2", "--ledger", url).out)
    assert place.fedseal("audit", "verify", proof).code == 0
    exported = place.fedseal("audit", "export", run, "--out", "pack", FEDSEAL_LEDGER=url)
    assert exported.code == 0, exported
    assert place.fedseal("audit", "verify", "pack", "--since", note).code == 0
    assert place.fedseal("audit", "reconcile", FEDSEAL_LEDGER=url).code == 0
    report = place.fedseal("audit", "report", run, "--out", "report.html", "--open", "no", FEDSEAL_LEDGER=url)
    assert report.code == 0 and report.out.startswith("VALID; MLflow shows the same")
    page = (place.path / "report.html").read_text()
    assert done.json["ledger"]["path"] in page and not any(secret in page for secret in SECRETS)


def test_auditors_pages_work_there(ran, fresh):
    _, url, done = ran
    process = subprocess.Popen(
        [*FEDSEAL, "audit", "serve", "--listen", "127.0.0.1:0", "--ledger", url, "--home", str(fresh.home)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=fresh.path,
    )  # fmt: skip
    try:
        site = process.stdout.readline().strip()
        pages = []
        for path in ("", "verify", f"run?id={done.json['run']}", "entry/2", "entry/2/proof"):
            with urllib.request.urlopen(site + path, timeout=60) as answer:
                pages.append(answer.read().decode())
        assert done.json["run"] in pages[0] and "Holds:" in pages[3]
        (fresh.path / "proof.json").write_text(pages[4])
        assert fresh.fedseal("audit", "verify", "proof.json").code == 0
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0
        assert not [text for text in (*pages, out, err) if any(secret in text for secret in SECRETS)]
    finally:
        process.kill()
        process.wait()


def test_a_homes_ledger_moves_there_and_back_and_runs_go_on(postgres, fresh):
    url = postgres.url()
    for name, rows in {"bank": people(60, 0), "bureau": people(50, 20)}.items():
        write_people(fresh.path / f"{name}.csv", rows)
    first = fresh.fedseal("run", job(fresh, ["bank", "bureau"]), "--out", "one", "--json")
    assert first.code == 0, first
    moved = fresh.fedseal("audit", "move", "--to", url, "--json")
    assert moved.code == 0 and moved.json["size"] == first.json["ledger"]["size"], moved
    refused = fresh.fedseal("run", job(fresh, ["bank", "bureau"]), "--out", "two")
    assert refused.code == 2 and "its ledger was moved" in refused.err, refused
    second = fresh.fedseal("run", job(fresh, ["bank", "bureau"]), "--out", "two", "--json", FEDSEAL_LEDGER=url)
    assert second.code == 0 and second.json["ledger"]["size"] > moved.json["size"], second
    back = fresh.fedseal("audit", "move", "--to", fresh.home / "ledger.db", "--json", FEDSEAL_LEDGER=url)
    assert back.code == 0 and back.json["size"] == second.json["ledger"]["size"], back
    third = fresh.fedseal("run", job(fresh, ["bank", "bureau"]), "--out", "three", "--json")
    assert third.code == 0, third
    assert fresh.fedseal("audit", "verify").code == 0
    refused = fresh.fedseal("audit", "move", "--to", fresh.home / "ledger.db", FEDSEAL_LEDGER=url).fails(2)
    assert "was moved away already" in refused and not any(secret in refused for secret in SECRETS)


def test_what_works_with_files_only_says_so_in_one_line(ran):
    place, url, _ = ran
    for words, said in (
        (["verify", url], "named with --ledger"),
        (["verify", "--ledger", url, "--against", "kept"], "is no file"),
        (["verify", "--ledger", url.replace("postgresql:", "mysql:")], "no place of a ledger"),
        (["verify", "--ledger", url.replace("/team", "/nothing")], "does not exist"),
    ):
        line = place.fedseal("audit", *words).fails(2)
        assert said in line and not any(secret in line for secret in SECRETS)


def test_a_file_and_a_server_are_not_both_this_homes_ledger(ran):
    place, url, _ = ran
    (place.home / "ledger.db").touch()
    try:
        line = place.fedseal("audit", "show", FEDSEAL_LEDGER=url).fails(2)
        assert "one of them" in line and not any(secret in line for secret in SECRETS)
    finally:
        (place.home / "ledger.db").unlink()


def test_a_backup_says_that_the_ledger_is_not_in_it(ran, tmp_path):
    place, url, _ = ran
    done = place.fedseal("backup", tmp_path / "b.tar", FEDSEAL_LEDGER=url)
    assert done.code == 0 and "not in it: the ledger, postgresql://fedseal:***@" in done.out


def test_two_homes_of_one_coordinator_share_a_chain_and_a_stranger_is_kept_out(ran, tmp_path):
    """Two machines: the second has the coordinator's key from the first."""
    place, url, done = ran
    second, stranger = Place(tmp_path / "second"), Place(tmp_path / "stranger")
    try:
        for other in (second, stranger):
            for name in ("bank", "bureau"):
                write_people(other.path / f"{name}.csv", people(50, 0))
        shutil.copytree(place.home / "coordinator", second.home / "coordinator", ignore=shutil.ignore_patterns("runs"))
        shutil.copytree(place.home / "parties", second.home / "parties")
        shutil.copy(place.home / "version", second.home / "version")
        again = second.fedseal("run", job(second, ["bank", "bureau"]), "--out", "out", "--json", FEDSEAL_LEDGER=url)
        assert again.code == 0, again
        assert again.json["ledger"]["size"] > done.json["ledger"]["size"]
        assert place.fedseal("audit", "verify", "--ledger", url).code == 0
        kept_out = stranger.fedseal("run", job(stranger, ["bank", "bureau"]), "--out", "out", FEDSEAL_LEDGER=url)
        assert kept_out.code == 1 and "the ledger of coordinator" in kept_out.err
    finally:
        second.clear()
        stranger.clear()
