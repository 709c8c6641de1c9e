"""Training, `fedseal serve` and `fedseal predict` as people use them: real processes, TLS, files."""

from __future__ import annotations

import csv
import json
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fl_core.learning import datasets
from fl_core.learning.models import load_model
from fl_core.trust.ledger import Ledger
from server.serving.sources import find
from tests.e2e.process import Done, Place

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
JOB = '[dataset]\nname = "breast_cancer"\nparties = 3'


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def done(place: Place, *words: object) -> Done:
    """A command that must succeed."""
    ended = place.fedseal(*words)
    assert ended.code == 0, ended
    return ended


def write_rows(path: Path, names, x, order) -> None:
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["patient", *(names[i] for i in order)])
        out.writerows([f"p{r}", *(repr(float(row[i])) for i in order)] for r, row in enumerate(x))


def probabilities(model: Path, x: np.ndarray) -> np.ndarray:
    """Of the second class, by plain numpy from the file's own content."""
    saved = load_model(model)
    matrix, bias = saved.vector[:-2].reshape(2, -1), saved.vector[-2:]
    if saved.meta.mean is not None:
        x = (x - saved.meta.mean) / saved.meta.std
    logits = x @ matrix.T + bias
    return 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))


def test_a_trained_model_is_served_and_scores_are_those_of_the_plain_model(place: Place):
    done(place, "run", place.job("cancer", rounds=3, parties=JOB), "--out", "trained", "--json")
    model = next((place.path / "trained").rglob("model.pt"))
    raw = datasets.load("breast_cancer")
    x, names = raw.x_train.astype(float), raw.feature_names
    order = np.random.default_rng(0).permutation(len(names))
    write_rows(place.path / "rows.csv", names, x, order)
    write_rows(place.path / "one.csv", names, x[:1], order)
    (place.path / "clinic.card").write_text(done(place, "predict", "--as", "clinic", "--card").out)
    port = free_port()
    words = ["serve", "--model", f"cancer={place.path / 'trained'}", "--listen", f"127.0.0.1:{port}"]
    serving = place.start(*words, "--client", "clinic.card", "--rows-a-day", "600")
    serving.wait_for("serving 1 models to 1 clients")
    common = ["predict", "--server", f"localhost:{port}", "--ca", place.home / "serving" / "authority.pem"]
    common += ["--as", "clinic", "--id", "patient"]

    told = done(place, *common, "--model", "cancer", "--data", "rows.csv", "--out", "scores.csv", "--json").json
    assert told["rows"] == len(x) == 569
    with (place.path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["patient"] for row in rows] == [f"p{i}" for i in range(len(x))]
    true = probabilities(model, x)
    assert np.abs(np.array([float(row["score"]) for row in rows]) - true).max() <= 1e-3
    done(place, *common, "--data", "one.csv", "--out", "one_score.csv")
    with (place.path / "one_score.csv").open() as file:
        assert abs(float(next(csv.DictReader(file))["score"]) - true[0]) <= 1e-3

    refused = place.fedseal(*common, "--data", "rows.csv", "--out", "none.csv")
    assert "569 rows after 570 today; allowed: 600 a day" in refused.fails(3)
    unknown = place.fedseal(*common, "--as", "stranger", "--data", "one.csv")
    assert "not a client here" in unknown.fails(3)

    serving.process.send_signal(signal.SIGHUP)
    serving.wait_for("models read again")
    serving.process.send_signal(signal.SIGTERM)
    ended = serving.end()
    assert ended.code == 0 and "570 rows served" in ended.err
    ledger = place.home / "serving" / "ledger.db"
    assert json.loads(done(place, "audit", "verify", "--ledger", ledger, "--json").out)["verdict"] == "VALID"
    (used,) = json.loads(done(place, "audit", "usage", "--json").out)["usage"]
    assert {k: used[k] for k in ("client", "model", "blocks", "rows")} == {
        "client": "clinic", "model": "cancer", "blocks": 2, "rows": 570,
    }  # fmt: skip
    with Ledger.open(ledger) as opened:
        served = list(opened.entries(kind="served"))
    assert [e.body["request"]["body"]["rows"] for e in served] == [569, 1]
    held = (place.home / "parties" / "clinic" / "predict" / "receipts.jsonl").read_bytes().splitlines()
    assert held == [entry.statement.encode() for entry in served]


def test_a_network_of_the_users_own_is_converted_served_and_asked(place: Place):
    """A torch network saved by its owner; its ReLU made x² on the owner's rows; encrypted scores are those of the result."""
    raw = datasets.load("breast_cancer")
    x, names = raw.x_train.astype(float), raw.feature_names
    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(len(names), 8), nn.ReLU(), nn.Linear(8, 2))
    torch.save(own, place.path / "own.pt")
    write_rows(place.path / "rows.csv", names, x, range(len(names)))
    naming = ["--features", ",".join(names), "--classes", "malignant,benign"]
    refused = place.fedseal("serve", "--model", "own.pt", *naming, "--client", "nobody.card")
    assert "nobody.card" in refused.fails(2)
    (place.path / "clinic.card").write_text(done(place, "predict", "--as", "clinic", "--card").out)
    refused = place.fedseal("serve", "--model", "own.pt", *naming, "--client", "clinic.card")
    assert "relu cannot be computed under encryption" in refused.fails(2) and "--convert" in refused.err
    words = ["serve", "--model", "own.pt", *naming, "--convert", "rows.csv", "--out", "own.npz", "--json"]
    assert done(place, *words).json["agreement"] > 0.9

    found = find(str(place.path / "own.npz"))
    port = free_port()
    serving = place.start("serve", "--model", "own.npz", "--client", "clinic.card", "--listen", f"127.0.0.1:{port}")
    serving.wait_for("serving 1 models to 1 clients")
    write_rows(place.path / "few.csv", names, x[:40], range(len(names)))
    common = ["predict", "--server", f"localhost:{port}", "--ca", place.home / "serving" / "authority.pem"]
    done(place, *common, "--as", "clinic", "--id", "patient", "--data", "few.csv", "--out", "scores.csv")
    with (place.path / "scores.csv").open() as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    logits = found.logits(x[:40])
    assert np.abs(scores - 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))).max() <= 1e-3
    serving.process.send_signal(signal.SIGTERM)
    assert serving.end().code == 0
