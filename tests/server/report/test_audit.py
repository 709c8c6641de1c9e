"""The page for an auditor: its verdict is that of the ledger now, and no name on it can act."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fl_core.messages import COORDINATOR
from fl_core.trust.canonical import MAX_INT
from fl_core.trust.entry import Statement
from fl_core.trust.grant_statements import Approval, Used
from fl_core.trust.grants import ANYBODY, Grant, Signer
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.outside import WITNESS_KEY, VerifierKey
from fl_core.trust.profile import Profile
from fl_core.trust.rotation import rotate
from fl_core.trust.witness import Witness
from server.cli.main import main
from server.reconcile.compare import Difference, Reconciled
from server.report.audit import WORDS
from server.report.consent import Consent, Member
from server.report.facts import Audit, Cosigned, Refusal, Verdict, examine, gather, judge
from server.report.page import render
from tests.fl_core.trust.consent import dataset_card, make_terms
from tests.server.audited_run import PARTIES, World, schema
from tests.server.report.test_page import Tags, facts

pytestmark = pytest.mark.timeout(120)
__all__ = ["schema"]
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&'"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DAY = 86_400_000


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, schema: Path) -> World:
    """A run with grants of every sort, one refusal, one party missing a round."""
    grants: dict[str, Grant] = {}

    def publish(world: World) -> None:
        now, mona = int(time.time() * 1000), Signer("mona", "ee" * 32)
        ann, boss = world.parties["ann"], Identity.create("officer")
        world.parties["officer"] = boss
        log = world.ledger.log
        card = dataclasses.replace(dataset_card("ann"), name="credit")
        terms = make_terms("ann", mona, dataset="credit", not_before=now - DAY, not_after=now + DAY)
        grant = Grant(terms, (Signer.of(boss.card), Signer.of(ann.card)))
        first = Approval(grant).sign(boss, log=log)
        second = Approval(grant, first.digest).sign(ann, log=log)
        shown = Statement.make(boss, log=log, kind="card", run="", body={"card": boss.card.to_dict()})
        says = Profile(ann.card.fingerprint, ("data-owner",), "<b>data@ann.example</b>", "", now).sign(ann, log=log)
        world.ledger.append([shown, says, card.sign(ann, log=log), first, second])
        own = Grant(make_terms("bob", mona), (Signer.of(world.parties["bob"].card),), self_issued=True)
        world.ledger.append([Approval(own).sign(world.parties["bob"], log=log)])
        grants.update(ann=grant, bob=own)
        world.joined = {"ann": {"grant": grant.id}, "bob": {"grant": own.id, "self_issued": True}}
        world.joined["cy"] = {"standing": True}

    def refuse(world: World) -> None:
        used = Used("commit", grants["ann"].id, "cd" * 32, 2_500_000).sign(
            world.parties["ann"], log=world.ledger.log, run=world.run
        )
        drop = world.say(COORDINATOR, "drop", {"party": "cy", "step": "round", "round": 2, "code": "timeout"})
        refusal = world.say("bob", "refusal", {"code": "budget", "step": "join", "blobs": {}})
        world.ledger.append([used, drop, refusal])

    return World(tmp_path_factory.mktemp("world"), schema, before=publish, during=refuse)


def page(world: World, *, now: bool = True, mlflow: Reconciled | None = None, verdict: Verdict | None = None) -> str:
    with Ledger.open(world.home.ledger) as ledger:
        held = gather(ledger, world.home.ledger, world.run)
        audit = examine(ledger, world.run, verdict or judge(world.home.ledger, world.run), now=now)
    audit.mlflow = mlflow
    return render(held | {"audit": audit})


def order(html: str, *words: str) -> None:
    places = [html.index(word) for word in words]
    assert places == sorted(places), dict(zip(words, places, strict=True))


# ---- what it says


def test_verdict_comes_first_and_every_section_is_there(world: World) -> None:
    html = page(world, mlflow=world.compare())
    order(
        html, "<h1>digits", ">Valid<", "MLflow shows the same", "Parties, roles and consent", "How it went", "<h2>Privacy",
        "Spent by each owner", "<h2>Bytes", "<h2>Refusals", "<h2>Proof", "Who co-signed", "MLflow against the ledger",
        "What could not be checked", "What was run",
    )  # fmt: skip
    assert "3 of 3 parties co-signed the end of this run (3 are needed)" in html


def test_consent_is_named_for_what_it_was(world: World) -> None:
    with Ledger.open(world.home.ledger) as ledger:
        audit = examine(ledger, world.run, Verdict(), now=True)
    members = {m.name: m for m in audit.members}
    ann, bob, cy = (members[n].consent for n in PARTIES)
    assert ann and ann.tone == "good" and "signed by officer, ann" in ann.words and "credit scoring" in ann.terms
    assert bob and bob.tone == "warn" and "self-issued" in bob.words
    assert cy and cy.tone == "warn" and "standing rules" in cy.words
    assert (members["ann"].spent, members["ann"].allowed, members["ann"].used, members["ann"].budget) == (
        "3.25", "3", "2.5", "5",
    )  # fmt: skip
    assert members["mona"].role.startswith("submitted the job (model-owner)")
    assert "operator" in members[COORDINATOR].role
    assert members["ann"].said == "data-owner; <b>data@ann.example</b>" and not members["bob"].said
    html = page(world)
    assert "its card says: data-owner; &lt;b&gt;data@ann.example" in html
    assert "Self-issued" not in html and "the consent of bob, cy" in html.lower()


def test_a_key_that_is_changed_after_the_run_takes_no_consent_and_no_card_from_it(tmp_path: Path, schema: Path) -> None:
    def grant_it(world: World) -> None:
        ann, log, now = world.parties["ann"], world.ledger.log, int(time.time() * 1000)
        grant = Grant(make_terms("ann", Signer("mona", "ee" * 32)), (Signer.of(ann.card),))
        says = Profile(ann.card.fingerprint, ("data-owner",), "then", "", now).sign(ann, log=log)
        world.ledger.append([says, Approval(grant).sign(ann, log=log)])
        world.joined = {"ann": {"grant": grant.id}}

    world = World(tmp_path, schema, before=grant_it)
    old, new = world.parties["ann"], Identity.create("ann")
    with Ledger.open(world.home.ledger, world.coordinator) as ledger:
        now = int(time.time() * 1000)
        later = Profile(new.card.fingerprint, ("receiver",), "now", "", now).sign(new, log=ledger.log)
        ledger.append([rotate(old, new, log=ledger.log), later])
        ann = examine(ledger, world.run, Verdict(), now=True).members[0]
    assert (ann.name, ann.key, ann.said) == ("ann", old.card.fingerprint, "data-owner; then")
    assert ann.consent and ann.consent.tone == "good" and ann.consent.words.endswith("signed by ann")


def test_signatures_that_are_not_there_are_named(tmp_path: Path, schema: Path) -> None:
    def half(world: World) -> None:
        log, officer, mona = world.ledger.log, Signer("officer", "dd" * 32), Signer("mona", "ee" * 32)
        ann, cy = (world.parties[name] for name in ("ann", "cy"))
        grant = Grant(make_terms("ann", mona), (officer, Signer.of(ann.card)))
        forged = Grant(make_terms("cy", mona), (Signer.of(cy.card),))
        world.ledger.append([Approval(grant, "ab" * 32).sign(ann, log=log), Approval(forged).sign(ann, log=log)])
        world.joined = {"ann": {"grant": grant.id}, "bob": {"grant": "12" * 32}, "cy": {"grant": forged.id}}

    world = World(tmp_path, schema, before=half)
    with Ledger.open(world.home.ledger) as ledger:
        ann, bob, cy = (m.consent for m in examine(ledger, world.run, Verdict(), now=True).members[:3])
    assert ann and ann.tone == "good" and "signed by ann; the signatures of officer are not on" in ann.words
    assert bob and bob.tone == "warn" and "not on this ledger" in bob.words
    assert cy and cy.tone == "warn" and "signed by nobody; the signatures of cy are not on this ledger" in cy.words


def test_standing_grant_is_named_as_one(tmp_path: Path, schema: Path) -> None:
    def stand(world: World) -> None:
        bob, top = world.parties["bob"], dict.fromkeys(("uses", "epsilon", "not_after"), MAX_INT)
        anything = {"version": "", "algorithms": ("*",), "model": "*", "receivers": ("*",), "purpose": "*"}
        terms = make_terms("bob", ANYBODY, private_only=False, not_before=0, **anything, **top)
        grant = Grant(terms, (Signer.of(bob.card),))
        world.ledger.append([Approval(grant).sign(bob, log=world.ledger.log)])
        world.joined = {"bob": {"grant": grant.id, "standing": True, "reserved": 1_250_000}}

    world = World(tmp_path, schema, before=stand)
    with Ledger.open(world.home.ledger) as ledger:
        ann, bob = examine(ledger, world.run, Verdict(), now=True).members[:2]
    assert ann.consent and ann.consent.words == "no grant is on record"
    assert bob.consent and bob.consent.words.startswith("standing grant") and "signed by bob" in bob.consent.words
    assert "whoever the coordinator admits" in bob.consent.terms and bob.allowed == "no limit"


def test_refusals_say_who_and_why(world: World) -> None:
    html = page(world)
    assert "<td>cy</td><td>did not answer</td><td>round, round 2</td><td>timeout</td>" in html
    assert "<td>bob</td><td>refused</td><td>join</td><td>budget</td>" in html


def test_outside_witness_is_named_where_one_signed(world: World, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(world.home.path, home)
    outside = Identity.create("notary.example")
    key = VerifierKey.of(outside, algorithm=WITNESS_KEY)
    assert "no outside witness co-signed" in page(world)
    with Ledger.open(home / "ledger.db", world.coordinator) as ledger:
        note, size = ledger.checkpoint(), ledger.size
        log = VerifierKey(ledger.log, 1, ledger.coordinator.ed25519)
        line = Witness(tmp_path / "witness.db", outside).observe(note, log, [], mine=None, start=0)
        ledger.add_outside(size, key, line)
        audit = examine(ledger, world.run, Verdict(), now=True)
    assert audit.checkpoints[-1] == Cosigned(size, "what MLflow got", (), ("notary.example",))
    assert [c.parties for c in audit.checkpoints[:-1]] == [PARTIES] * (len(audit.checkpoints) - 1)


def test_page_at_the_end_of_a_run_does_not_claim_to_be_of_now(world: World) -> None:
    html = (world.artifacts / "audit" / "report.html").read_text(encoding="utf-8")
    assert f"As of entry {world.finished - 1}" in html and f"fedseal audit report {world.run}" in html
    assert ">Valid<" in html and "MLflow was not compared" in html and "Checked on" not in html
    assert "As of entry" not in page(world) and "Checked on" in page(world)


def test_artifact_is_the_one_report_and_the_ledger_has_its_digest(world: World) -> None:
    assert [p.name for p in (world.artifacts / "audit").iterdir()] == ["report.html"]
    digest = hashlib.sha256((world.artifacts / "audit" / "report.html").read_bytes()).hexdigest()
    with Ledger.open(world.home.ledger) as ledger:
        (said,) = ledger.entries(run=world.run, kind="publish")
    assert said.body["artifacts"][0]["sha256"] == digest


def test_difference_from_mlflow_cannot_be_overlooked(world: World) -> None:
    found = Reconciled(world.run, "digits", "ab")
    found.differences.append(Difference("metric", "altered", "accuracy", 2, "0.99", "0.5"))
    html = page(world, mlflow=found)
    order(
        html,
        "stamp warn",
        ">Valid, but MLflow differs<",
        'class="bad">MLflow differs from the ledger in 1 place<',
        "Parties, roles",
    )
    assert "<td>metric accuracy, step 2</td>" in html and "<td>0.99</td><td>0.5</td>" in html


@pytest.mark.parametrize(
    ("status", "words"), [(1, "Do not rely"), (4, "only the coordinator vouches"), (None, "too m")]
)
def test_any_other_verdict_is_shown_as_such(world: World, status: int | None, words: str) -> None:
    html = page(world, verdict=Verdict(status, "too many", 9, 9, 9, 1, 3, 3))
    word, tone = WORDS[status]
    assert f'stamp {tone}"><p class="mark">{word}<' in html and words in html and ">Valid<" not in html


# ---- the command


def report(world: World, capsys: pytest.CaptureFixture[str], home: Path, *words: str) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("webbrowser.open", lambda url: pytest.fail("a browser"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
        argv = ["fedseal", "audit", "report", "digits", "--home", str(home), "--open", "no", *words]
        patch.setattr(sys, "argv", argv)
        main()
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out + told.err


def test_command_checks_now(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, out = tmp_path / "home", tmp_path / "page.html"
    shutil.copytree(world.home.path, home)
    code, said = report(world, capsys, home, "--out", str(out))
    assert code == 0 and said == f"VALID; MLflow shows the same: {out}\n"
    with sqlite3.connect(home / "mlflow.db") as db:
        db.execute("UPDATE params SET value = 'x' WHERE key = 'train.rounds'")
    db.close()
    code, said = report(world, capsys, home, "--out", str(out), "--json")
    assert code == 1 and json.loads(said)["mlflow"] == "differs"
    with sqlite3.connect(home / "ledger.db") as db:
        db.execute("""UPDATE entries SET leaf = replace(leaf, '"code":"budget"', '"code":"gadget"')""")
    db.close()
    code, said = report(world, capsys, home, "--out", str(out))
    assert code == 1 and said.startswith("BROKEN") and "Do not rely" in out.read_text(encoding="utf-8")
    with sqlite3.connect(home / "ledger.db") as db:
        db.execute("DELETE FROM entries WHERE seq > 9")
    db.close()
    code, said = report(world, capsys, home, "--out", str(out))
    html = out.read_text(encoding="utf-8")
    assert code == 1 and said.startswith("BROKEN") and "Do not rely" in html and "Refusals" not in html
    assert report(world, capsys, home, "--out", str(tmp_path / "no" / "page.html"))[0] == 2


def test_short_of_quorum_is_4(tmp_path: Path, schema: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path, schema, cosigners=1)
    out = tmp_path / "page.html"
    code, said = report(world, capsys, world.home.path, "--out", str(out))
    assert code == 4 and said.startswith("SHORT OF QUORUM")
    assert "1 of 3 parties co-signed the end of this run; 3 must" in out.read_text(encoding="utf-8")


# ---- attacks


def evil() -> dict[str, Any]:
    """An audit in which every text is an attack."""
    found = Reconciled(EVIL, EVIL, EVIL, {EVIL: 1}, [Difference(EVIL, "altered", EVIL, 1, EVIL, EVIL)], [EVIL])
    audit = Audit(
        Verdict(1, EVIL),
        now=False,
        members=[Member(EVIL, EVIL, EVIL, EVIL, Consent("warn", EVIL, EVIL), EVIL, EVIL, EVIL, EVIL, EVIL)],
        refusals=[Refusal(1, EVIL, EVIL, EVIL, EVIL)],
        checkpoints=[Cosigned(1, EVIL, (EVIL,), (EVIL,))],
        mlflow=found,
        why_not=EVIL,
    )
    base = facts(2)
    return base | {"name": EVIL, "run": EVIL, "job": base["job"] | {"name": EVIL}, "audit": audit}


def test_names_cannot_become_markup() -> None:
    for changes in ({}, {"audit": dataclasses.replace(evil()["audit"], mlflow=None)}, {"unreadable": True}):
        html = render(evil() | changes)
        assert html.count("&lt;script&gt;") >= 3
        assert "<script" not in html and "<img" not in html


def test_page_runs_and_fetches_nothing(world: World) -> None:
    html = page(world, mlflow=world.compare())
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    assert not tags.seen & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"}
    assert not tags.attributes & {"src", "href", "style", "onload", "onclick"}
    assert "default-src 'none'" in html and "url(" not in html and "http" not in html.replace("http-equiv", "")


class Text(HTMLParser):
    """The words and tags that a browser made of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words, self.tags = "", set[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("which", ["good", "evil"])
def test_browser_shows_the_page_and_runs_nothing(world: World, tmp_path: Path, which: str) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(world, mlflow=world.compare()) if which == "good" else render(evil()), encoding="utf-8")
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    assert BROWSER is not None
    ended = subprocess.run([BROWSER, *words, path.as_uri()], capture_output=True, text=True, timeout=100, check=False)
    shown = Text(ended.stdout)
    assert not shown.tags & {"script", "img"} and {"svg", "table", "h1"} <= shown.tags
    assert "owned'" in shown.words if which == "evil" else "MLflow shows the same" in shown.words
    assert "<title>owned" not in ended.stdout
