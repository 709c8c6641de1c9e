"""The end of `make demo`: predictions on rows that nobody shows.

A vertical model scores customers for the bank.  Then a hospital serves the digits model that four owners trained, its
activations made x², and a clinic gets scores of encrypted rows.
"""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
DIGITS = "digits-ckks-dp"
ROWS = 300
END_SECONDS = 60.0


def main() -> None:
    """Both, with what each side learns."""
    with tempfile.TemporaryDirectory(prefix="fedseal-demo-") as folder:
        _vertical(Path(folder))
        _encrypted(Path(folder))


def _vertical(folder: Path) -> None:
    _fedseal("run", HERE / "credit.toml", "--out", folder / "credit", "--json")
    asked = ["run", HERE / "predict.toml", "--set", f"predict.model={folder / 'credit'}"]
    scores = json.loads(_fedseal(*asked, "--out", folder / "scores", "--json"))["outputs"]["bank"]["scores"]
    with Path(scores).open(newline="") as file:
        rows = list(csv.DictReader(file))
    print(f"\nbank and bureau scored {len(rows)} customers together; the bank alone has the scores: {rows[0]} …")


def _encrypted(folder: Path) -> None:
    """The hospital's side and the clinic's, each with a home of its own."""
    hospital, clinic = ("--home", folder / "hospital"), ("--home", folder / "clinic")
    rows, labels = _tables(folder)
    run = next(r for r in reversed(json.loads(_fedseal("runs", "--json"))["runs"]) if r["name"] == DIGITS)
    network, card = folder / "network.npz", folder / "clinic.card"
    cost = json.loads(
        _fedseal("serve", "--model", run["out"], "--convert", folder / "own.csv", "--out", network, "--json", *hospital)
    )
    print(f"hospital: tanh made x², the same digit as before for {cost['agreement']:.1%} of rows kept apart")
    card.write_text(_fedseal("predict", "--as", "clinic", "--card", *clinic))
    with _serving(["--model", f"digits={network}", "--client", card, "--listen", "127.0.0.1:0", *hospital]) as address:
        told = _fedseal(
            "predict", "--server", address, "--ca", folder / "hospital" / "serving" / "authority.pem", "--as", "clinic",
            "--data", rows, "--id", "row", "--out", folder / "digits.csv", "--json", *clinic,
        )  # fmt: skip
    with (folder / "digits.csv").open(newline="") as file:
        right = np.mean([row["label"] == str(label) for row, label in zip(csv.DictReader(file), labels, strict=True)])
    seconds = json.loads(told)["seconds"]
    print(f"clinic: {len(labels)} encrypted pictures scored in {seconds:.1f} s, {right:.1%} of the digits are right")
    print("what the hospital knows of it, signed by both:")
    print(_fedseal("audit", "usage", "--ledger", folder / "hospital" / "serving" / "ledger.db"))


def _tables(folder: Path) -> tuple[Path, list[int]]:
    """`own.csv` of the hospital and `rows.csv` of the clinic, other pictures; and the clinic's digits."""
    from sklearn.datasets import load_digits


    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    names = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
    for name, chosen in (("own", order[ROWS:]), ("rows", order[:ROWS])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["row", *names])
            out.writerows([n, *(x[i] / 16).tolist()] for n, i in enumerate(chosen))
    return folder / "rows.csv", y[order[:ROWS]].tolist()


def _fedseal(*words: Any) -> str:
    command = [sys.executable, "-m", "server.cli.main", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def _serving(words: list[Any]) -> Iterator[str]:
    """`fedseal serve` until the block ends; gives its address."""
    command = [sys.executable, "-m", "server.cli.main", "serve", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                print(line, end="", file=sys.stderr)
                if found := re.search(r"serving .* on (\S+)$", line):
                    yield found[1]
                    break
            else:
                raise SystemExit("fedseal serve ended before it served")
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=END_SECONDS)


if __name__ == "__main__":
    main()
