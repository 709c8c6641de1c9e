"""The wheel: our four packages and nothing else, at work in a fresh environment, away from the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.process import REPO, Place

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
PACKAGES = ("fl_core", "strategies", "clients", "server")
LEFT_OUT = (".*", "build", "dist", "*.egg-info", "__pycache__", "runs", "mlruns", "node_modules")


@dataclass(frozen=True)
class Installed:
    wheel: Path
    python: Path
    place: Place


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build from a copy (so that the checkout gets no build folder), install where only the dependencies are."""
    path = tmp_path_factory.mktemp("wheel")
    shutil.copytree(REPO, path / "copy", ignore=shutil.ignore_patterns(*LEFT_OUT))
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(path / "dist"),
        str(path / "copy"),
    ]
    run(build, path)
    shutil.rmtree(path / "copy")
    (wheel,) = (path / "dist").glob("*.whl")
    run([sys.executable, "-m", "venv", "--without-pip", str(path / "env")], path)
    python = path / "env" / "bin" / "python"
    (site,) = (path / "env").glob("lib/python*/site-packages")
    # Named in a .pth file the folder's own .pth files do not count: the checkout's editable install stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)],
        path,
    )
    place = Place(path / "elsewhere", [str(python.with_name("fedseal"))])
    return Installed(wheel, python, place)


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_our_packages_whole_and_neither_tests_nor_experiments(installed: Installed) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == set(PACKAGES)
    for package in PACKAGES:
        ours = {str(p.relative_to(REPO)) for p in (REPO / package).rglob("*.py")}
        assert ours <= set(names)
        assert f"{package}/py.typed" in names
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)


def test_nothing_comes_from_the_checkout(installed: Installed) -> None:
    code = f"import {', '.join(PACKAGES)}; print(*[m.__file__ for m in ({', '.join(PACKAGES)})], sep='\\n')"
    files = run([str(installed.python), "-c", code], installed.place.path).split()
    assert len(files) == 4
    assert all(Path(f).is_relative_to(installed.python.parents[1]) for f in files)


def test_installed_command_runs_a_job_in_another_folder(installed: Installed) -> None:
    place = installed.place
    try:
        assert "Example: fedseal run" in place.fedseal("--help").out
        done = place.fedseal("run", place.job(rounds=1), "--json")
        assert done.code == 0, done.err
        assert done.json["status"] == "done" and done.json["mlflow"]["delivered"]
        assert place.fedseal("audit", "verify").code == 0
        assert str(REPO) not in "".join(p.read_text() for p in place.home.glob("coordinator/runs/*/*log*"))
    finally:
        place.clear()
