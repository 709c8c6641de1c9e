"""Vertical learning at one party: its table in, its part of the model out; only it ever holds either.

Beside `model/` a party gets a card that names its own columns; the active party also gets the held-out rows' scores
(`predictions.csv`: id columns, score).  What each party learns stands at the head of
`fl_core.protocols.vertical.program`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from clients.columns import Loaded, Objective, classes_of, read_columns
from clients.data import dataset_name
from clients.model_folder import write_part, write_scores
from clients.part import source_of
from clients.session import Post, Program, Result
from clients.sources import read_ids
from fl_core.channel import Channel
from fl_core.errors import DataError, RefusedError
from fl_core.files import private_dir, write_atomic
from fl_core.job import GIVEN, Job, Party, public_digest
from fl_core.learning.columns import Column, Columns
from fl_core.protocols.psi.ids import HASH_BYTES, hash_ids
from fl_core.protocols.vertical.alignment import Alignment, Stand
from fl_core.protocols.vertical.course import Course, State
from fl_core.protocols.vertical.plan import Plan, plan_of
from fl_core.protocols.vertical.program import Outcome, Site, Table, run
from fl_core.records import decimal

if TYPE_CHECKING:
    import pyarrow as pa

    from clients.participant import Participant
    from clients.policy import Policy

KEPT_STEPS = 3  # states of so many steps are kept: parties may be a step or two apart when one is lost


class VerticalProgram(Program):
    """One party's part in a `vertical` job."""

    def __init__(self, home: Participant, job: Job, party: Party) -> None:
        self._home, self._job, self._party = home, job, party
        self._plan = plan_of(job)
        self._loaded: tuple[pa.Table, Table] | None = None

    def load(self) -> None:
        """As `Program.load`."""
        self._loaded = load_table(self._job, self._party, self._home.config.policy)
        self._reserve()

    def commitment(self) -> str:
        """HMAC-SHA-256, hex, over ids, columns and labels."""
        _, table = self._table()
        mac = hmac.new(self._home.store.commitment_key, digestmod=hashlib.sha256)
        for block in content_of(table):
            mac.update(len(block).to_bytes(8, "big") + block)
        return mac.hexdigest()

    def run(self, channel: Channel, post: Post, tell: Callable[[str], None]) -> Result:
        """As `Program.run`."""
        ids, table = self._table()
        self._commit_privacy()
        site = KeptSite(self._home.files.path / "vertical", channel, post, tell)
        outcome = run(channel, self._plan, table, site, threads=os.cpu_count() or 1)
        folder = private_dir(self._home.config.out / self._party.name)
        outputs = {"model": self._write_model(folder / "model", outcome)}
        if outcome.predictions is not None:
            outputs["predictions"] = folder / "predictions.csv"
            import pyarrow as pa

            held = ids.take(pa.array(outcome.test))
            write_scores(outputs["predictions"], held, outcome.predictions, table.classes)
        site.forget()
        said: dict[str, Any] = {"model": _folder_digest(outputs["model"], self._home.store.commitment_key)}
        if outcome.roc:
            said["roc"] = [f"{decimal(a)} {decimal(b)}" for a, b in outcome.roc]
        return Result(said, outputs)

    def _table(self) -> tuple[pa.Table, Table]:
        if self._loaded is None:
            self.load()
        assert self._loaded is not None
        return self._loaded

    # ---- privacy of a split network's embeddings

    def _gives_privacy(self) -> bool:
        return self._job.privacy.mechanism == "cut-layer" and self._party.name != self._plan.active

    def _reserve(self) -> None:
        """Set aside what embeddings may tell, before anything leaves.  Raises `BudgetExceeded`."""
        if not self._gives_privacy():
            return
        from fl_core.learning import privacy
        from fl_core.trust.budget import OWNER_DELTA

        sigma = self._plan.noise_multiplier
        assert sigma is not None
        self._home.store.budget.reserve(
            dataset_name(self._job, self._party),
            self._home.config.run,
            spend=privacy.Spend(sigma, 1.0, self._plan.releases),
            limit=self._party.max_epsilon,
            delta=OWNER_DELTA,
            epsilon=privacy.epsilon,
        )

    def _commit_privacy(self) -> None:
        """Count everything as spent before the first embedding leaves; a resumed run counts it once."""
        if self._gives_privacy():
            name = dataset_name(self._job, self._party)
            self._home.store.budget.commit(self._home.config.run, name, 1, self._plan.releases)

    # ---- what this party gets

    def _write_model(self, folder: Path, outcome: Outcome) -> Path:
        method, job = outcome.method, self._job
        about = {
            "party": self._party.name,
            "role": "active" if self._party.name == self._plan.active else "passive",
            "parties": list(self._plan.parties),
            "algorithm": job.vertical.algorithm,
            "job": public_digest(job.public()),
            "run": self._home.config.run,
            "objective": outcome.task.objective,
            "outputs": outcome.task.outputs,
            "classes": list(self._table()[1].classes),
            **method.describe(),
        }
        write_part(folder, about, method.arrays())
        write_atomic(folder / "card.md", _card(about, outcome, method.importance()).encode())
        return folder


def load_table(job: Job, party: Party, policy: Policy | None) -> tuple[pa.Table, Table]:
    """A party's id columns and its rows, distinct ids only.  Raises `RefusedError` or `DataError`."""
    where, plan = f"party {party.name}", plan_of(job)
    if party.psi_protocol == "ecdh" and plan.psi.may_be_cm20:
        raise RefusedError(f"{where}: the owner takes part by ecdh only; the job says {job.psi.protocol}")
    if job.dataset is not None:
        return _part_of_dataset(job, party, plan)
    if (party.label is not None) != (party.name == plan.active):
        problem = "no label is set" if party.label is None else f"a label, {party.label!r}"
        raise DataError(where, problem, allowed=f"a label at party {plan.active} alone")
    source = source_of(job, party, policy)
    loaded = read_columns(
        source,
        id_columns=party.id,
        label=party.label,
        only=party.columns,
        kinds=dict.fromkeys(party.categorical, "categories"),
        where=where,
    )
    where = f"{where}: {getattr(source, 'name', 'query result')}"
    _check_categorical(party, loaded, where)
    duplicates: Literal["error", "first"] = "first" if job.psi.duplicates == "first" else "error"
    ids = hash_ids(loaded.ids.columns, party.id, where=where, duplicates=duplicates)
    pictures = None if loaded.block is None or loaded.block.ndim == 2 else loaded.block
    table = Table(ids.hashes, texts_of_ids(loaded.ids), loaded.columns, pictures, where)
    if loaded.labels is not None:
        y, classes, objective = classes_of(loaded.labels, _objective(job), f"{where}, column {party.label!r}")
        table = replace(table, labels=y, classes=classes, objective=objective)
    if party.name == plan.active and job.evaluate.test_ids not in (None, GIVEN):
        table = replace(table, test=_named_rows(job, party, policy, ids.hashes))
    if len(ids.rows) < len(loaded.columns) or duplicates == "first":
        table = take_rows(table, ids.rows)
        loaded = replace(loaded, ids=loaded.ids.take(ids.rows))
    return loaded.ids, table


def _objective(job: Job) -> Objective:
    return cast(Objective, job.vertical.objective)


def _check_categorical(party: Party, loaded: Loaded, where: str) -> None:
    for name in party.categorical:
        if name not in loaded.columns.names:
            raise DataError(where, f"no column {name!r} to be categorical", allowed=", ".join(loaded.columns.names[:8]))


def take_rows(table: Table, rows: NDArray[np.int64]) -> Table:
    """The rows that stay; hashes are of these alone already."""
    return replace(
        table,
        ids=table.ids[rows],
        columns=table.columns.take(rows),
        block=None if table.block is None else table.block[rows],
        labels=None if table.labels is None else table.labels[rows],
    )


def texts_of_ids(ids: pa.Table) -> NDArray[np.str_]:
    """A text for each row by which rows are put in order."""
    parts = [np.array([str(value) for value in column.to_pylist()], dtype=np.str_) for column in ids.columns]
    joined = parts[0]
    for part in parts[1:]:
        joined = np.char.add(np.char.add(joined, "\x1f"), part)
    return joined


def _named_rows(job: Job, party: Party, policy: Policy | None, own: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which rows a file of ids names."""
    named = replace(party, data=job.evaluate.test_ids, query=None)
    source, where = source_of(job, named, policy), "evaluate.test_ids"
    table = read_ids(source, party.id, where=where)
    listed = hash_ids(table.columns, party.id, where=where, duplicates="first").hashes
    kind = np.dtype((np.void, HASH_BYTES))
    return np.isin(np.ascontiguousarray(own).view(kind)[:, 0], np.ascontiguousarray(listed).view(kind)[:, 0])


def _part_of_dataset(job: Job, party: Party, plan: Plan) -> tuple[pa.Table, Table]:
    """A party's columns of an experiment's dataset: pictures are cut from left to right, columns dealt in order."""
    import pyarrow as pa

    from fl_core.learning import datasets

    assert job.dataset is not None
    raw = datasets.load(job.dataset.name)
    official = raw.x_test is not None and raw.y_test is not None
    x = np.concatenate([raw.x_train, raw.x_test]) if official and raw.x_test is not None else raw.x_train
    y = np.concatenate([raw.y_train, raw.y_test]) if official and raw.y_test is not None else raw.y_train
    names = np.array([f"{number:09d}" for number in range(len(x))])
    ids = pa.table({"row": pa.array(names)})
    where, index, count = f"party {party.name}", plan.parties.index(party.name), len(plan.parties)
    block, columns = None, Columns((), len(x))
    if x.ndim > 2:
        block = np.ascontiguousarray(np.array_split(x, count, axis=-1)[index])
    else:
        chosen = _chosen(raw.feature_names, party, index, count)
        numbers = (Column(raw.feature_names[i], numbers=x[:, i].astype(np.float64)) for i in chosen)
        columns = Columns(tuple(numbers), len(x))
    table = Table(hash_ids(ids.columns, ["row"], where=where).hashes, names, columns, block, where)
    if party.name == plan.active:
        classes = raw.classes
        objective = "binary" if len(classes) == 2 else "multiclass"
        test = np.arange(len(x)) >= len(raw.x_train) if official else None
        table = replace(table, labels=y, classes=classes, objective=objective, test=test)
    return ids, table


def _chosen(names: tuple[str, ...], party: Party, index: int, count: int) -> list[int]:
    if not party.columns:
        return [int(i) for i in np.array_split(np.arange(len(names)), count)[index]]
    for name in party.columns:
        if name not in names:
            raise DataError(f"party {party.name}", f"no column {name!r}", allowed=", ".join(names))
    return [names.index(name) for name in party.columns]


def content_of(table: Table) -> list[bytes]:
    """All that a party's commitment to its rows binds it to."""
    parts = [b"fedseal-vertical-data/1", table.items.tobytes()]
    for column in table.columns:
        values = column.numbers if column.numbers is not None else column.codes
        parts += [column.name.encode(), "\x1f".join(column.categories).encode(), np.ascontiguousarray(values).tobytes()]
    if table.block is not None:
        parts.append(np.ascontiguousarray(table.block).tobytes())
    if table.labels is not None:
        parts += ["\x1f".join(table.classes).encode(), np.ascontiguousarray(table.labels).tobytes()]
    return parts


# ---- what is kept while it trains


class KeptSite(Site):
    """A run's folder at a party, and the way to the coordinator."""

    def __init__(self, folder: Path, channel: Channel, post: Post, tell: Callable[[str], None]) -> None:
        self._folder, self._channel, self._post, self._tell = folder, channel, post, tell
        self._bytes, self._time = 0, time.monotonic()

    def stand(self) -> Stand:
        """As `Site.stand`."""
        path = self._folder / "alignment.npz"
        if not path.exists():
            return Stand()
        token = Alignment.from_arrays(_load(path)).token
        steps = sorted(int(p.stem) for p in self._folder.glob("[0-9]*.npz"))
        return Stand(token, tuple(steps[-KEPT_STEPS:]))

    def kept_alignment(self) -> Alignment:
        """As `Site.kept_alignment`."""
        return Alignment.from_arrays(_load(self._folder / "alignment.npz"))

    def keep(self, aligned: Alignment) -> None:
        """As `Site.keep`."""
        self.forget()
        private_dir(self._folder)
        _save(self._folder / "alignment.npz", aligned.to_arrays())

    def forget(self) -> None:
        """Drop what was kept; a finished training is not gone on with."""
        for path in self._folder.glob("*.npz") if self._folder.exists() else ():
            path.unlink()

    def course(self, begun: int) -> Course:
        """As `Site.course`."""
        state = _load(self._folder / f"{begun}.npz") if begun else {}
        if begun:
            told = json.loads(state.pop("metrics").tobytes())
            self.record(begun, told)  # its record may have been lost with the session
        return _KeptCourse(self, begun, state)

    def step(self, number: int, state: Mapping[str, NDArray[Any]], metrics: Mapping[str, float]) -> None:
        """Keep a step's state, drop older ones, and report it."""
        told = np.frombuffer(json.dumps(dict(metrics)).encode(), np.uint8)
        _save(self._folder / f"{number}.npz", {**state, "metrics": told})
        (self._folder / f"{number - KEPT_STEPS}.npz").unlink(missing_ok=True)
        self.record(number, metrics)

    def record(self, number: int, metrics: Mapping[str, float]) -> None:
        """As `Site.record`; bytes and seconds are those since the last record."""
        sent, now = sum(t.sent for t in self._channel.traffic.values()), time.monotonic()
        said = {name: decimal(value) for name, value in metrics.items() if np.isfinite(value)}
        said["bytes"], said["seconds"] = str(sent - self._bytes), decimal(now - self._time)
        self._bytes, self._time = sent, now
        self._post(number, said)

    def say(self, text: str) -> None:
        """As `Site.say`."""
        self._tell(text)


class _KeptCourse(Course):
    def __init__(self, site: KeptSite, begun: int, state: State) -> None:
        self._site, self.begun, self.state = site, begun, state

    def done(self, number: int, state: Mapping[str, NDArray[Any]], metrics: Mapping[str, float]) -> None:
        """As `Course.done`."""
        self._site.step(number, state, metrics)


def _load(path: Path) -> State:
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    """Whole or not at all; not flushed to disk, as a step that a power cut loses is trained again."""
    part = path.with_suffix(".part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        np.savez(file, **arrays)
    os.replace(part, path)


# ---- files


def _folder_digest(folder: Path, key: bytes) -> str:
    """A commitment to the files of a model, under the owner's key: weights of few columns could be guessed."""
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for path in sorted(folder.iterdir()):
        mac.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return mac.hexdigest()


def _card(about: Mapping[str, Any], outcome: Outcome, importance: Mapping[str, float]) -> str:
    """The model card of this party: what it holds, how good the whole is, which of its columns count."""
    others = ", ".join(name for name in about["parties"] if name != about["party"])
    lines = [
        f"# Part of a vertical {about['algorithm']} model",
        "",
        f"Held by **{about['party']}** ({about['role']}). It predicts only together with the parts of {others}.",
        "",
        f"- run `{about['run']}`, job `{about['job']}`",
        f"- learned: {about['objective']}" + (f", classes {', '.join(about['classes'])}" if about["classes"] else ""),
        f"- rows in common: {len(outcome.aligned.rows)}, held out: {len(outcome.aligned.split.test)}",
    ]
    lines += [f"- {name}: {decimal(value)}" for name, value in sorted(outcome.figures.items())]
    if outcome.method.notes:
        lines += ["", "Left out:", *(f"- {_cell(note)}" for note in outcome.method.notes)]
    if importance:
        most = sorted(importance.items(), key=lambda pair: -pair[1])
        lines += ["", "| this party's feature | importance |", "|---|---|"]
        lines += [f"| {_cell(name)} | {decimal(value)} |" for name, value in most[:100]]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"[|\n\r]", " ", text)
