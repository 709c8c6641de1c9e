"""What README and docs tell people to type: runnable commands run, every command parses, every job file is valid."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_core.config import load_job
from tests.e2e.process import REPO, Place

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
PLACEHOLDER = re.compile(r"\b(?!FEDSEAL_|MLFLOW_|CKKS_|BFV_|TEST_ONLY|NONE)[A-Z][A-Z_]{2,}\b|…|\.\.\.")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if language in languages:
            yield text


def commands(page: Path, *languages: str) -> list[str]:
    """The lines of shell blocks that start with `fedseal` (a prompt in front does not count)."""
    shells = languages or ("sh", "console")
    text = "\n".join(blocks(page, *shells)).replace(" && ", "\n")
    lines = [line.removeprefix("$ ").strip() for line in text.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("fedseal ")]


@pytest.mark.e2e
def test_commands_of_the_readme_run_one_after_the_other(tmp_path: Path) -> None:
    place = Place(tmp_path)
    shutil.copytree(REPO / "experiments", tmp_path / "experiments")
    place.env.pop("FEDSEAL_HOME")
    try:
        for command in commands(REPO / "README.md"):
            if PLACEHOLDER.search(command):
                continue
            done = place.fedseal(*shlex.split(command)[1:])
            assert done.code == 0, f"{command}: {done.err}"
    finally:
        place.clear()


@pytest.mark.e2e
def test_the_three_shells_of_the_readme_make_a_federation(tmp_path: Path) -> None:
    """Each line of the deployment block, in the shell that its comment names; ports as the README has them."""
    place = Place(tmp_path)
    shutil.copytree(REPO / "experiments", tmp_path / "experiments")
    shells = dict(zip(("operator", "owner", "engineer"), shell_parts(REPO / "README.md"), strict=True))
    names, cards = ("bank", "bureau", "clinic"), {}
    try:
        init, start, register, admit = shells["operator"]
        assert run(place, ".operator", init) == 0
        place.start(*shlex.split(start)[1:], FEDSEAL_HOME=".operator").wait_for("ready")
        for name in names:
            made, serve = (line.replace("bank", name) for line in shells["owner"])
            made = made.replace("PATH", place.table(name, 60))
            assert run(place, f".{name}", made) == 0
            cards[name] = (tmp_path / f".{name}" / "parties" / name / "card.txt").read_text().strip()
            assert run(place, ".operator", register.replace("CARD", cards[name])) == 0
            place.start(*shlex.split(serve)[1:], FEDSEAL_HOME=f".{name}").wait_for("connected")
        assert run(place, ".operator", admit) == 0
        for line in shells["engineer"]:
            assert run(place, ".ann", line) == 0
    finally:
        place.clear()


def shell_parts(page: Path) -> list[list[str]]:
    """The commands of the one `bash` block, a list for each of its comments."""
    (block,) = blocks(page, "bash")
    parts = re.split(r"^# .*$", block, flags=re.MULTILINE)[1:]
    lines = [[line.partition("  #")[0].strip() for line in part.replace(" && ", "\n").splitlines()] for part in parts]
    return [[line for line in part if line.startswith("fedseal ")] for part in lines]


def run(place: Place, home: str, line: str) -> int:
    done = place.fedseal(*shlex.split(line)[1:], FEDSEAL_HOME=home)
    assert done.code == 0, f"{line}: {done.err}"
    return done.code


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_and_option_that_is_mentioned_exists(page: Path) -> None:
    import typer.main

    from server.cli.main import app

    root = typer.main.get_command(app)
    mentioned = commands(page, "sh", "console", "bash") + re.findall(
        r"`(fedseal [^`\n]+)`", page.read_text(encoding="utf-8")
    )
    for command in mentioned:
        node, words = root, shlex.split(command.replace("…", "X"))[1:]
        while words and hasattr(node, "commands") and not words[0].isupper():
            assert words[0] in node.commands or words[0].startswith("-"), command
            node, words = node.commands.get(words[0], node), words[1:]
        options = {o for p in getattr(node, "params", []) for o in p.opts} | {"--help"}
        assert {w.partition("=")[0] for w in words if w.startswith("--")} <= options, command


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_job_files_that_are_shown_are_toml(page: Path) -> None:
    for text in blocks(page, "toml"):
        tomllib.loads(text)


@pytest.mark.parametrize("job", sorted((REPO / "experiments").glob("*.toml")), ids=lambda p: p.name)
def test_every_job_file_of_the_experiments_is_valid(job: Path) -> None:
    assert load_job(job).name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
