"""The owner's page: no name gets out of its cell, figures are the door's and the ledger's, a browser shows it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import server.serving.page
from clients.predict import PredictClient
from fl_core.errors import FedsealError, UsageError
from fl_core.job import Model as Spec
from fl_core.learning.models import Meta, build_model, save_model
from fl_core.serving import Offer, make_receipt, make_request
from fl_core.trust import certificates
from fl_core.trust.certificates import Pair
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from server.serving.accounts import Accounts, OverQuota, Quota
from server.serving.door import Client, Door
from server.serving.metrics import Metrics
from server.serving.page import CAUSES, Model, Owner, Page
from server.serving.tls import held_by, read_pair
from server.serving.usage import Usage, sum_usage
from server.web.html import ago, duration, page, size, span, sparkline, template

OFFER = Offer(
    name="risk", version="0123456789abcdef", parameters="CKKS_LINEAR", features=30, feature_digest="0" * 64,
    classes=("benign", "malignant"), centre=(0.0,) * 30, unit_bits=(0,) * 30, bits=20, row_bits=20, labels=False,
)  # fmt: skip
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "</td></table><iframe src=//evil.example>",
    "<!--",
    "&lt;b&gt;",
    "a\u202eb\x00\nc",
)


class Place:
    """A door with two clients, its ledger and its page, at a time of its own; nothing listens."""

    def __init__(self, path: Path, clients=("clinic", "lab"), model="risk", offer=OFFER, notes=()) -> None:
        self.now = [1_700_000_000.0]
        self.owner = Identity.load_or_create(path / "owner", "model-owner")
        self.identities = {name: Identity.create(name if name.isalnum() else "x") for name in clients}
        self.ledger = Ledger.open(path / "ledger.db", self.owner)
        self.accounts = Accounts(path / "accounts.db", clock=lambda: self.now[0])
        self.clients = {name: Client(identity.card) for name, identity in self.identities.items()}
        self.metrics = Metrics(self.clients, clock=lambda: self.now[0])
        self.quota = Quota(1000, 50.0)
        door = Door(self.owner, self.ledger, self.accounts, self.clients, self.quota, watcher=self.metrics)
        owner = Owner("model-owner", "0.0.0.0:9450", ("models.example.org",), "/home/a.pem", 1.8e9, "f" * 64, "l.db", 8)
        self.models = [Model.of(dataclasses.replace(offer, name=model))]
        self.page = Page(
            door, self.ledger, self.metrics, owner, models=lambda: self.models, notes=lambda: list(notes)
        )  # fmt: skip

    def block(self, client: str, rows: int, model="risk", seconds=0.02, commit=True) -> None:
        """One that is answered, as the door counts it."""
        body = {"model": model, "version": "1", "form": "columns", "key": "0" * 64, "rows": rows, "sent": "1" * 64}
        request = make_request(self.identities[client], "Predict", self.owner.card.fingerprint, **body)
        self.accounts.take(client, request.body["nonce"], rows, self.quota)
        card = self.identities[client].card
        receipt = make_receipt(self.owner, self.ledger.log, request, card, answers="2" * 64, received=1000, answered=24)
        if commit:
            self.ledger.commit([receipt])
        else:
            self.accounts.keep(receipt)
        self.metrics.served(client=client, model=model, version="1", rows=rows, seconds=seconds)

    def close(self) -> None:
        self.page.close()
        self.accounts.close()
        self.ledger.close()


@pytest.fixture
def make(tmp_path):
    made = []

    def build(**options) -> Place:
        made.append(Place(tmp_path / str(len(made)), **options))
        return made[-1]

    yield build
    for place in made:
        place.close()


class Read(HTMLParser):
    """A page's tags with their attributes, and the text of its cells by row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.rows, self._cell = [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] += data

    def row(self, first: str, columns: int) -> list[str]:
        """The row of so many cells that starts so, blanks made one."""
        (found,) = [
            [" ".join(cell.split()) for cell in row] for row in self.rows if len(row) == columns and row[0] == first
        ]
        return found


def get(url: str, path="") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url + path, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# ------------------------------------------------------------------------------------------------ names


def fill(make, name: str) -> str:
    """The page with this name wherever one comes from outside."""
    place = make(
        clients=(name, "~"),  # after any of them
        model=name,
        offer=dataclasses.replace(OFFER, version=name, classes=(name, "b"), parameters=name),
        notes=[f"{name} is served"],
    )
    place.block(name, 5, model=name)
    place.metrics.refused(client=name, code=name)
    place.metrics.refused(client="", code="refused")
    return place.page.html()


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_becomes_markup(make, name):
    """The same tags with the same attributes as with a harmless name, but for the words of a chart."""
    plain, hostile = Read(fill(make, "harmless")), Read(fill(make, name))
    assert hostile.tags == plain.tags
    assert not {tag for tag, _ in hostile.tags} & {"script", "img", "iframe", "object", "form", "base", "a"}
    assert not [a for _, attributes in hostile.tags for a, _ in attributes if a.startswith("on")]


def test_a_name_of_direction_marks_and_controls_is_shown_as_such(make):
    shown = fill(make, "a\u202eb\x00\nc")
    assert "a\ufffdb\ufffd\ufffdc" in shown and "\u202e" not in shown and "\x00" not in shown


def test_a_name_is_shown_as_it_is(make):
    place = make(clients=("<b>",))
    assert Read(place.page.html()).row("<b>", 7)[0] == "<b>"


def test_the_words_of_a_chart_stay_in_their_attribute():
    tags = Read(str(sparkline([1, 2], '"><script>x</script>'))).tags
    assert [tag for tag, _ in tags] == ["svg", "rect", "rect", "rect"]


def test_a_template_without_a_value_is_an_error_and_not_a_gap():
    with pytest.raises(Exception, match="missing"):
        page(template("{{ missing }}"), title="x")


def test_the_page_runs_nothing_and_fetches_nothing(make):
    place = make()
    place.block("clinic", 5)
    shown = place.page.html()
    assert '<meta http-equiv="refresh" content="10">' in shown
    assert not re.search(r"<script|javascript:|https?://|\bsrc=|\bon\w+=|@import|url\(", shown)


# ------------------------------------------------------------------------------------------------ figures


def test_figures_are_those_of_the_door_the_accounts_and_the_ledger(make):
    place = make()
    for rows, seconds in ((100, 0.010), (200, 0.020), (1, 0.500)):
        place.block("clinic", rows, seconds=seconds)
    place.block("lab", 7, model="other", commit=False)
    for code, client in (("quota", "clinic"), ("quota", "clinic"), ("signature", "")):
        place.metrics.refused(client=client, code=code)
    place.now[0] += 90
    read = Read(place.page.html())
    assert "1 min 30 s, since 2023-11-14 22:13:20 UTC" in place.page.html()
    assert read.row("clinic", 7)[1:] == ["no end", "301", "699", "301", "2", "1 min 30 s ago"]
    assert read.row("lab", 7)[1:] == ["no end", "7", "993", "0", "0", "1 min 30 s ago"]
    speed = [row for row in read.rows if len(row) == 7 and row[0] == "risk"][1]  # after that of the models
    assert [*speed[1:5], speed[6]] == ["3", "20.0 ms", "500 ms", "500 ms", "301"]
    assert read.row("clinic", 5) == ["clinic", "risk", "3", "301", "3.0 KiB"]
    assert read.row(CAUSES["quota"], 4)[1:] == ["quota", "2", "clinic 2"]
    assert read.row(CAUSES["signature"], 4)[1:] == ["signature", "1", "not known 1"]
    tiles = {words: value for value, words in place.page.facts()["tiles"]}
    assert tiles["rows since the start"] == "308" and tiles["rows in all"] == "301"
    assert (tiles["receipts on the ledger in all"], tiles["receipts on their way there"]) == ("3", "1")


def test_rows_of_before_a_restart_are_in_all_and_in_the_quota_and_not_since_the_start(make, tmp_path):
    place = make()
    place.block("clinic", 40)
    place.metrics = Metrics(place.clients, clock=lambda: place.now[0])
    again = Page(place.page._door, place.ledger, place.metrics, place.page._owner, models=lambda: place.models)
    client = next(c for c in again.facts()["clients"] if c["name"] == "clinic")
    assert (client["today"], client["ever"], client["last"], place.metrics.rows) == (40, 40, 0.0, 0)
    place.now[0] += 86400
    assert next(c for c in again.facts()["clients"] if c["name"] == "clinic")["today"] == 0


def test_a_quota_that_is_used_up_and_a_time_that_has_ended_are_seen(make):
    place = make()
    place.clients["lab"] = Client(place.clients["lab"].card, 1_699_900_000.0)
    place.block("clinic", 1000)
    with pytest.raises(OverQuota):
        place.block("clinic", 1)
    shown = place.page.html()
    assert Read(shown).row("lab", 7)[1] == "ended 2023-11-13"
    assert Read(shown).row("clinic", 7)[3] == "0" and 'class="much"' in shown


def test_many_classes_do_not_fill_the_page(make):
    place = make(offer=dataclasses.replace(OFFER, classes=tuple(f"class{i}" for i in range(1000))))
    assert "and 994 more" in " ".join(place.page.html().split()) and "class6" not in place.page.html()


@pytest.mark.parametrize(
    ("change", "said"),
    [({"layers": (30, 32, 1)}, "network 30-32-1"), ({}, "linear"), ({"labels": True}, "labels only")],
)
def test_kinds_of_models_are_told_apart(make, change, said):
    assert said in make(offer=dataclasses.replace(OFFER, **change)).page.html()


def test_a_part_of_a_vertical_model_is_told_as_one(make):
    place = make()
    offer = SimpleNamespace(name="both", version="2", run="cafe", algorithm="trees")
    place.models.append(Model.of_part(offer, 569))
    told = Read(place.page.html()).row("both", 7)
    assert told[2:5] == ["part of run cafe, trees", "ids of 569 rows", "parts of scores"]


def test_every_cause_of_a_refusal_has_words():
    """Of the errors of `fl_core`, of the services, and what is no error of ours."""

    def kinds(kind: type[FedsealError]) -> set[type[FedsealError]]:
        return {kind}.union(*(kinds(sub) for sub in kind.__subclasses__()))

    ours = ("fl_core.errors", "server.serving.")
    codes = {kind.code for kind in kinds(FedsealError) if kind.__module__.startswith(ours)}
    assert {"busy", "context", "quota"} <= codes
    assert codes | {"internal"} <= set(CAUSES)


def test_a_large_ledger_is_added_in_steps_and_no_entry_twice(make, monkeypatch):
    monkeypatch.setattr(server.serving.page, "READ_SECONDS", -1.0)
    place = make()
    for rows in (1, 2, 3, 4, 5):
        place.block("clinic", rows)
    behind = []
    for _ in range(4):
        facts = place.page.facts()
        behind.append((facts["behind"], sum(line.rows for line in facts["used"])))
    assert behind == [(4, 1), (3, 3), (2, 6), (1, 10)]  # the first entry is the log's own
    monkeypatch.undo()
    assert "are still to be added" not in place.page.html()
    facts = place.page.facts()
    assert sum_usage(place.ledger) == facts["used"]


def test_sums_go_on_after_a_failure_in_the_middle(make, monkeypatch):
    place = make()
    for rows in (1, 2, 4):
        place.block("clinic", rows)
    usage, entries = Usage(place.ledger), Ledger.entries

    def failing(self, *args, **options):
        for i, entry in enumerate(entries(self, *args, **options)):
            if i == 2:
                raise OSError
            yield entry

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(Ledger, "entries", failing)
        usage.read()
    assert usage.read() == 0 and usage.lines() == sum_usage(place.ledger)
    assert [(line.blocks, line.rows, line.bytes) for line in usage.lines()] == [(3, 7, 3 * 1024)]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3725, "1 h 2 min"), (90061, "1 d 1 h"), (86400 * 400, "400 d")],
)
def test_spans_in_words(seconds, words):
    assert span(seconds) == words


def test_figures_in_words():
    assert [duration(s) for s in (0.00321, 0.0321, 0.321, 1.25, 61.0)] == [
        "3.21 ms", "32.1 ms", "321 ms", "1.25 s", "61.0 s",
    ]  # fmt: skip
    assert [size(n) for n in (0, 1023, 1536, 5 << 20, 1 << 50)] == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "1024.0 TiB"]
    assert (ago(10.0, 0.0), ago(10.0, 9.5), ago(100.0, 30.0)) == ("never", "just now", "1 min 10 s ago")


# ------------------------------------------------------------------------------------------------ over HTTP


def test_page_metrics_and_health_over_http(make):
    place, said = make(), []
    place.block("clinic", 5)
    url = place.page.open(("127.0.0.1", 0), said.append)
    assert said == [f"page: {url}"]
    status, shown = get(url)
    assert status == 200 and "Encrypted inference" in shown and Read(shown).row("clinic", 7)[2] == "5"
    assert 'fedseal_rows_total{client="clinic",model="risk",version="1"} 5.0' in get(url, "metrics")[1]
    assert 'fedseal_client_rows_today{client="clinic"} 5.0' in get(url, "metrics")[1]
    assert get(url, "health") == (200, "serving\n")
    place.page.stopping = True
    assert get(url, "health") == (503, "stopping\n") and "Stopping." in get(url)[1]
    assert get(url, "..%2f..%2fetc/passwd")[0] == 404


def test_a_page_that_others_reach_is_said(make):
    said = []
    make().page.open(("0.0.0.0", 0), said.append)
    assert "the page has no login" in said[1]


def test_figures_are_whole_while_blocks_are_served(make):
    """The page reads while others write: no error, and the last look has all."""
    import threading

    place = make()
    url = place.page.open(("127.0.0.1", 0), lambda text: None)

    def work(client: str) -> None:
        for _ in range(20):
            place.block(client, 1)

    threads = [threading.Thread(target=work, args=(name,)) for name in place.clients]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert get(url)[0] == 200 and get(url, "metrics")[0] == 200
    assert [line.rows for line in place.page.facts()["used"]] == [20, 20]


# ------------------------------------------------------------------------------------------------ a browser

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_and_runs_nothing(make, tmp_path):
    """What the browser made of it: a hostile name would have changed the title or added an element."""
    attack = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    place = make(clients=("clinic", attack), model=f"model {attack}")
    place.block(attack, 12, model=f"model {attack}")
    url = place.page.open(("127.0.0.1", 0), lambda text: None)
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    ended = subprocess.run([BROWSER, *words, url], capture_output=True, text=True, timeout=120)
    shown = Read(ended.stdout)
    assert "<title>Encrypted inference</title>" in ended.stdout
    assert not {"script", "img"} & {tag for tag, _ in shown.tags}
    assert shown.row(attack, 7)[2] == "12" and f"model {attack}" in [row[0] for row in shown.rows]


# ------------------------------------------------------------------------------------------------ the process


def tls_files(path: Path, days: int = 30, host="localhost") -> tuple[Path, Path, bytes]:
    """A certificate and key of an authority that is not fedseal's own form, and that authority."""
    made = certificates.make_authority("company")
    pair = certificates.issue_server(made, [host], days=days)
    (path / "tls.pem").write_bytes(pair.certificate)
    (path / "tls.key").write_bytes(pair.key)
    return path / "tls.pem", path / "tls.key", made.certificate


def self_signed(start: datetime, end: datetime, hosts=("localhost",)) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(end)
    if hosts:
        names = x509.SubjectAlternativeName([x509.DNSName(h) for h in hosts])
        builder = builder.add_extension(names, critical=False)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Pair(pem, key.private_bytes(*form))


@pytest.mark.parametrize("fault", ["other key", "expired", "early", "no name", "no pem", "no key", "missing", "none"])
def test_a_certificate_of_ones_own_must_hold(tmp_path, fault):
    now, day = datetime.now(UTC), timedelta(days=1)
    start = now + day if fault == "early" else now - 2 * day
    end = now - day if fault == "expired" else now + 2 * day
    pair = self_signed(start, end, () if fault == "no name" else ("localhost", "*.example.org"))
    other = self_signed(start, end)
    files = tmp_path / "tls.pem", tmp_path / "tls.key"
    files[0].write_bytes(b"nothing" if fault == "no pem" else pair.certificate)
    if fault != "missing":
        files[1].write_bytes({"other key": other.key, "no key": pair.certificate}.get(fault, pair.key))
    if fault == "none":
        assert read_pair(*files) == pair
        held = held_by(pair.certificate, "x")
        assert held.hosts == ("localhost", "*.example.org") and held.end == pytest.approx(end.timestamp(), abs=1)
        return
    said = {
        "other key": "do not belong together", "expired": "not now", "early": "not now", "no name": "it holds no name",
        "no pem": "not a PEM certificate", "no key": "not a PEM private key", "missing": "cannot be read",
    }[fault]  # fmt: skip
    with pytest.raises(UsageError, match=said) as caught:
        read_pair(*files)
    assert "PRIVATE" not in str(caught.value)


def fedseal(path: Path, *words: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "server.cli.main", *map(str, words), "--home", str(path / "home")]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.e2e
def test_serve_with_a_page_and_a_certificate_of_ones_own(tmp_path):
    """The real process: what it says, what its page shows of a prediction, and its end."""
    spec = Spec("logistic", classes=("no", "yes"))
    net = build_model(spec, input_shape=(4,), image_shape=None, num_classes=2, seed=1)
    names = ("a", "b", "c", "d")
    save_model(tmp_path / "model.pt", net, spec, Meta((4,), None, ("no", "yes"), names, np.zeros(4), np.ones(4)))
    clinic = Identity.load_or_create(tmp_path / "clinic", "clinic")
    (tmp_path / "clinic.card").write_text(json.dumps(clinic.card.to_dict()))
    certificate, key, authority = tls_files(tmp_path)
    words = ["--model", f"risk={tmp_path / 'model.pt'}", "--client", tmp_path / "clinic.card", "--capacity", 2]
    tls = ["--tls-cert", certificate, "--tls-key", key]
    running = fedseal(tmp_path, "serve", *words, *tls, "--listen", "127.0.0.1:0", "--page", "0")
    try:
        said, end = "", time.monotonic() + 60
        while "serving 1 models" not in said:
            assert time.monotonic() < end and running.poll() is None, said
            said += running.stderr.readline()
        url = re.search(r"page: (http://127\.0\.0\.1:\d+/)", said)[1]
        port = re.search(r"on 127\.0\.0\.1:(\d+)", said)[1]
        assert "authority.pem" not in said
        with PredictClient(
            f"localhost:{port}", authority=authority, identity=clinic, folder=tmp_path / "state"
        ) as client:
            client.predict(np.ones((3, 4)), names)
        while "no receipt on the ledger yet" in get(url)[1] and time.monotonic() < end:
            time.sleep(0.1)
        assert Read(get(url)[1]).row("clinic", 7)[2:6] == ["3", "99,997", "3", "0"]
        assert "5 exact scores give the weights of risk" in get(url)[1] and "at most 2 are worked" in get(url)[1]
        assert get(url, "health")[0] == 200
        running.send_signal(signal.SIGTERM)
        said += running.communicate(timeout=30)[1]
    finally:
        running.kill()
    assert running.returncode == 0 and "3 rows served, 0 calls refused" in said
    with pytest.raises(OSError):
        get(url)
