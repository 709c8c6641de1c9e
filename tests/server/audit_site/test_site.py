"""The auditor's pages: nothing can be written through them, no name becomes markup, what they show is the ledger's."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fl_core.errors import UsageError
from fl_core.trust.checkpoint import parse_note
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.verify import verify_consistency_proof, verify_inclusion_proof, verify_ledger
from server.audit_site import checking
from server.web.site import FORMS
from tests.fl_core.trust.pack_scene import JOB
from tests.server.audit_site.scenes import Read, scene_at

ALL = (
    "/",
    "/entries",
    "/entry/5",
    "/run?id=run-1",
    "/search?q=a",
    "/search?q=abababab",
    "/checkpoints",
    "/verify",
    "/nope",
)
FILES = ("/entry/5/raw", "/entry/5/proof", "/checkpoint", "/consistency?old=4&new=6")


# ------------------------------------------------------------------------------------------------ reading only


def state_of(folder: Path) -> dict[str, str]:
    """Every file below, by its content; SQLite's memory shared between readers is none."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


def test_no_page_writes_anything_anywhere(scene, pages, tmp_path):
    before = state_of(tmp_path)
    for path in (*ALL, *FILES):
        pages.get(path)
    pages.verdict()
    assert state_of(tmp_path) == before and not (tmp_path / "home").exists()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_there_is_no_other_way_than_asking(shown, method):
    for path in (*ALL, *FILES):
        assert shown.get(path, method=method).status == 405


def test_the_ledger_opens_where_nobody_may_write(scene, tmp_path, pages_of):
    scene.ledger.close()
    tmp_path.joinpath("ledger.db").chmod(0o400)
    pages = pages_of(scene.path, tmp_path / "home")
    assert "run-1" in pages.text("/") and "Holds:" in pages.text("/entry/5")


# ------------------------------------------------------------------------------------------------ what a browser gets


@pytest.mark.parametrize("path", ALL)
def test_a_page_runs_nothing_fetches_nothing_and_asks_only_this_site(shown, path):
    answer = shown.get(path)
    assert answer.headers["Content-Security-Policy"] == FORMS and "script" not in FORMS
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert not re.search(r"<script|javascript:|https?://|\bon\w+=|@import|url\(", answer.text)
    read = Read(answer.text)
    assert read.own_links()
    assert not {tag for tag, _ in read.tags} & {"script", "img", "iframe", "object", "base", "embed", "textarea"}
    assert all("method" in attributes for tag, attributes in read.tags if tag == "form")
    assert answer.text.count('method="get"') == answer.text.count("<form")


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_downloaded_and_never_shown(shown, path):
    answer = shown.get(path)
    assert answer.status == 200 and answer.headers["Content-Disposition"].startswith('attachment; filename="')
    assert answer.headers["X-Content-Type-Options"] == "nosniff" and "text/html" not in answer.headers["Content-Type"]


def test_every_link_of_every_page_leads_somewhere(pages):
    seen, waiting = set(), ["/"]
    while waiting and len(seen) < 150:
        path = waiting.pop(0)
        if path in seen or path.startswith("/search") or urlsplit(path).path == "/consistency":
            continue
        seen.add(path)
        answer = pages.get(path)
        assert answer.status in (200, 303), (path, answer.text)
        if "text/html" in answer.headers.get("Content-Type", ""):
            waiting += Read(answer.text).own_links()
    assert {"/", "/verify", "/checkpoints", "/entry/5", "/entry/5/proof", "/run?id=run-1"} <= seen


# ------------------------------------------------------------------------------------------------ names

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "' onmouseover='alert(1)",
    "{{7*7}}{%raw%}",
    "</td></table><iframe src=//evil.example>",
    "javascript:alert(1)//",
    "<!--",
    "a\u202eb\x00\nc",
)


def fill(path: Path, people, name: str, pages_of) -> dict[str, str]:
    """Every page of a ledger with this text wherever one comes from outside."""
    scene = scene_at(path, people)
    run = "".join(c for c in name if "\x21" <= c <= "\x7e")[:128]
    view = {
        "kind": name,
        "name": name,
        "party": [{"name": name}],
        name if name.isascii() and name.isprintable() else "x": name,
    }
    odd = {"party": name, "code": name, "step": name, "status": name, "topics": [name], "epsilon": name, "round": 1}
    record = {
        "round": 1,
        "metrics": {k: name for k in (name, "loss") if k.isascii() and k.isprintable()},
        "missing": [name],
    }
    said = [
        ("coordinator", "job", {"job": name, "view": view, "submitted": {"name": name}}),
        ("coordinator", "roster", {"parties": ["a", "b"], "min_parties": 1}),
        ("a", "join", {"role": name, "grant": name, "self_issued": False}),
        ("a", "update", odd), ("a", "refusal", odd), ("coordinator", "round", record), ("a", "dataset", {"act": name, "name": name}),
        ("a", "grant", {"grant": {"terms": {"owner": name, "dataset": name, "grantee": {"name": name}, "purpose": name}}}),
        ("coordinator", "drop", odd), ("coordinator", "end", {"model": name, "status": name}), ("coordinator", "failure", odd),
    ]  # fmt: skip
    scene.ledger.commit([scene.say(by, kind, body, run) for by, kind, body in said])
    scene.ledger.close()
    pages = pages_of(path, path.parent / "home")
    shown = {place: pages.text(place) for place in ("/", "/entries", "/checkpoints")}
    shown |= {f"/entry/{seq}": pages.text(f"/entry/{seq}") for seq in range(4, 15)}
    shown["verify"] = pages.verdict()
    shown["run"] = pages.text("/run", id=run)
    for param in ("q", "kind", "party", "run", "by", "from", "page", "id", "size"):
        for place in ("/", "/entries", "/search", "/run", "/checkpoint"):
            if not (place == "/search" and param == "q"):
                shown[f"{place} {param}"] = pages.get(place, **{param: name}).text
    shown["search"] = pages.text("/search", q=name)
    return shown


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_from_outside_becomes_markup(tmp_path, people, pages_of, name):
    """The same tags with the same attributes on every page as with a harmless text of the same place."""
    plain = fill(tmp_path / "plain" / "l.db", people, "harm-less" if name.isascii() else "harm\u00e9", pages_of)
    hostile = fill(tmp_path / "hostile" / "l.db", people, name, pages_of)
    assert hostile.keys() == plain.keys()
    for place in plain:
        read = Read(hostile[place])
        read.own_links()
        assert not {tag for tag, _ in read.tags} & {"script", "img", "iframe", "object", "base"}, place
        assert not [a for _, attributes in read.tags for a in attributes if a.startswith("on")], place
        if " " not in place and place != "search":  # what is not understood, or not found, is another page
            assert read.tags == Read(plain[place]).tags, place


def test_a_text_is_shown_as_it_is_and_controls_as_such(tmp_path, people, pages_of):
    shown = fill(tmp_path / "l.db", people, "<b>&\u202e", pages_of)
    assert Read(shown["/"]).table("run", "name")[0][1] == "<b>&\ufffd"
    assert not any("\u202e" in text or "<b>&" in text for text in shown.values())


def test_columns_of_a_forged_file_become_no_markup(scene, tmp_path, pages_of):
    scene.ledger.close()
    evil = "<img src=x onerror=alert(1)>"
    db = sqlite3.connect(scene.path)
    db.execute("UPDATE entries SET run = ?, kind = ?, by = ? WHERE seq IN (7, 8)", (evil, evil, evil))
    db.execute("UPDATE entries SET leaf = ? WHERE seq = 9", (evil,))
    db.commit()
    db.close()
    pages = pages_of(scene.path, tmp_path / "home")
    for path in ("/", "/entries", "/entry/7", "/entry/8", "/entry/9"):
        assert "<img" not in pages.text(path)
    assert "columns say something else" in pages.text("/entry/7")
    assert "Does not hold" in pages.text("/entry/9") and "No entry of this format" in pages.text("/entry/9")


# ------------------------------------------------------------------------------------------------ what is asked for


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/nope", 404, "no page /nope"),
        ("/entry/abc", 400, "allowed: a whole number"),
        ("/entry/-1", 400, "allowed: a whole number"),
        ("/entry/99999", 404, "the ledger has"),
        ("/entry/99999999999999999999", 400, "allowed: a whole number"),
        ("/entry/1/raw/x", 404, "no page"),
        ("/entry/99999/raw", 404, "no entry"),
        ("/entry/99999/proof", 404, "no entry 99999 under a checkpoint"),
        ("/entry/5?x=1", 400, "allowed: none"),
        ("/run", 404, "no run is named"),
        ("/run?id=nobody", 404, "no entry of it"),
        ("/run?id=a%20b", 400, "without blanks"),
        ("/run?id=run-1&id=run-2", 400, "is given twice"),
        ("/run?id=run-1&round=x", 400, "round"),
        ("/?page=0", 400, "from 1"),
        ("/?page=9", 404, "there are 1"),
        ("/?kind=none", 400, "allowed: horizontal"),
        ("/?status=done", 400, "allowed: open, ended"),
        ("/?party=%3Cb%3E", 400, "small letters"),
        (f"/?q={'a' * 201}", 400, "201 characters"),
        ("/?order=name", 400, "allowed: q, kind"),
        ("/entries?from=1e3", 400, "whole number"),
        ("/entries?kind=x", 400, "allowed: aggregate"),
        ("/checkpoint?size=5", 404, "no checkpoint over 5"),
        ("/checkpoint?size=0", 400, "from 1"),
        ("/consistency", 400, "sizes of two checkpoints"),
        ("/consistency?old=6&new=4", 400, "the smaller one first"),
        ("/consistency?old=5&new=6", 404, "no checkpoint over 5"),
        ("/verify?again=2", 400, "allowed: 1"),
        ("/entry/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404, "no page"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_a_page_of_one_line(shown, path, status, words):
    answer = shown.get(path)
    assert answer.status == status and words in answer.text.replace("&#39;", "'")
    assert "Traceback" not in answer.text and Read(answer.text).own_links()


def test_a_file_that_is_no_ledger_is_refused_before_anything_listens(tmp_path, pages_of):
    (tmp_path / "x.db").write_bytes(b"none")
    with pytest.raises(UsageError, match="not a fedseal ledger"):
        pages_of(tmp_path / "x.db", tmp_path)


def test_a_ledger_that_goes_away_is_one_line_and_comes_back(scene, pages, tmp_path):
    scene.path.rename(tmp_path / "moved.db")
    answer = pages.get("/")
    assert answer.status == 503 and "no fedseal ledger here" in answer.text
    (tmp_path / "moved.db").rename(scene.path)
    assert pages.get("/").status == 200


# ------------------------------------------------------------------------------------------------ runs and entries


def test_runs_are_filtered_and_newest_first(pages):
    def shown(**query):
        return [row[0] for row in Read(pages.text("/", **query)).table("run", "name")]

    assert shown() == ["run-3", "run-2", "run-1"]
    assert shown(status="ended") == ["run-1"] and shown(kind="horizontal", status="refused") == ["run-2"]
    assert shown(party="c") == ["run-3", "run-2", "run-1"] and shown(party="nobody") == []
    assert shown(q="run-2") == ["run-2"] and shown(q="digi") == shown() and shown(q=JOB[:8]) == shown()


def test_pages_of_runs_hold_each_once(tmp_path, people, pages_of):
    scene = scene_at(tmp_path / "l.db", people)
    names = [f"r{i}" for i in range(120)]
    scene.ledger.append([scene.say("a", "update", {"round": 1}, name) for name in names])
    pages, found, link = pages_of(scene.path, tmp_path), [], "/"
    while link:
        text = pages.text(link)
        found += [row[0] for row in Read(text).table("run", "name")]
        link = next((one for one in Read(text).links if one.endswith(f"page={len(found) // 50 + 1}")), "")
    assert found == names[::-1]
    scene.ledger.close()


def test_pages_of_entries_hold_each_once_in_both_directions(tmp_path, people, pages_of):
    scene = scene_at(tmp_path / "l.db", people)
    scene.ledger.append([scene.say("a" if i % 3 else "b", "update", {"round": i}, f"r{i % 2}") for i in range(530)])
    pages = pages_of(scene.path, tmp_path)
    for start, wanted in (("/entries", None), ("/entries?by=a", "a"), ("/run?id=r1", "r1")):
        expected = [e.seq for e in scene.ledger.entries() if wanted in (None, e.by, e.run)]
        found, link, last = [], start, ""
        while link:
            read = Read(pages.text(link))
            found += [int(row[0]) for row in read.table("entry", "ordered")]
            last, link = link, next((one for one in read.links if "from=" in one), "")
        assert found == expected
        back, link = [], last
        while link:
            read = Read(pages.text(link))
            back = [int(row[0]) for row in read.table("entry", "ordered")] + back
            link = next((one for one in read.links if "before=" in one), "")
        assert back == expected
    scene.ledger.close()


def test_the_page_of_a_run_shows_its_course(scene, pages):
    read = Read(pages.text("/run", id="run-1"))
    rounds = read.table("round", "accuracy")
    assert [row[0] for row in rounds] == ["1", "2", "3"] and rounds[1][1:4] == ["0.2", "nan", "2.83876e+06"]
    parties = {row[0]: row for row in read.table("party", "role")}
    assert (
        set(parties) == {"a", "b", "c", "coordinator"} and parties["a"][2] == "yes" and parties["coordinator"][2] == ""
    )
    statements = [int(row[0]) for row in read.table("entry", "ordered", "kind", "signed by", "says")]
    assert statements == [entry.seq for entry in scene.ledger.entries(run="run-1")]
    refused = Read(pages.text("/run", id="run-2")).table("entry", "ordered", "kind", "by")
    assert [(row[2], row[3], row[4]) for row in refused] == [
        ("refusal", "b", "step query.join, code budget"),
        ("failure", "coordinator", "code budget, status refused"),
    ]


def test_consent_is_told_as_the_join_statements_name_it(tmp_path, people, pages_of):
    scene = scene_at(tmp_path / "l.db", people)
    marks = {"a": {"self_issued": True}, "b": {"standing": True}, "c": {}}
    joins = [scene.say(n, "join", {"role": "trainer", "grant": n * 64, **mark}, "r") for n, mark in marks.items()]
    scene.ledger.append(
        [*joins, scene.say("a", "update", {"epsilon": "0.25"}, "r"), scene.say("a", "update", {"epsilon": "0.5"}, "r")]
    )
    rows = Read(pages_of(scene.path, tmp_path).text("/run", id="r")).table("party", "role")
    assert [row[3] for row in rows] == [
        "made by the job itself",
        "standing: for whoever comes",
        "granted to the submitter",
    ]
    assert [row[4] for row in rows] == ["a" * 16, "b" * 16, "c" * 16] and rows[0][5] == "0.5"
    scene.ledger.close()


def test_an_entry_is_shown_as_it_is_signed(scene, pages):
    entry = next(scene.ledger.entries(5, 6))
    text = pages.text("/entry/5")
    assert entry.leaf_hash.hex() in text and scene.ledger.signer(entry).fingerprint in text
    shown = json.dumps(json.loads(entry.encode()), indent=2, ensure_ascii=False)
    assert shown.replace('"', "&#34;").replace("'", "&#39;") in text
    assert pages.get("/entry/5/raw").content == entry.encode()
    size = scene.ledger.checkpoint_sizes()[-1]
    assert f"in its place under the checkpoint over {size} entries" in text


def test_an_entry_that_no_checkpoint_covers_says_so(scene, pages):
    last = scene.ledger.size - 1
    text = pages.text(f"/entry/{last}")
    assert "no checkpoint covers it yet" in text and "Holds:" in text and f"/entry/{last}/proof" not in text
    assert pages.get(f"/entry/{last}/proof").status == 404


def test_a_card_that_was_changed_since_is_named(tmp_path, people, pages_of):
    scene = scene_at(tmp_path / "l.db", people)
    scene.ledger.commit([scene.say("a", "update", {"round": 1}, "r")])
    body = {"name": "a", "card": people.parties["a"].card.fingerprint, "reason": "lost", "asked": ""}
    scene.ledger.commit([scene.say("coordinator", "revoke", body, "")])
    pages = pages_of(scene.path, tmp_path)
    assert "its card was rotated or revoked since" in pages.text("/entry/4")
    assert "Holds:" in pages.text("/entry/4")
    scene.ledger.close()


# ------------------------------------------------------------------------------------------------ search


def test_a_text_is_found_as_what_it_is(scene, pages):
    def links(q: str) -> set[str]:
        return {
            link
            for link in Read(pages.text("/search", q=q)).own_links()
            if link not in ("/", "/entries", "/checkpoints", "/verify", "/search")
        }

    assert "/entry/5" in links("5") and "/entries?kind=update" in links("update")
    assert "/entries?by=a" in links("a") and "/run?id=run-2" in links("run-2")
    assert {f"/run?id=run-{i}" for i in (1, 2, 3)} <= links("digits")
    entry = next(scene.ledger.entries(7, 8))
    assert "/entry/7" in links(entry.leaf_hash.hex()[:12].upper())
    assert links("zzz") == set() and links("") == set()
    assert "Nothing is called so" in pages.text("/search", q="zzz")


# ------------------------------------------------------------------------------------------------ proofs


def test_proofs_and_notes_are_what_the_verifier_accepts(scene, pages, tmp_path):
    for seq in (0, 5, 17):
        document = json.loads(pages.get(f"/entry/{seq}/proof").content)
        assert verify_inclusion_proof(document).status == 0 and document["entry"]["seq"] == seq
    sizes = scene.ledger.checkpoint_sizes()
    document = json.loads(pages.get("/consistency", old=sizes[1], new=sizes[-1]).content)
    assert verify_consistency_proof(document).status == 0
    note = pages.get("/checkpoint").text
    assert note.startswith(scene.ledger.checkpoint_at(sizes[-1]))
    assert {line.name for line in parse_note(note).signatures} == {scene.ledger.log, "a", "b", "c"}
    assert verify_ledger(scene.path, since=note).status == 4  # short of quorum, since two runs have no end
    assert pages.get("/checkpoint", size=sizes[0]).text == scene.ledger.checkpoint_at(sizes[0])


# ------------------------------------------------------------------------------------------------ the verdict


def test_the_verdict_is_the_verifiers(scene, pages):
    text = pages.verdict()
    report = verify_ledger(scene.path)
    assert "VALID, BUT SHORT OF QUORUM." in text and report.root in text and report.reason in text
    rows = {row[0]: row[1] for row in Read(pages.text("/verify")).table("run", "its evidence")}
    assert rows == {"run-1": "witnessed", "run-2": "stopped", "run-3": "open"}
    assert "The verifier: witnessed, co-signed by 3, quorum 3" in " ".join(pages.text("/run", id="run-1").split())


@pytest.mark.parametrize("seq", [4, 9, 20])
def test_the_first_fault_is_named_with_a_way_to_it(scene, tmp_path, pages_of, seq):
    entry = next(scene.ledger.entries(seq, seq + 1)).encode()
    scene.ledger.close()
    db = sqlite3.connect(scene.path)
    forged = re.sub(rb'"sig":"(.)', lambda found: b'"sig":"' + (b"1" if found[1] == b"0" else b"0"), entry)
    assert forged != entry
    db.execute("UPDATE entries SET leaf = ? WHERE seq = ?", (forged, seq))
    db.commit()
    db.close()
    pages = pages_of(scene.path, tmp_path / "home")
    text = pages.verdict()
    assert "BROKEN." in text and f'First bad: <a href="/entry/{seq}">' in text
    assert "Does not hold" in pages.text(f"/entry/{seq}") and "Holds:" in pages.text(f"/entry/{seq + 2}")


def test_a_verdict_is_kept_until_the_file_is_written_to(scene, pages, monkeypatch):
    runs = []
    monkeypatch.setattr(checking, "verify_ledger", lambda *a, **k: (runs.append(1), verify_ledger(*a, **k))[1])
    for _ in range(3):
        assert "written to since" not in pages.verdict()
    assert len(runs) == 1
    scene.ledger.append([scene.say("a", "update", {"round": 3}, "run-3")])
    assert "the ledger was written to since" in pages.text("/")
    size = scene.ledger.size
    assert f"{size} over" not in pages.verdict() and len(runs) == 2 and f"over {size}" in pages.verdict()


def test_asked_again_it_is_verified_again_once_and_a_refresh_is_no_new_check(pages, monkeypatch):
    runs = []
    monkeypatch.setattr(checking, "verify_ledger", lambda *a, **k: (runs.append(1), verify_ledger(*a, **k))[1])
    pages.verdict()
    answer = pages.get("/verify", again=1)
    assert answer.status == 303 and answer.headers["Location"] == "/verify"
    pages.verdict()
    assert len(runs) == 2


def test_one_check_runs_at_a_time_and_pages_go_on(pages, monkeypatch):
    begun, go_on, runs = threading.Event(), threading.Event(), []

    def slow(path, **options):
        runs.append(1)
        options["progress"](1000)
        begun.set()
        go_on.wait(20)
        return verify_ledger(path, **options)

    monkeypatch.setattr(checking, "verify_ledger", slow)
    pages.get("/verify")
    assert begun.wait(20)
    for _ in range(3):
        assert pages.get("/verify", again=1).status == 303
        text = pages.text("/verify")
        assert "1,000 of" in text and '<meta http-equiv="refresh" content="1">' in text
    assert "Being verified" in pages.text("/") and pages.get("/entry/5").status == 200
    go_on.set()
    assert "refresh" not in pages.verdict() and len(runs) == 1


def test_a_verifier_that_fails_is_no_verdict(pages, monkeypatch):
    def broken(*args, **options):
        raise OSError("disk gone")

    monkeypatch.setattr(checking, "verify_ledger", broken)
    assert "Not verified.</b> disk gone" in pages.verdict()


def test_a_kept_checkpoint_is_held_against_the_ledger(scene, tmp_path, people, pages_of):
    kept = scene.ledger.last_checkpoint()
    assert "continued" in pages_of(scene.path, tmp_path / "home", since=kept).verdict()
    other = scene_at(tmp_path / "other.db", people)  # the same coordinator's log, issued anew
    for run in ("x", "y", "z"):
        other.run(run)
    assert "history was rewritten" in pages_of(other.path, tmp_path / "home", since=kept).verdict()
    key = Identity.create("somebody").card.ed25519
    assert "another coordinator than expected" in pages_of(scene.path, tmp_path / "home", key=key).verdict()
    other.ledger.close()


def test_a_damaged_file_still_gets_its_verdict(scene, pages):
    scene.ledger.close()
    data = bytearray(scene.path.read_bytes())
    data[4096 : 4096 * 6] = bytes(4096 * 5)
    scene.path.write_bytes(data)
    for suffix in ("-wal", "-shm"):
        Path(f"{scene.path}{suffix}").unlink(missing_ok=True)
    assert "BROKEN" in pages.verdict() or "Not verified" in pages.verdict()
    assert pages.get("/").status in (200, 503)


def test_a_ledger_that_grows_is_read_on(scene, pages):
    scene.run("run-4")
    assert Read(pages.text("/")).table("run", "name")[0][0] == "run-4"
    with Ledger.open(scene.path) as again:
        assert str(again.size) in pages.text("/")


def test_a_ledger_that_was_cut_while_the_page_was_open_is_said_loudly(scene, pages):
    pages.text("/")
    db = sqlite3.connect(scene.path)
    db.execute("DELETE FROM entries WHERE seq >= 20")
    db.commit()
    db.close()
    assert "The ledger was changed" in pages.text("/")
