"""Scores by id with vertical models of two parties: latency of one row, some hundreds at once, error of every row.

scikit-learn's breast_cancer, half of the columns at each party, trained by `fedseal run`; then a real `fedseal serve
--vertical` at the party without labels, asked over TLS on loopback by a client that stays up.  A latency is the
client's: its own features, encryption, signature, the call, the receipt checked and kept.  The error is against both
parts evaluated in one place, with exact leaves of trees; what a job `predict` gives differs by its rounding of them.

Run: ``python -m experiments.bench_vertical_online``; ``--json``
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer

from clients.predict.vertical import VerticalClient
from clients.predict.vertical_table import load_part, read_rows
from experiments.figures import Figure, command_line
from experiments.loopback import wait_for
from experiments.process_tree import fedseal, run_tree
from experiments.vertical_data import ACTIVE, PASSIVE, Joined
from fl_core.crypto.ring import Floats
from fl_core.home import Home
from fl_core.learning.tree_parts import ActiveTrees, joint_scores
from fl_core.protocols.prediction.forest import ForestPart
from fl_core.protocols.prediction.linear import LinearPart
from fl_core.protocols.vertical.meaning import predictions
from fl_core.trust.identity import Identity

SINGLES, MANY = 200, 300
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "logistic": ("logistic", {"algorithm": "logistic"}, 30.0),
    "trees": ("30 trees of depth 3", {"algorithm": "gbdt", "trees": 30, "depth": 3, "learning_rate": 0.3}, 60.0),
}


def halves() -> Joined:
    """The table; every fifth row is held out."""
    x, y = load_breast_cancer(return_X_y=True, as_frame=True)
    names = tuple(x.columns)
    x.insert(0, "id", [f"p{row:04d}" for row in range(len(x))])
    x.insert(1, "y", y)
    return Joined(x, names[:15], names[15:], np.arange(len(x)) % 5 == 0)


@contextmanager
def served(place: Path, client: Path) -> Iterator[str]:
    """The passive party's server for as long as the block lasts; its address."""
    log, env = place / "serve.log", {**os.environ, "FEDSEAL_HOME": str(place / PASSIVE)}
    source = f"bench={place / 'out' / PASSIVE / 'model'}={place / PASSIVE}.csv"
    words = ["--vertical", source, "--vertical-id", "id", "--listen", "127.0.0.1:0", "--requests-a-second", "1000000"]
    with log.open("wb") as out:
        service = subprocess.Popen(fedseal("serve", *words, "--client", str(client)), env=env, stderr=out)
    try:
        wait_for(lambda: "serving 1 models" in log.read_text() or service.poll() is not None, "serve")
        found = re.search(r"on 127\.0\.0\.1:(\d+)", log.read_text())
        if found is None:
            raise RuntimeError(f"serve: {log.read_text()[-2000:]}")
        yield f"localhost:{found[1]}"
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(60)


def plain(place: Path) -> Floats:
    """(n,) probabilities of the active party's rows, both parts in one place."""
    one, _ = load_part(place / "out" / ACTIVE / "model", active=True)
    two, _ = load_part(place / "out" / PASSIVE / "model", active=False)
    _, hashes, mine = read_rows(place / f"{ACTIVE}.csv", ["id"], one)
    _, others, theirs = read_rows(place / f"{PASSIVE}.csv", ["id"], two)
    at = {key.tobytes(): row for row, key in enumerate(others)}
    theirs = theirs.take(np.array([at[key.tobytes()] for key in hashes]))
    if isinstance(one, LinearPart) and isinstance(two, LinearPart):
        return predictions(one.partial(mine) + two.partial(theirs), "binary", one.link)
    assert isinstance(one, ForestPart) and isinstance(two, ForestPart) and isinstance(one.trees, ActiveTrees)
    return predictions(joint_scores(one.trees, one.codes(mine), [(two.trees, two.codes(theirs))]), "binary")


def case(data: Joined, name: str) -> list[Figure]:
    """All figures of one model."""
    words, settings, limit = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        data.write(place)
        (place / "job.toml").write_text(data.job(settings))
        run_tree(
            fedseal("run", str(place / "job.toml"), "-q", "--home", str(place / "home"), "--out", str(place / "out"))
        )
        home, card = place / ACTIVE, place / "asker.card"
        asked = fedseal("predict", "--as", ACTIVE, "--card", "--home", str(home))
        card.write_text(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
        state = Home.open(home).party(ACTIVE)
        with served(place, card) as address:
            authority = (place / PASSIVE / "serving" / "authority.pem").read_bytes()
            with VerticalClient(
                address,
                authority=authority,
                identity=Identity.load_or_create(state, ACTIVE),
                folder=state / "predict",
                model=place / "out" / ACTIVE / "model",
            ) as client:
                told = measure(client, data, plain(place))
    return [
        Figure(f"{words}: one id, p50", told["p50"], "ms", limit),
        Figure(f"{words}: one id, p99", told["p99"], "ms"),
        Figure(f"{words}: {MANY} ids at once", told["many"], "s"),
        Figure(f"{words}: largest error of a probability, all rows", told["error"], "", 1e-3),
    ]


def measure(client: VerticalClient, data: Joined, expected: Floats) -> dict[str, float]:
    """Milliseconds of one row, seconds of many, the largest error."""
    own = {name: data.rows[name].to_numpy() for name in data.active}
    ids, singles = data.rows["id"].tolist(), []
    client.score(ids[:1], {name: column[:1] for name, column in own.items()})
    for row in range(SINGLES):
        values = {name: column[row : row + 1] for name, column in own.items()}
        start = time.perf_counter()
        client.score(ids[row : row + 1], values)
        singles.append(time.perf_counter() - start)
    start = time.perf_counter()
    client.score(ids[:MANY], {name: column[:MANY] for name, column in own.items()})
    many = time.perf_counter() - start
    error = float(np.abs(client.score(ids, own).predictions - expected).max())
    p99 = sorted(singles)[int(0.99 * len(singles))]
    return {"p50": statistics.median(singles) * 1e3, "p99": p99 * 1e3, "many": many, "error": error}


def figures() -> list[Figure]:
    """All of it."""
    data = halves()
    return [figure for name in CASES for figure in case(data, name)]


if __name__ == "__main__":
    sys.exit(command_line(__doc__, figures))
