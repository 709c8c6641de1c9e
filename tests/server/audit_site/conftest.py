"""A ledger with runs, and sites over it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fl_core.home import Home
from fl_core.trust.identity import Identity
from fl_core.trust.postgres_url import Place
from server.audit_site.site import AuditSite
from tests.fl_core.trust.pack_scene import Scene
from tests.postgres import Server, start_server
from tests.server.audit_site.scenes import Pages, scene_at

RUNS = ("run-1", "run-2", "run-3")


@pytest.fixture(scope="session")
def people() -> SimpleNamespace:
    return SimpleNamespace(
        coordinator=Identity.create("coordinator"), parties={name: Identity.create(name) for name in ("a", "b", "c")}
    )


def three(made: Scene) -> None:
    made.run(RUNS[0])
    made.open_run(RUNS[1])
    made.round(RUNS[1], 1)
    refusal = made.say("b", "refusal", {"step": "query.join", "code": "budget"}, RUNS[1])
    failure = made.say("coordinator", "failure", {"code": "budget", "status": "refused"}, RUNS[1])
    made.ledger.commit([refusal, failure])
    made.open_run(RUNS[2])
    made.round(RUNS[2], 1)
    made.ledger.append([made.say("a", "update", {"round": 2}, RUNS[2])])  # under no checkpoint


@pytest.fixture(scope="session")
def three_runs(tmp_path_factory, people) -> Path:
    """One that ended and is witnessed, one that was refused, one under way."""
    made = scene_at(tmp_path_factory.mktemp("ledger") / "ledger.db", people)
    three(made)
    made.ledger.close()
    return made.path


@pytest.fixture
def scene(tmp_path, three_runs, people) -> Iterator[Scene]:
    """Those runs, to be changed."""
    shutil.copy(three_runs, tmp_path / "ledger.db")
    made = Scene(tmp_path / "ledger.db", people.coordinator, people.parties)
    yield made
    made.ledger.close()


@pytest.fixture(scope="module")
def shown(three_runs, tmp_path_factory) -> Iterator[Pages]:
    """The site over those runs, which nobody changes."""
    made = Pages(AuditSite(three_runs, Home.at(tmp_path_factory.mktemp("home"))))
    yield made
    made.open.stop()


@pytest.fixture
def pages_of(monkeypatch) -> Iterator[Callable[..., Pages]]:
    """Opens sites; MLflow is where their home says."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = []

    def make(ledger: Place, home: Path, **options) -> Pages:
        made.append(Pages(AuditSite(ledger, Home.at(home), **options)))
        return made[-1]

    yield make
    for pages in made:
        pages.open.stop()


@pytest.fixture
def pages(scene, tmp_path, pages_of) -> Pages:
    return pages_of(scene.path, tmp_path / "home")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    server = start_server()
    yield server
    server.close()


@pytest.fixture
def far(postgres: Server, people: SimpleNamespace) -> Iterator[Scene]:
    """Those runs, in a schema of their own on a server."""
    made = Scene(postgres.place(), people.coordinator, people.parties)
    made.show_cards()
    three(made)
    yield made
    made.ledger.close()
