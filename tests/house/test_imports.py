"""DESIGN's import table, held by a test: dependencies point one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("fl_core", "strategies", "clients", "server")
FORBIDDEN = {
    "fl_core": {"flwr", "grpc", "mlflow", "strategies", "clients", "server", "experiments", "tests"},
    "strategies": {"clients", "server", "experiments", "tests", "grpc", "mlflow", "torch", "opacus"},
    "clients": {"strategies", "server", "experiments", "tests", "mlflow"},
    "server": {"experiments", "tests"},
}
MAY_IMPORT_CLIENTS = ("server/cli/", "server/runtimes/", "server/dry_run.py")


def imports(path: Path) -> Iterator[str]:
    """Every module a file names, lazily imported ones included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:  # a relative one stays in its package
            yield node.module or ""


def files() -> list[Path]:
    return [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_nobody_imports_against_the_arrows(path):
    place = str(path.relative_to(ROOT))
    package = place.split("/")[0]
    for module in imports(path):
        top = module.split(".")[0]
        assert top not in FORBIDDEN[package], f"{place} imports {module}"
        if package == "server" and top == "clients":
            assert place.startswith(MAY_IMPORT_CLIENTS), f"{place} imports {module}"


def test_importing_the_core_brings_in_no_flower_grpc_or_mlflow():
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files() if p.parts[-1] != "__init__.py"]
    core = [m for m in modules if m.startswith("fl_core.")]
    code = f"import sys\nfor m in {core!r}: __import__(m)\nprint([m for m in ('flwr', 'grpc', 'mlflow') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_command_line_starts_without_the_heavy_libraries():
    code = "import sys, server.cli.main; print([m for m in ('torch', 'flwr', 'mlflow', 'opacus', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_top_level_holds_what_it_may():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    tops = {name.split("/")[0] for name in tracked}
    allowed = {"pyproject.toml", "README.md", *PACKAGES, "experiments", "tests", "docs"}
    allowed |= {"Makefile", "LICENSE", "constraints.txt", ".ci", ".gitignore"}
    assert tops <= allowed
