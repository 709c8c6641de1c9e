from __future__ import annotations

import dataclasses
import hashlib
import hmac

import numpy as np
import pytest

from clients.data import dataset_name, load_party_data
from fl_core.config import load_job
from fl_core.errors import DataError


def experiment(**more):
    table = {"kind": "horizontal", "seed": 3, "dataset": {"name": "digits", "parties": 4}}
    return load_job(table, more)


def parts(job):
    return [load_party_data(job, party) for party in job.parties]


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_the_parties_share_a_dataset_without_overlap(partition):
    every = parts(experiment(**{"dataset.partition": partition}))
    rows = np.concatenate([np.concatenate([d.x_train, d.x_test]) for d in every])
    from fl_core.learning.datasets import load

    whole = load("digits").x_train
    assert sorted(map(bytes, rows)) == sorted(map(bytes, whole))
    for data in every:
        assert data.x_train.dtype == np.float32 and data.y_train.dtype == np.int64
        assert len(data.y_test) == pytest.approx(0.2 * (len(data.y_train) + len(data.y_test)), abs=10)
        assert (data.input_shape, data.image_shape, data.dataset_name) == ((64,), (1, 8, 8), "digits")
    assert len({d.schema_digest for d in every}) == 1 == len({d.classes_digest for d in every})
    assert len({d.commitment(b"k") for d in every}) == 4


def test_the_same_job_gives_the_same_bits_and_another_seed_others():
    first, again = parts(experiment()), parts(experiment())
    assert [d.commitment(b"k") for d in first] == [d.commitment(b"k") for d in again]
    other = parts(experiment(seed=4))
    assert first[0].commitment(b"k") != other[0].commitment(b"k")


def test_an_official_test_set_is_dealt_to_the_parties(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    labels = np.arange(30) % 10
    np.savez(
        tmp_path / "mnist10k.npz",
        x_train=pictures[:20],
        y_train=labels[:20],
        x_test=pictures[20:],
        y_test=labels[20:],
    )
    monkeypatch.setenv("FEDSEAL_DATA", str(tmp_path))
    every = parts(experiment(**{"dataset.name": "mnist10k"}))
    assert sum(len(d.y_train) for d in every) == 20 and sum(len(d.y_test) for d in every) == 10
    tested = np.concatenate([d.x_test for d in every])
    assert sorted(map(bytes, tested)) == sorted(map(bytes, pictures[20:, None].astype(np.float32) / np.float32(255)))
    assert every[0].input_shape == (1, 28, 28) == every[0].image_shape


def bank(tmp_path, rows, *, ids=True, **more):
    """A job whose first party has these rows; the others' files exist only."""
    text = "id,age,y\n" + "".join(f"{i},{age},{y}\n" for i, age, y in rows)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.csv").write_text(text)
    party = [{"name": n, "data": f"{n}.csv", "label": "y", **({"id": "id"} if ids else {})} for n in "abc"]
    job = load_job({"kind": "horizontal", "party": party}, more)
    return dataclasses.replace(job, base=tmp_path)


ROWS = [(f"u{i}", i * 1.5, i % 2) for i in range(20)]


@pytest.fixture(autouse=True)
def job_files_lie_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_order_of_rows_in_the_file_changes_nothing(tmp_path):
    job = bank(tmp_path, ROWS)
    first = load_party_data(job, job.parties[0])
    job = bank(tmp_path, ROWS[::-1])
    again = load_party_data(job, job.parties[0])
    assert first.commitment(b"k") == again.commitment(b"k")
    assert first.x_test.tolist() == again.x_test.tolist() and len(first.y_test) == 4
    assert np.bincount(first.y_test).tolist() == [2, 2]


def test_a_files_budget_is_kept_under_its_name(tmp_path):
    job = bank(tmp_path, ROWS)
    assert dataset_name(job, job.parties[1]) == "b.csv" == load_party_data(job, job.parties[1]).dataset_name
    assert dataset_name(experiment(), experiment().parties[0]) == "digits"


def test_classes_are_ordered_as_numbers_where_they_are(tmp_path):
    job = bank(tmp_path, [("a", 1, "10"), ("b", 2, "9"), ("c", 3, "-1"), ("d", 4, "9.0")])
    data = load_party_data(job, job.parties[0])
    assert data.classes == ("-1", "9", "10")
    job = bank(tmp_path, [("a", 1, "10"), ("b", 2, "9"), ("c", 3, "x")])
    assert load_party_data(job, job.parties[0]).classes == ("10", "9", "x")


def test_declared_classes_rule(tmp_path):
    job = bank(tmp_path, [("a", 1, "no"), ("b", 2, "no")], **{"model.classes": ["yes", "no"]})
    data = load_party_data(job, job.parties[0])
    assert data.classes == ("yes", "no") and set(data.y_train) == {1}
    job = bank(tmp_path, [("a", 1, "no"), ("b", 2, "maybe")], **{"model.classes": ["yes", "no"]})
    with pytest.raises(
        DataError, match=r"a\.csv, column 'y': label 'maybe' is none of model\.classes; allowed: yes, no"
    ):
        load_party_data(job, job.parties[0])


def test_a_party_with_one_class_is_told_what_to_do(tmp_path):
    job = bank(tmp_path, [("a", 1, "no"), ("b", 2, "no")])
    with pytest.raises(DataError, match=r"one class only, 'no'; allowed: .*model\.classes"):
        load_party_data(job, job.parties[0])


def test_no_test_rows_are_held_out_at_fraction_zero(tmp_path):
    job = bank(tmp_path, ROWS, **{"evaluate.test_fraction": 0.0})
    data = load_party_data(job, job.parties[0])
    assert data.x_test.shape == (0, 1) and data.y_test.shape == (0,) and len(data.y_train) == 20


def test_without_ids_the_files_order_counts(tmp_path):
    job = bank(tmp_path, [(i, i, i % 2) for i in range(10)], ids=False)
    assert load_party_data(job, job.parties[0]).feature_names == ("id", "age")


def test_a_commitment_binds_to_every_value_and_needs_the_key(tmp_path):
    job = bank(tmp_path, ROWS)
    data = load_party_data(job, job.parties[0])
    base = data.commitment(b"key")
    x, y = data.x_train.copy(), data.y_train.copy()
    x[0, 0] += 1
    y[0] ^= 1
    changed = [
        dataclasses.replace(data, x_train=x),
        dataclasses.replace(data, y_train=y),
        dataclasses.replace(data, classes=("0", "2")),
        dataclasses.replace(data, feature_names=("height",)),
        dataclasses.replace(data, x_train=data.x_test, x_test=data.x_train, y_train=data.y_test, y_test=data.y_train),
    ]
    assert len({base, data.commitment(b"other"), *(d.commitment(b"key") for d in changed)}) == 7
    content = b"".join(len(b).to_bytes(8, "big") + b for b in data._content())
    assert base == hmac.new(b"key", content, hashlib.sha256).hexdigest()
    assert data.schema_digest != changed[3].schema_digest and data.classes_digest != changed[2].classes_digest
