"""The owner's page: figures are the owner's files', commands are exact, no name becomes markup, nothing is written."""

from __future__ import annotations

import dataclasses
import hashlib
import html as escapes
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from clients.consent.decision import Consent
from clients.node.activity import Activity
from clients.node.folder import NodeFolder, Settings, Source
from fl_core.errors import UsageError
from fl_core.home import Home
from fl_core.trust.budget import Budget, Spending
from fl_core.trust.catalog import UNLIMITED, Listing
from fl_core.trust.entry import Statement
from fl_core.trust.grant_statements import GrantRequest
from fl_core.trust.grants import Grant, Signer, State
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from server.cli.main import main
from server.cli.owner import Board, _whose
from server.cli.owner_facts import gather
from server.owner_page import Composed, Owner, Refused, html
from server.web.site import POLICY
from tests.fl_core.trust.consent import LOG, ONE, approve, dataset_card, make_request, make_terms
from tests.server.audit_site.scenes import Read

NOW = 1_500.0  # seconds; the grants of the scene run from 1,000 to 2,000
DAY = 86_400_000


class Place:
    """A home with one owner, `bank`, and whoever asks it."""

    def __init__(self, path: Path) -> None:
        self.home = Home.open(path / "home")
        self.folder = self.home.party("bank")
        self.identity = Identity.load_or_create(self.folder, "bank")
        self.lab = Identity.create("lab")
        self.consent = Consent(self.folder, self.identity)
        self.card = dataset_card("bank")

    def publish(self, **changes) -> None:
        self.card = dataclasses.replace(self.card, published=self.card.published + 1, **changes)
        self.consent.publish(self.card, log=LOG)

    def terms(self, **changes):
        return make_terms("bank", Signer.of(self.lab.card), **changes)

    def ask(self, **changes) -> str:
        statement = GrantRequest(self.terms(**changes)).sign(self.lab, log=LOG)
        return self.consent.receive(statement, self.lab.card)

    def grant(self, *, self_issued: bool = False, **changes) -> Grant:
        grant = Grant(self.terms(**changes), (Signer.of(self.identity.card),), self_issued=self_issued)
        for statement in approve(grant, [self.identity]):
            self.consent.store.keep(statement, self.identity.card, log=LOG)
        return grant

    def use(self, grant: Grant, run: str, *, asked: int = ONE, spent: int | None = None) -> None:
        state = State(owner_key=self.identity.card.fingerprint, card=self.card)
        self.consent.store.reserve(grant, make_request(grant.terms, epsilon=asked), run, state)
        if spent is not None:
            self.consent.store.commit(run, spent)

    def show(self, now: float = NOW) -> str:
        return html(gather(self.home, "bank"), now=now)


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


def words(text: str) -> str:
    return " ".join(text.split())


def states(text: str) -> dict[str, list[str]]:
    """Each grant's row by the first digits of its id."""
    return {row[0]: row for row in Read(text).rows if len(row) == 9 and re.fullmatch("[0-9a-f]{16}", row[0])}


# ------------------------------------------------------------------------------------------------ figures


def test_an_owner_with_nothing_gets_a_page_that_says_so(place):
    text = words(place.show())
    assert text.count("None.") == 4 and "Nothing is published" in text


def test_privacy_is_counted_both_ways_each_against_its_limit(place):
    from fl_core.learning import privacy

    place.publish(epsilon=4 * ONE)
    grant = place.grant(uses=9, epsilon=9 * ONE)
    place.use(grant, "r1", asked=ONE, spent=ONE // 2)
    place.use(grant, "r2", asked=ONE + ONE // 4)
    budget = Budget(place.folder / "budget.db")
    for run in ("r1", "r2"):
        budget.reserve("credit", run, spend=Spending(1.0, 0.1, 20), limit=None, epsilon=privacy.epsilon)
    budget.commit("r1", "credit", 1, 20)
    spent = privacy.epsilon([Spending(1.0, 0.1, 20)], 1e-5)
    held = privacy.epsilon([Spending(1.0, 0.1, 40)], 1e-5)
    row = next(row for row in Read(place.show()).rows if row[0].startswith("credit") and len(row) == 9)
    cells = [words(cell) for cell in row]
    assert cells[3:6] == ["0.5and 1.25 set aside", "4", "2.25"]
    assert cells[6] == f"{spent:.2f}{held:.2f} with what is set aside" and held < 2 * spent
    assert cells[7] == "the job file's limit"


def test_the_node_limit_and_what_is_left_of_it(place):
    owner = Owner(
        "bank", "/h", composed=[Composed("credit", "/d/c.csv", 1.5, 2.0, 8.0), Composed("x", "", 9.0, 9.0, 8.0)]
    )
    rows = {
        words(row[0]).replace(" ", ""): [words(c) for c in row]
        for row in Read(html(owner, now=NOW)).rows
        if len(row) == 9
    }
    assert rows["credit/d/c.csv"][6:] == [
        "1.502.00 with what is set aside", "8", "6.00",
    ]  # fmt: skip
    assert rows["x"][6:] == ["9.00", "8", "0.00"]


def test_a_dataset_without_a_limit_and_one_withdrawn(place):
    place.publish(epsilon=UNLIMITED)
    text = words(place.show())
    assert "about 1,200 rows" in text and "credit scoring, fraud" in text and ">no limit</td>" in text
    place.consent.withdraw("credit", log=LOG)
    assert '<b class="warn">withdrawn</b>' in place.show()


def test_each_state_of_a_grant_is_told(place):
    place.publish()
    running = place.grant()
    used_up = place.grant(uses=1)
    place.use(used_up, "r1", spent=ONE)
    spent = place.grant(epsilon=ONE)
    place.use(spent, "r2", spent=ONE)
    expired = place.grant(not_after=1_200_000)
    early = place.grant(not_before=1_800_000)
    revoked = place.grant()
    place.consent.revoke(revoked.id, "no more", log=LOG)
    own = place.grant(self_issued=True)
    half = Grant(place.terms(), (Signer.of(place.lab.card), Signer.of(place.identity.card)))
    place.consent.store.keep(approve(half, [place.lab])[0], place.lab.card, log=LOG)
    text = place.show()
    told = {id: row[3] for id, row in states(text).items()}
    assert told == {
        running.id[:16]: "running", used_up.id[:16]: "used up", spent.id[:16]: "its ε is spent",
        expired.id[:16]: "expired", early.id[:16]: "begins 1970-01-01 00:30 UTC", revoked.id[:16]: "revoked by bank",
        own.id[:16]: "running", half.id[:16]: "waits for bank",
    }  # fmt: skip
    counting = text[text.index("Grants that count<") : text.index("Grants that count no more")]
    assert {id for id in told if id in counting} == {g.id[:16] for g in (running, early, own)}
    assert f"grant approve {half.id[:16]} " in text and f"grant revoke {running.id[:16]} " in text
    assert f"grant revoke {own.id[:16]}" not in text and "made by a job itself" in text


def test_a_grant_ends_at_its_very_last_moment(place):
    place.publish()
    id = place.grant().id[:16]
    assert states(place.show(now=1_999.999))[id][3] == "running"
    assert states(place.show(now=2_000.0))[id][3] == "expired"


def test_uses_left_and_who_used_what_when(place):
    place.publish()
    grant = place.grant(uses=3)
    place.use(grant, "r1", spent=ONE // 2)
    place.use(grant, "r2")
    text = place.show()
    row = states(text)[grant.id[:16]]
    assert row[4:8] == ["1 and 1 under way", "1", "1.5", "1.5"]
    uses = [row for row in Read(text).rows if len(row) == 9 and row[2] in ("r1", "r2")]
    assert {row[2]: row[3:5] + row[6:] for row in uses} == {
        "r1": ["credit", "lab", "done", "1", "0.5"],
        "r2": ["credit", "lab", "under way", "1", ""],
    }
    assert uses[0][0] == "1970-01-01 00:16:40 UTC"


def test_a_standing_grant_is_for_whoever_comes(place):
    place.publish()
    place.consent.standing("credit", ("horizontal",), log=LOG)
    row = next(iter(states(place.show()).values()))
    assert words(row[1]) == "whoever comesstanding" and row[5] == row[7] == "no limit" and row[8] == "no end"


# ------------------------------------------------------------------------------------------------ what waits


def test_a_request_waits_with_the_commands_that_decide_it(place, monkeypatch, tmp_path):
    """What the page spells out is run as it stands, and the request waits no more."""
    with Ledger.open(place.home.ledger, Identity.load_or_create(place.home.coordinator, "coordinator")) as ledger:
        log = ledger.log
    place.consent.publish(place.card, log=log)
    terms = place.terms(not_before=0, not_after=int(time.time() * 1000) + DAY)
    ids = []
    for uses in (1, 2):
        statement = GrantRequest(dataclasses.replace(terms, uses=uses)).sign(place.lab, log=log)
        ids.append(place.consent.receive(statement, place.lab.card))
    text = escapes.unescape(html(gather(place.home, "bank")))
    commands = re.findall(r"fedseal grant .*(?=\n|</pre>)", text)
    yes, no = commands[0].removesuffix("</pre>"), commands[3].removesuffix("</pre>")
    assert ids[0] in text and "lab asks for credit" in text and place.lab.card.fingerprint in text
    monkeypatch.chdir(tmp_path)
    for command, id in ((yes, ids[0]), (no, ids[1])):
        assert id[:16] in command
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    after = gather(place.home, "bank")
    assert not after.waiting and [account.grant.terms.uses for account in after.accounts] == [1]


def test_what_a_request_asks_for_is_told_and_what_the_card_does_not_allow_is_named(place):
    place.publish()
    place.ask(kinds=("vertical",), purpose="advertising", job="ab" * 32, receivers=(), private_only=False, epsilon=0)
    text = words(place.show())
    for told in (
        "in jobs of kind</td><td>vertical",
        "for</td><td>advertising",
        "results go to</td><td>nobody",
        "ab" * 32,
    ):
        assert told in text, told
    assert "kind vertical is not on its card" in text and "purpose advertising is not on its card" in text
    assert "only with noise" not in text


def test_a_request_for_what_is_not_published_says_so(place):
    place.ask()
    assert "the dataset is not published" in words(place.show())


# ------------------------------------------------------------------------------------------------ a local home, a node


def test_own_refusals_on_the_ledger_of_a_local_home_are_shown_and_no_others(place):
    coordinator, other = Identity.load_or_create(place.home.coordinator, "coordinator"), Identity.create("other")
    with Ledger.open(place.home.ledger, coordinator) as ledger:
        for who in (place.identity, other):
            ledger.append([
                Statement.make(who, log=ledger.log, kind=kind, run="r9", body=body)
                for kind, body in (
                    ("card", {"card": who.card.to_dict()}),
                    ("refusal", {"code": f"of-{who.name}", "topics": ["uses", "time"]}),
                )
            ])  # fmt: skip
    text = words(place.show())
    assert "of-bank: uses, time" in text and "of-other" not in text


def test_a_node_says_how_it_is(place, tmp_path):
    settings = Settings(
        "bank", "fed.example.org:9443", sources={"credit": Source("/data/credit.csv")}, limits={"*": 8.0}
    )
    node = NodeFolder(place.folder)
    node.save(settings)
    text = words(place.show())
    assert "Not running" in text and "/data/credit.csv" in text and "whoever the coordinator admits" in text
    node.pause(True)
    node.save(dataclasses.replace(settings, consent="ask"))
    from types import SimpleNamespace

    account = SimpleNamespace(
        run="r5", job="credit-score", kind="horizontal", step="query.join", round=0, problem="budget: too much", refused=True
    )  # fmt: skip
    Activity(place.folder / "activity.db").note(account)
    text = words(place.show(now=time.time()))
    assert "Paused:" in text and "each use needs a grant" in text
    assert ["credit-score", "r5", "budget: too much"] in [row[1:] for row in Read(place.show()).rows]
    assert "8" in next(row for row in Read(place.show()).rows if len(row) == 9 and row[0].startswith("credit"))[7]


def test_a_password_in_a_url_is_not_on_the_page(place):
    source = Source("postgresql://bank:hunter2@db/credit", "SELECT * FROM x")
    NodeFolder(place.folder).save(Settings("bank", "f:1", sources={"credit": source}))
    assert "hunter2" not in place.show() and "db/credit" in place.show()


@pytest.mark.parametrize("name", [None, "nobody", "../bank", "lab"])
def test_an_owner_who_is_not_here_is_one_line_with_those_who_are(place, name):
    for party in ("bank", "bureau"):
        place.home.party(party).mkdir(parents=True, exist_ok=True)
        Budget(place.home.party(party) / "budget.db")
    with pytest.raises(UsageError, match="allowed: bank, bureau"):
        _whose(place.home, name)
    assert _whose(place.home, "bureau") == "bureau"


def test_the_only_owner_needs_no_name(place):
    place.publish()
    Identity.load_or_create(place.home.party("engineer"), "engineer")  # has keys and no data
    assert _whose(place.home, None) == "bank"


# ------------------------------------------------------------------------------------------------ the board


def test_requests_on_the_board_are_taken_up_by_the_command(place):
    coordinator = Identity.load_or_create(place.home.coordinator, "coordinator")
    with Ledger.open(place.home.ledger, coordinator) as ledger:
        asked = GrantRequest(place.terms()).sign(place.lab, log=ledger.log)
        card = Statement.make(place.lab, log=ledger.log, kind="card", run="", body={"card": place.lab.card.to_dict()})
        ledger.commit([card, asked])
    assert not gather(place.home, "bank").waiting
    board = Board(place.home, "bank")
    board.read()
    assert [held.digest for held in gather(place.home, "bank").waiting] == [asked.digest] and board.notes == []


def test_without_a_way_to_the_board_the_page_says_so(place):
    board = Board(place.home, "bank")
    board.read()
    assert "no way to the coordinator" in board.notes[0]
    assert "no way to the coordinator" in html(gather(place.home, "bank", board.notes), now=NOW)


# ------------------------------------------------------------------------------------------------ what a browser gets

HOSTILE = ("<script>alert(1)</script>", "\"><img src=x onerror='a'>", "{{7*7}}", "' onmouseover='a", "a\u202eb\x00\nc")


def filled(place: Place, text: str) -> str:
    """A page with this text wherever one comes from outside."""
    card = dataclasses.replace(place.card)
    object.__setattr__(card, "purposes", (text,))
    object.__setattr__(card, "kinds", (text,))
    terms = place.terms()
    for name in ("dataset", "purpose", "version", "job", "model"):
        object.__setattr__(terms, name, text)
    for name in ("kinds", "algorithms", "receivers"):
        object.__setattr__(terms, name, (text,))
    who = dataclasses.replace(terms.grantee)
    object.__setattr__(who, "name", text)
    object.__setattr__(terms, "grantee", who)
    request = GrantRequest(place.terms())
    object.__setattr__(request, "terms", terms)
    from fl_core.trust.grant_store import Account, Use, Waiting
    from fl_core.trust.grants import Usage

    grant = Grant(place.terms(), (Signer.of(place.identity.card),))
    object.__setattr__(grant, "terms", terms)
    use = Use(text, text, f"bank/{text}", text, 1, 0, "reserved", 5)
    owner = Owner(
        name=text, home=text, listings=[Listing(card, False, 1, (text,))], waiting=[Waiting(text, request)],
        accounts=[Account(grant, grant.approvals, (), Usage(), (use,)), Account(grant, (), (), Usage(), ())],
        composed=[Composed(text, text, 1.0, 1.0, 8.0)], refusals=[Refused(5.0, text, text)], jobs={text: text},
        notes=[text],
    )  # fmt: skip
    return html(owner, now=NOW, policy=POLICY)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_from_outside_becomes_markup(place, text):
    hostile, plain = Read(filled(place, text)), Read(filled(place, "harmless"))
    assert hostile.tags == plain.tags and hostile.links == []
    assert not {tag for tag, _ in hostile.tags} & {"script", "img", "iframe", "form", "button", "input", "a"}
    assert "\u202e" not in filled(place, text)


def state_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-shm", "-wal", ".lock"))
    }


def test_showing_the_page_changes_nothing(place):
    place.publish()
    place.use(place.grant(), "r1")
    place.ask()
    before = state_of(place.home.path)
    for _ in range(3):
        place.show()
    assert state_of(place.home.path) == before


def test_a_file_holds_everything_and_its_own_policy(place, monkeypatch, tmp_path, capsys):
    place.publish()
    out = tmp_path / "page.html"
    words = ["fedseal", "owner", "--name", "bank", "--home", str(place.home.path), "--out", str(out), "--offline"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code and capsys.readouterr().out == f"{out}\n"
    text = out.read_text(encoding="utf-8")
    assert POLICY in escapes.unescape(text) and "refresh" not in text and "credit scoring" in text
    assert not re.search(r"<script|javascript:|https?://|\bsrc=|\bon\w+=|@import|url\(", text)
    assert out.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_the_command_serves_the_page_and_nothing_else(place):
    place.publish()
    words = ["owner", "--listen", "127.0.0.1:0", "--home", str(place.home.path), "--offline"]
    process = subprocess.Popen([sys.executable, "-m", "server.cli.main", *words], stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert "form-action 'none'" in answer.headers["Content-Security-Policy"]
            assert "credit scoring" in answer.read().decode()
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(urllib.request.Request(url, data=b"x"), timeout=20)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}approve", timeout=20)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_file_and_runs_nothing(place, tmp_path):
    attack = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    (tmp_path / "page.html").write_text(filled(place, attack), encoding="utf-8")
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'p'}", "--dump-dom"]
    dom = subprocess.run([*words, f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=120).stdout
    assert "<title>owned</title>" not in dom and attack in escapes.unescape(dom)
    assert not {"script", "img"} & {tag for tag, _ in Read(dom).tags}
