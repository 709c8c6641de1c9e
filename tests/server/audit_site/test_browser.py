"""What a real browser makes of the auditor's pages, and the command that serves them."""

from __future__ import annotations

import html
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.server.audit_site.scenes import Read, scene_at

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


def browse(tmp_path: Path, url: str, *words: str) -> str:
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        *words,
    ]
    return subprocess.run([*command, url], capture_output=True, text=True, timeout=120).stdout


@pytest.mark.slow
@NEEDS
def test_a_browser_shows_the_pages_and_runs_nothing(tmp_path, people, pages_of):
    """A hostile name that got out of its place would have changed the title or added an element."""
    attack = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    run = "<svg/onload=document.title='owned'>"
    scene = scene_at(tmp_path / "l.db", people)
    view = {"kind": "horizontal", "name": attack}
    record = {"round": 1, "metrics": {attack: "0.5"}, "missing": []}
    job = scene.say("coordinator", "job", {"job": attack, "view": view}, run)
    scene.ledger.commit([job, scene.say("coordinator", "round", record, run)])
    pages = pages_of(scene.path, tmp_path / "home")
    pages.verdict()
    for path, title in (
        ("", "Audit"), ("entry/4", "Entry 4"), ("entries", "Entries"), ("verify", "Verify"),
        ("search?q=%3Csvg%2F", "Search"),
    ):  # fmt: skip
        dom = browse(tmp_path, pages.open.url + path, "--dump-dom")
        assert f"<title>{title}</title>" in dom, path
        assert not {"script", "img", "svg"} & {tag for tag, _ in Read(dom).tags}, path
    dom = browse(tmp_path, pages.open.url + "run?id=%3Csvg%2Fonload%3Ddocument.title%3D%27owned%27%3E", "--dump-dom")
    assert "<title>owned</title>" not in dom and not {"script", "img", "svg"} & {tag for tag, _ in Read(dom).tags}
    assert [row[0] for row in Read(dom).table("party", "role")] == ["coordinator"] and attack in html.unescape(dom)
    scene.ledger.close()


@pytest.mark.slow
@NEEDS
def test_the_page_is_drawn_with_its_own_style_alone(shown, tmp_path):
    """Drawn at a phone's and a desk's width: a page that is only white, or cut, is a small file."""
    for size in ("400,900", "1250,900"):
        path = tmp_path / f"{size}.png"
        browse(tmp_path, shown.open.url, f"--window-size={size}", "--hide-scrollbars", f"--screenshot={path}")
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_stop(three_runs, tmp_path):
    words = ["audit", "serve", "--listen", "127.0.0.1:0", "--ledger", str(three_runs), "--home", str(tmp_path / "home")]
    process = subprocess.Popen([sys.executable, "-m", "server.cli.main", *words], stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert "run-1" in answer.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0 and not (tmp_path / "home").exists()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ledger", "none.db"], "none.db: no ledger here"),
        (["--ledger", "{ledger}", "--listen", "x"], "--listen 'x'; allowed: HOST:PORT"),
        (["--ledger", "{ledger}", "--since", "none"], "--since none: cannot be read"),
        (["--home", "nowhere"], "ledger.db: no ledger here"),
    ],
)
def test_a_wrong_option_is_one_line_and_serves_nothing(three_runs, tmp_path, monkeypatch, capsys, words, said):
    from server.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedseal", "audit", "serve", *(word.format(ledger=three_runs) for word in words)])
    with pytest.raises(SystemExit) as caught:
        main()
    err = capsys.readouterr().err
    assert caught.value.code == 2 and said in err and err.count("\n") == 1
    assert not (tmp_path / "nowhere").exists()
