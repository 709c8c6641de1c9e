"""What a party trains on: its own file, or its part of an experiment's dataset, split into training and test
rows.

Everything here stays at the party. Others see `schema_digest` and `classes_digest`, to check that all learn
from the same columns, and `commitment(key)`, which says nothing about small data without the owner's key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clients.part import source_of
from clients.policy import Policy
from clients.sources import Table, read_table
from fl_core.errors import DataError
from fl_core.job import Dataset, Job, Party
from fl_core.learning import datasets
from fl_core.learning.partition import deal, holdout, split_rows
from fl_core.learning.seeds import derive_seed


@dataclasses.dataclass(frozen=True, eq=False)
class PartyData:
    """One party's rows.

    x_train, x_test : (n, *input_shape) float32, finite. y_train, y_test : (n,) int64, an index into
        `classes`.
    image_shape : (c, h, w) where rows are pictures, flat or not.
    dataset_name : what the owner's privacy budget is kept under: the registry's name, or the file's.
    """

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    classes: tuple[str, ...]
    feature_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    image_shape: tuple[int, ...] | None
    dataset_name: str

    @property
    def schema_digest(self) -> str:
        """SHA-256, hex, over the feature names and the shape of a row: equal at all parties of a job."""
        image = None if self.image_shape is None else list(self.image_shape)
        return _digest({"features": self.feature_names, "input_shape": list(self.input_shape), "image_shape": image})

    @property
    def classes_digest(self) -> str:
        """SHA-256, hex, over the classes in order."""
        return _digest({"classes": self.classes})

    def commitment(self, key: bytes) -> str:
        """HMAC-SHA-256, hex, over all content under a key of the owner: binds to the data, hides them without
        the key."""
        mac = hmac.new(key, digestmod=hashlib.sha256)
        for block in self._content():
            mac.update(len(block).to_bytes(8, "big") + block)
        return mac.hexdigest()

    def _content(self) -> Iterator[bytes]:
        yield b"fedseal-data/1"
        yield (self.schema_digest + self.classes_digest).encode()
        for x, y in ((self.x_train, self.y_train), (self.x_test, self.y_test)):
            yield np.ascontiguousarray(x, dtype="<f4").tobytes()
            yield np.ascontiguousarray(y, dtype="<i8").tobytes()


def _digest(value: dict[str, object]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def dataset_name(job: Job, party: Party) -> str:
    """What the owner's privacy budget is kept under: the name of the data set, bound data, file or database."""
    if job.dataset is not None:
        return job.dataset.name
    return Path((party.data or "").partition("?")[0]).name


def load_party_data(job: Job, party: Party, policy: Policy | None = None) -> PartyData:
    """The rows that `party` brings to `job`; `policy` is that of its node, where it has one.

    With `[dataset]`, the party of index i takes part i; an official test set is dealt evenly, otherwise each
    party holds out `evaluate.test_fraction` of its own rows. With a file, rows are ordered by id (as text)
    where there are ids, so that neither split nor training depends on the file's order.

    Raises
    ------
    DataError : the file or its content. JobFileError : the dataset's name or number of parties.
    """
    if job.dataset is not None:
        return _part_of_dataset(job, job.dataset, [p.name for p in job.parties].index(party.name))
    if party.data is None or party.label is None:
        raise DataError(f"party {party.name}", "no data or no label is set", allowed="data = …, label = …")
    source = source_of(job, party, policy)
    where = f"party {party.name}"
    table = read_table(source, id_columns=party.id, label=party.label, where=where)
    if table.ids is not None:
        order = np.argsort(table.ids, kind="stable")
        table = dataclasses.replace(table, x=table.x[order], labels=table.labels[order], ids=table.ids[order])
    classes = _classes(
        table, job.model.classes, f"{where}: {getattr(source, 'name', 'query result')}, column {party.label!r}"
    )
    y = _encode(table.labels, classes)
    shape = table.x.shape[1:]
    return _split(
        table.x,
        y,
        fraction=job.evaluate.test_fraction,
        seed=derive_seed(job.seed, "test rows", party.name),
        classes=classes,
        feature_names=table.feature_names,
        image_shape=shape if len(shape) == 3 else None,
        dataset_name=dataset_name(job, party),
    )


def _part_of_dataset(job: Job, dataset: Dataset, index: int) -> PartyData:
    raw = datasets.load(dataset.name)
    count = len(job.parties)
    parts = split_rows(raw.y_train, count, partition=dataset.partition or "iid", alpha=dataset.alpha, seed=job.seed)
    x, y = raw.x_train[parts[index]], raw.y_train[parts[index]]
    if raw.x_test is None or raw.y_test is None:
        return _split(
            x,
            y,
            fraction=job.evaluate.test_fraction,
            seed=derive_seed(job.seed, "test rows", index),
            classes=raw.classes,
            feature_names=raw.feature_names,
            image_shape=raw.image_shape,
            dataset_name=dataset.name,
        )
    test = deal(len(raw.y_test), count, seed=job.seed, purpose="test rows")[index]
    return PartyData(
        x,
        y,
        raw.x_test[test],
        raw.y_test[test],
        raw.classes,
        raw.feature_names,
        x.shape[1:],
        raw.image_shape,
        dataset.name,
    )


def _split(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    fraction: float,
    seed: int,
    classes: tuple[str, ...],
    feature_names: tuple[str, ...],
    image_shape: tuple[int, ...] | None,
    dataset_name: str,
) -> PartyData:
    train, test = holdout(y, fraction, seed)
    return PartyData(
        x[train], y[train], x[test], y[test], classes, feature_names, x.shape[1:], image_shape, dataset_name
    )


def _classes(table: Table, declared: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The declared classes, or the distinct labels in order: as numbers where all are whole numbers, else as
    text."""
    found = sorted(set(table.labels.tolist()))
    if declared:
        outside = [label for label in found if label not in declared]
        if outside:
            raise DataError(where, f"label {outside[0]!r} is none of model.classes", allowed=", ".join(declared))
        return declared
    if len(found) < 2:
        raise DataError(where, f"one class only, {found[0]!r}", allowed="two or more, or all of them in model.classes")
    if all(label.lstrip("-").isdecimal() for label in found):
        found.sort(key=int)
    return tuple(found)


def _encode(labels: NDArray[np.str_], classes: tuple[str, ...]) -> NDArray[np.int64]:
    codes = {label: i for i, label in enumerate(classes)}
    return np.array([codes[label] for label in labels.tolist()], dtype=np.int64)
