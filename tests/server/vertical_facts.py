"""A vertical run as the ledger holds it, for tests of what people see."""

from __future__ import annotations

from typing import Any

from fl_core.config import load_job

EVIL = "<script>alert('x')</script>&\"'|`_*\n\u202e"


def job(parties: int = 2, **tables: Any) -> dict[str, Any]:
    """The public view of a job; `vertical={"epochs": 3}` and the like change a table."""
    named = [{"name": name} for name in ("bank", "bureau", "shop")[:parties]]
    table = {"kind": "vertical", "name": "credit", "dataset": {"name": "breast_cancer"}, "party": named}
    return load_job(table | tables).public()


def facts(view: dict[str, Any] | None = None, *, steps: int = 10, ended: bool = True, **changes: Any) -> dict[str, Any]:
    """Of a run of `steps` epochs or trees; `ended`: with its result."""
    view = view or job()
    vertical, names = view["vertical"], [party["name"] for party in view["party"]]
    trees = vertical["algorithm"] == "gbdt"
    planned = (
        vertical["trees"]
        if trees
        else vertical.get("epochs") or (20 if vertical.get("algorithm") == "logistic" else 10)
    )
    metrics = {0: {"rows_aligned": "30000"}}
    metrics |= {n: {"loss": f"{0.7 - n / 100:.6g}", "auc": f"{0.5 + n / 100:.6g}"} for n in range(1, steps + 1)}
    if ended:
        unit = "tree" if trees else "epoch"
        figures = {"auc": "0.776", "ks": "0.41", "loss": "0.43", "rows_aligned": "30000"}
        metrics[planned + 1] = figures | {f"seconds_per_{unit}": "0.0751493"}
    spent = {"bytes": "777777", "seconds": "0.25"}
    rounds = [{"round": n, "metrics": m | spent, "parties": names, "missing": []} for n, m in metrics.items()]
    said: dict[str, Any] = {name: {"model": f"{i:02x}" * 32} for i, name in enumerate(names)}
    said[vertical["active"]]["roc"] = ["0 0", "0.1 0.51", "0.5 0.8", "1 1"]
    ledger = {
        "path": "/srv/home/ledger.db", "size": 42, "root": "ab" * 32, "log": "fedseal/0123456789abcdef",
        "checkpoint": "fedseal/0123456789abcdef\n42\ncm9vdA==\n", "cosigned": names,
    }  # fmt: skip
    base = {
        "run": "0f3a", "name": "credit", "status": "done", "job": view, "digest": "ef" * 32, "rounds": rounds,
        "said": said, "metrics": {}, "unsafe": [], "ledger": ledger, "model": "", "seconds": 12.5,
    }  # fmt: skip
    return base | changes


def evil() -> dict[str, Any]:
    """A run in which every text that others choose is an attack."""
    base = facts()
    view = base["job"] | {"name": EVIL, "party": [{"name": EVIL}, {"name": "b" + EVIL}]}
    view["vertical"] = view["vertical"] | {"active": EVIL, "algorithm": "gbdt", "gradient": EVIL, EVIL: EVIL}
    for record in base["rounds"]:
        record["metrics"] |= {EVIL: EVIL}
        record["parties"], record["missing"] = [EVIL], [EVIL]
    base["rounds"][-1]["metrics"] |= {"ks": EVIL, "test_rows": EVIL}
    base["rounds"][1]["metrics"]["loss"] = "\x0b0.5\n"  # which Python takes for a number
    said = {EVIL: {"model": EVIL, "roc": ["0 0", "0.5 0.7", "1 1"]}, "b" + EVIL: {"model": EVIL, "roc": EVIL}}
    ledger = base["ledger"] | dict.fromkeys(("path", "root", "log", "checkpoint"), EVIL) | {"cosigned": [EVIL]}
    changed = {"name": EVIL, "run": EVIL, "status": EVIL, "unsafe": [EVIL], "digest": EVIL, "said": said}
    return base | changed | {"job": view, "ledger": ledger}
