"""A party's part of a model as files, and the new rows that it brings to a prediction."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from clients.model_folder import read_part, write_part, write_scores
from clients.participant import role_of
from clients.policy import Policy
from clients.prediction import part_folder, prepare, preview
from fl_core.config import load_job
from fl_core.errors import BudgetExceeded, DataError, JobFileError, RefusedError
from fl_core.learning.binning import BinnedFeatures
from fl_core.learning.columns import Column, Columns, LinearFeatures
from fl_core.trust.budget import Budget

RUN = "0123456789abcdef"
JOB = {"job": "ab" * 32, "run": RUN}


def columns():
    codes = Column("town", codes=np.arange(40, dtype=np.int32) % 2, categories=("Bonn", "Ulm"))
    return Columns((Column("age", numbers=np.arange(40.0)), codes), 40)


def about(party="lab", **more):
    told = {
        "party": party,
        "parties": ["bank", "lab"],
        "algorithm": "logistic",
        "objective": "binary",
        "outputs": 1,
        "classes": [],
    }
    features = LinearFeatures.fit(columns(), np.arange(40), min_frequency=5, where="lab").to_dict()
    return {**JOB, **told, "link": "logistic", "encoding": "standardised", "features": features, **more}


ARRAYS = {"weights": np.array([[0.5], [1.0], [-1.0]])}


def job(folder, receivers=("bank",), parties=("bank", "lab"), data="{}.csv", **tables):
    names = [{"name": name, "data": data.format(name), "id": ["who"]} for name in parties]
    for party in names:
        if not (folder / party["data"]).exists():
            (folder / party["data"]).write_text("who\n1\n")
    predict = {"model": RUN, "active": "bank", "algorithm": "logistic", "receivers": list(receivers)}
    return load_job({"kind": "predict", "party": names, "predict": predict, **tables})


@pytest.fixture(autouse=True)
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path, rows, header=("who", "age", "town", "noise")):
    with Path(path).open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def test_a_part_comes_back_as_it_was_written_and_is_private(tmp_path):
    write_part(tmp_path / "model", about(), ARRAYS)
    told, arrays = read_part(tmp_path / "model", "party lab")
    assert {k: v for k, v in told.items() if k not in ("format", "digest")} == json.loads(json.dumps(about()))
    assert (arrays["weights"] == ARRAYS["weights"]).all()
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "model").iterdir())


def _pickled():
    held = io.BytesIO()
    np.savez(held, weights=np.array([{"a": 1}], dtype=object))
    return held.getvalue()


def test_whatever_was_changed_in_a_part_is_found(tmp_path):
    folder = tmp_path / "model"
    write_part(folder, about(), ARRAYS)
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    for path, data in kept.items():
        for at in np.linspace(0, len(data) - 1, 25).astype(int):
            changed = bytearray(data)
            changed[at] ^= 1
            path.write_bytes(changed)
            with pytest.raises(DataError) as caught:
                read_part(folder, "party lab")
            assert "\n" not in str(caught.value)
        for data_ in (b"", data[:-1], b"[" * 100_000, _pickled()):
            path.write_bytes(data_)
            with pytest.raises(DataError):
                read_part(folder, "party lab")
        path.write_bytes(data)
    assert read_part(folder, "party lab")


def test_arrays_of_objects_are_never_unpickled(tmp_path):
    folder = tmp_path / "model"
    write_part(folder, about(), {"weights": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(DataError, match="ValueError"):
        read_part(folder, "party lab")


def test_new_rows_are_read_by_the_columns_of_the_model_alone(tmp_path):
    write_part(tmp_path / "model", about(), ARRAYS)
    write("lab.csv", [["b", "", "Paris", "x"], ["a", 19.5, "Ulm", "y"], ["c", 20, "", "z"]])
    made = prepare(job(tmp_path), job(tmp_path).party("lab"), tmp_path / "model", None)
    assert made.table.columns.names == ("age", "town") and made.table.ids.tolist() == ["b", "a", "c"]
    features = LinearFeatures.from_dict(about()["features"])
    x = features.transform(made.table.columns)
    assert x[0].tolist() == [0, 0, 0] and x[1].tolist() == [0, 0, 1] and x[2, 1:].tolist() == [0, 0]
    assert np.abs(made.part.partial(made.table.columns)[:, 0] - x @ ARRAYS["weights"][:, 0]).max() < 1e-12
    seen = preview(job(tmp_path), job(tmp_path).party("lab"), tmp_path / "model", Budget(tmp_path / "budget.db"), None)
    assert (seen.rows, seen.columns) == (3, "2")


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        ([["a", 1, "Ulm"]], ("who", "Age", "town"), "'age'"),
        ([["a", "old", "Ulm"]], ("who", "age", "town"), "'age'"),
        ([["a", 1, "Ulm"], ["a", 2, "Ulm"]], ("who", "age", "town"), "who"),
        ([["a", "inf", "Ulm"]], ("who", "age", "town"), "not finite"),
        ([], ("who", "age", "town"), "no rows"),
    ],
)
def test_rows_that_cannot_be_scored_are_one_clear_line(tmp_path, rows, header, said):
    write_part(tmp_path / "model", about(), ARRAYS)
    write("lab.csv", rows, header)
    with pytest.raises(DataError, match=said) as caught:
        prepare(job(tmp_path), job(tmp_path).party("lab"), tmp_path / "model", None)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("party lab")


def test_ids_that_are_there_twice_can_be_left_out(tmp_path):
    write_part(tmp_path / "model", about(), ARRAYS)
    write("lab.csv", [["a", 1, "Ulm", ""], ["b", 2, "Ulm", ""], ["a", 3, "Ulm", ""]])
    asked = job(tmp_path, psi={"duplicates": "first"})
    table = prepare(asked, asked.party("lab"), tmp_path / "model", None).table
    assert table.ids.tolist() == ["a", "b"] and next(iter(table.columns)).numbers.tolist() == [1.0, 2.0]


def test_a_party_that_had_the_label_alone_brings_ids(tmp_path):
    told = about("bank", features=None, classes=["no", "yes"])
    write_part(tmp_path / "model", told, {"weights": np.array([[0.25]])})
    write("bank.csv", [["a", 1], ["b", 2]], ("who", "other"))
    made = prepare(job(tmp_path), job(tmp_path).party("bank"), tmp_path / "model", None)
    assert len(made.table.columns) == 2 and made.part.partial(made.table.columns).tolist() == [[0.25], [0.25]]


def test_an_npz_file_of_columns_or_of_one_array(tmp_path):
    x = np.arange(12.0).reshape(4, 3)
    held = Columns(tuple(Column(f"x_{j}", numbers=np.arange(30.0) + j) for j in range(3)), 30)
    np.savez("lab.npz", who=np.array(list("abcd")), x=x, y=np.zeros(4))
    from clients.columns import read_columns

    names = read_columns(Path("lab.npz"), id_columns=["who"], label=None, only=("x",), where="x").columns.names
    held = Columns(tuple(Column(name, numbers=column.numbers) for name, column in zip(names, held, strict=True)), 30)
    features = BinnedFeatures.fit(held, np.arange(30), bins=4, where="lab").to_dict()
    told = about(encoding="one-hot", features=features)
    write_part(tmp_path / "model", told, {"weights": np.arange(12.0)[:, None]})
    asked = job(tmp_path, data="{}.npz")
    made = prepare(asked, asked.party("lab"), tmp_path / "model", None)
    assert made.table.columns.names == names and len(made.table.items) == 4
    np.savez("lab.npz", who=np.array(list("abcd")), **{name: x[:, j] for j, name in enumerate(names)})
    again = prepare(asked, asked.party("lab"), tmp_path / "model", None)
    assert (again.part.partial(again.table.columns) == made.part.partial(made.table.columns)).all()


def test_the_owners_demand_on_the_intersection_holds(tmp_path):
    write_part(tmp_path / "model", about(), ARRAYS)
    asked = job(tmp_path)
    party = SimpleNamespace(**{**vars(asked.party("lab")), "psi_protocol": "ecdh"})
    with pytest.raises(RefusedError, match="ecdh"):
        prepare(asked, party, tmp_path / "model", None)


def test_a_node_takes_the_part_that_it_kept_and_no_path_from_outside(tmp_path):
    asked = job(tmp_path)
    own = SimpleNamespace(own={"model": "/etc"}, out=tmp_path / "outputs" / "run2", party="lab", policy=Policy({}))
    assert part_folder(own, asked) == tmp_path / "outputs" / RUN / "lab" / "model"
    own.policy = None
    assert part_folder(own, asked) == Path("/etc")
    with pytest.raises(JobFileError):
        own.policy = Policy({})
        part_folder(own, load_job({**asked.table(), "predict": asked.table()["predict"] | {"model": "../x"}}))


def test_a_node_that_does_not_allow_the_kind_refuses(tmp_path):
    with pytest.raises(RefusedError, match="kind 'predict'"):
        Policy({}, kinds=("psi",)).check(job(tmp_path), begun=False)
    Policy({}).check(job(tmp_path), begun=False)


def test_a_check_finds_what_joining_would_and_sets_no_privacy_aside(tmp_path, monkeypatch):
    from fl_core.protocols.prediction.linear import LinearPart

    write_part(tmp_path / "model", about(), ARRAYS)
    write("lab.csv", [["a", 1, "Ulm", ""]])
    monkeypatch.setattr(LinearPart, "noise_multiplier", property(lambda self: 1.0))  # as a network with noise has
    asked, budget = job(tmp_path), Budget(tmp_path / "budget.db")
    party = asked.party("lab")
    preview(asked, party, tmp_path / "model", budget, None)
    assert budget.datasets() == []
    node = SimpleNamespace(own={"model": str(tmp_path / "model")}, out=tmp_path, party="lab", policy=None, run="r")
    home = SimpleNamespace(config=node, store=SimpleNamespace(budget=budget))
    assert role_of(home, asked, party).previewed() == {"schema": "", "classes": ""}
    assert budget.datasets() == []
    tight = SimpleNamespace(**{**vars(party), "max_epsilon": 0.5})
    with pytest.raises(BudgetExceeded):
        preview(asked, tight, tmp_path / "model", budget, None)


def test_scores_of_two_and_of_more_classes(tmp_path):
    import pyarrow as pa

    ids = pa.table({"who": ["a", 'b"'], "when": [1, 2]})
    write_scores(tmp_path / "s.csv", ids, np.array([0.25, 0.5]), ())
    with (tmp_path / "s.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["who", "when", "score"], ["a", "1", "0.25"], ['b"', "2", "0.5"]]
    write_scores(tmp_path / "s.csv", ids, np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]), ("x", "y", "z"))
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["score"] for row in rows] == ["x", "z"] and rows[1]["p_z"] == "0.8"
    assert (tmp_path / "s.csv").stat().st_mode & 0o777 == 0o600
