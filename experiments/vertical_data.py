"""Public tables as two parties would hold them, and what a model on one party's columns or on both is worth.

The files lie in the folder that FEDSEAL_DATA names, or in `../shared/data`; where they come from stands in its README.
Rows are held out as scikit-learn's `train_test_split` draws them from ids in order (a fifth, random_state 42,
stratified), or as the data set's own authors did.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, KBinsDiscretizer, OneHotEncoder, OrdinalEncoder, StandardScaler

from experiments.process_tree import ROOT
from fl_core.learning import datasets

ACTIVE, PASSIVE = "active", "passive"
RARE = 50  # rows; less frequent categories are one
CLIP = 10.0


@dataclass(frozen=True, eq=False)
class Joined:
    """A table whose columns two parties hold.

    rows : columns `id`, `y` (0 or 1) and the features. active, passive : features of the party with the label, of the
    other one. test : (n,) rows to hold out. codes : features that are numbers and mean categories.
    """

    rows: pd.DataFrame
    active: tuple[str, ...]
    passive: tuple[str, ...]
    test: NDArray[np.bool_]
    codes: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Files `active.csv` (with `y`), `passive.csv` and `test.csv` (ids); the passive party's rows in disorder."""
        self.rows[["id", "y", *self.active]].to_csv(folder / f"{ACTIVE}.csv", index=False)
        self.rows[["id", *self.passive]].sample(frac=1, random_state=0).to_csv(folder / f"{PASSIVE}.csv", index=False)
        self.rows.loc[self.test, ["id"]].to_csv(folder / "test.csv", index=False)

    def job(self, settings: Mapping[str, Any]) -> str:
        """A job file beside the files of `write`; `settings` is its table `[vertical]`."""
        parties = []
        for name, columns in ((ACTIVE, self.active), (PASSIVE, self.passive)):
            party = {"name": name, "data": f"{name}.csv", "id": ["id"]} | ({"label": "y"} if name == ACTIVE else {})
            parties.append(("[party]", party | {"categorical": [c for c in self.codes if c in columns]}))
        tables = [*parties, ("vertical", settings), ("evaluate", {"test_ids": "test.csv"})]
        return toml({"kind": "vertical", "name": "bench", "seed": 7}, tables)


def toml(head: Mapping[str, Any], tables: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """A job file; JSON's numbers, texts and lists are TOML's too."""
    blocks = [("", head), *tables]
    return "\n".join(
        "\n".join([f"[{name}]"] * bool(name) + [f"{key} = {json.dumps(value)}" for key, value in table.items()])
        for name, table in blocks
    )


# ---- the tables


def _read(name: str, **how: Any) -> pd.DataFrame:
    return pd.read_csv(folder() / name, low_memory=False, **how).rename(columns={"encounter_id": "id"})


def folder() -> Path:
    """Where the files lie, whatever the folder of a run."""
    return (ROOT / datasets.folder()).resolve()


def _joined(rows: pd.DataFrame, active: Sequence[str], passive: Sequence[str] = (), **more: Any) -> Joined:
    """With the usual rows held out; `passive` has all other columns if it names none."""
    rows = rows.sort_values("id", ignore_index=True)
    rest = tuple(passive) or tuple(c for c in rows.columns if c not in ("id", "y", *active))
    test = np.zeros(len(rows), bool)
    test[train_test_split(np.arange(len(rows)), test_size=0.2, random_state=42, stratify=rows["y"])[1]] = True
    return Joined(rows, tuple(active), rest, test, **more)


def _two_files(guest: str, host: str) -> Joined:
    a, b = _read(guest), _read(host)
    b.columns = pd.Index(["id", *(f"host_{c}" for c in b.columns[1:])])
    return _joined(a.merge(b, on="id", validate="1:1"), [c for c in a.columns if c not in ("id", "y")])


def _default_credit_raw() -> Joined:
    rows = _read("default_credit_raw.csv.gz")
    bank = ["LIMIT_BAL", "SEX", "EDUCATION", "MARRIAGE", "AGE", *(f"BILL_AMT{i}" for i in range(1, 7))]
    return _joined(rows, bank)


def _adult() -> Joined:
    rows = _read("adult.csv.gz").sort_values("id", ignore_index=True)
    test = (rows["split"] == "test").to_numpy()
    own = ["age", "workclass", "education", "education_num", "occupation", "hours_per_week"]
    return Joined(rows, tuple(own), _others(rows, own, "fnlwgt", "split"), test)


def _bank_marketing() -> Joined:
    rows = _read("bank_marketing.csv.gz").drop(columns="duration")  # known only after the call that is to be foretold
    return _joined(rows, ["contact", "month", "day_of_week", "campaign", "pdays", "previous", "poutcome"])


def _diabetes130() -> Joined:
    rows = _read("diabetes130.csv.gz", na_values="?")
    rows["y"] = (rows.pop("readmitted") != "NO").astype(int)
    codes = ["admission_type_id", "discharge_disposition_id", "admission_source_id"]
    own = ["race", "gender", "age", *codes, "time_in_hospital", "payer_code", "medical_specialty"]
    own += ["diag_1", "diag_2", "diag_3", "number_diagnoses"]
    # weight: 97 % missing; the two drugs were given to nobody
    rest = _others(rows, own, "patient_nbr", "weight", "examide", "citoglipton")
    return _joined(rows, own, rest, codes=tuple(codes))


def _others(rows: pd.DataFrame, own: Sequence[str], *unused: str) -> tuple[str, ...]:
    return tuple(c for c in rows.columns if c not in ("id", "y", *own, *unused))


_HETERO = "default_credit_hetero_guest.csv.gz", "default_credit_hetero_host.csv.gz"
_BREAST = "breast_hetero_guest.csv", "breast_hetero_host.csv"
LOADERS: dict[str, tuple[tuple[str, ...], Callable[[], Joined]]] = {
    "default_credit": (_HETERO, lambda: _two_files(*_HETERO)),
    "default_credit_raw": (("default_credit_raw.csv.gz",), _default_credit_raw),
    "adult": (("adult.csv.gz",), _adult),
    "bank_marketing": (("bank_marketing.csv.gz",), _bank_marketing),
    "diabetes130": (("diabetes130.csv.gz",), _diabetes130),
    "breast": (_BREAST, lambda: _two_files(*_BREAST)),
}


def missing(*files: str) -> str:
    """Which of the files is not there, in words; empty if none."""
    return next((f"no {name} in {datasets.DATA_VARIABLE}" for name in files if not (folder() / name).is_file()), "")


# ---- what the same columns are worth in one place


def references(data: Joined, method: str) -> tuple[float, float]:
    """AUC of the held-out rows, of the active party's columns alone and of all columns pooled, by scikit-learn.

    Parameters
    ----------
    method : `logistic`, `binned` (logistic on 10 bins a column) or `trees` (30 of depth 3, 32 bins).
    """
    own, every = list(data.active), [*data.active, *data.passive]
    return _auc(data, own, method), _auc(data, every, method)


def _auc(data: Joined, columns: list[str], method: str) -> float:
    rows = data.rows[columns].copy()
    words = [c for c in columns if c in data.codes or not pd.api.types.is_numeric_dtype(rows[c])]
    for name in words:
        rows[name] = rows[name].astype(object).where(rows[name].notna(), "?").astype(str)
    numbers = [c for c in columns if c not in words]
    model = make_pipeline(_features(numbers, words, method), _learner(method))
    y = data.rows["y"].to_numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of quantiles that coincide
        model.fit(rows[~data.test], y[~data.test])
    return float(roc_auc_score(y[data.test], model.predict_proba(rows[data.test])[:, 1]))


def _features(numbers: list[str], words: list[str], method: str) -> Any:
    if method == "trees":
        ranks = OrdinalEncoder(min_frequency=RARE, handle_unknown="use_encoded_value", unknown_value=-1)
        return make_column_transformer(("passthrough", numbers), (ranks, words))
    flags = OneHotEncoder(min_frequency=RARE, handle_unknown="infrequent_if_exist")
    if method == "binned":
        scale = make_pipeline(SimpleImputer(), KBinsDiscretizer(10, strategy="quantile", quantile_method="linear"))
    else:
        clip = FunctionTransformer(np.clip, kw_args={"a_min": -CLIP, "a_max": CLIP})
        scale = make_pipeline(SimpleImputer(), StandardScaler(), clip)
    return make_column_transformer((scale, numbers), (flags, words))


def _learner(method: str) -> Any:
    if method == "trees":
        return HistGradientBoostingClassifier(
            max_iter=30, max_depth=3, learning_rate=0.3, max_bins=32, early_stopping=False
        )
    return LogisticRegression(max_iter=1000)
