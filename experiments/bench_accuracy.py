"""What the models are worth: accuracy on all parties' held-out rows, as the command's summary tells it.

`python -m experiments.bench_accuracy`.  Without DP a run repeats exactly, so one run is the figure, and the same job
without encryption shows what encryption costs.  DP noise is the operating system's: the demo runs `DP_RUNS` times.
MNIST is skipped, and says so, when its file is not there.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from experiments.figures import Figure, command_line
from experiments.process_tree import ROOT, fedseal, run_tree
from fl_core.learning import datasets

DP_RUNS = 5
MNIST = "mnist10k, iid, 10 parties, 10 rounds: accuracy"


def accuracy(job: str, *settings: str) -> float:
    """Run an experiment's job file in an empty home."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [part for setting in settings for part in ("--set", setting)]
        done = run_tree(
            fedseal("run", str(ROOT / "experiments" / job), "--json", "--quiet", *overrides),
            cwd=Path(folder),
            env={"FEDSEAL_HOME": folder, datasets.DATA_VARIABLE: str(data_folder())},
        )
        return float(done.json()["metrics"]["accuracy"])


def data_folder() -> Path:
    """Where the picture files lie, whatever the folder of the run."""
    return (ROOT / datasets.folder()).resolve()


def mnist() -> Figure:
    """The second job, if its data are there."""
    missing = ""
    if not (data_folder() / "mnist10k.npz").is_file():
        missing = f"no mnist10k.npz in {datasets.DATA_VARIABLE}"
    value = 0.0 if missing else accuracy("mnist10k.toml")
    return Figure(MNIST, value, "", 0.93, at_least=True, skipped=missing)


def figures() -> list[Figure]:
    """Four accuracies and the difference that encryption makes."""
    sealed, plain = (accuracy("digits_dirichlet.toml", f'encryption.scheme="{s}"') for s in ("ckks", "none"))
    private = [accuracy("demo.toml") for _ in range(DP_RUNS)]
    digits = "digits, Dirichlet 0.5, 4 parties, 20 rounds"
    return [
        Figure(f"{digits}: accuracy", sealed, "", 0.95, at_least=True),
        Figure(f"{digits}: not encrypted", plain, ""),
        Figure("encrypted against plain, difference", 100 * abs(sealed - plain), "points", 0.5),
        mnist(),
        Figure(f"demo, ε = 8: accuracy, least of {DP_RUNS}", min(private), "", 0.88, at_least=True),
        Figure(f"demo, ε = 8: accuracy, median of {DP_RUNS}", statistics.median(private), ""),
    ]


if __name__ == "__main__":
    sys.exit(command_line(__doc__ or "", figures))
