"""The made-up customers of `credit.toml`: `python -m experiments.make_credit [FOLDER]` writes the same files each time.

A bank knows what it lent and who paid it back; a credit bureau knows what its customers owe elsewhere.  Both see a part
of what makes people default, so both parts together foretell it better.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).with_name("credit")
COMMON, BANK_ONLY, BUREAU_ONLY = 1600, 400, 400
PURPOSES, PURPOSE_ODDS = ("car", "furniture", "renovation", "business", "education"), (-0.4, 0.0, -0.2, 0.7, 0.3)
JOBS, JOB_ODDS = ("employee", "civil servant", "self-employed", "retired", "student"), (0.0, -0.7, 0.6, -0.3, 0.6)
HOMES, HOME_ODDS = ("rent", "own", "mortgage", "family"), (0.3, -0.4, -0.2, 0.1)
BALANCE = -1.9  # of the logits: about a fifth default
NOISE = 0.3

Columns = dict[str, list[str]]


def main(folder: Path = FOLDER) -> None:
    """Write `bank.csv` and `bureau.csv`."""
    rng = np.random.default_rng(20)
    n = COMMON + BANK_ONLY + BUREAU_ONLY
    ids = [f"{number:06d}" for number in rng.choice(np.arange(100_000, 999_999), n, replace=False)]
    bank, bank_odds = _bank(rng, n)
    bureau, bureau_odds = _bureau(rng, n)
    odds = BALANCE + bank_odds + bureau_odds + rng.normal(0, NOISE, n)
    bank["defaulted"] = [str(int(d)) for d in rng.random(n) < 1 / (1 + np.exp(-odds))]
    folder.mkdir(exist_ok=True)
    _write(folder / "bank.csv", ids, bank, rng.permutation(COMMON + BANK_ONLY))
    known = np.r_[:COMMON, COMMON + BANK_ONLY : n]
    _write(folder / "bureau.csv", ids, bureau, rng.permutation(known))


def _bank(rng: np.random.Generator, n: int) -> tuple[Columns, NDArray[np.float64]]:
    age = np.clip(rng.normal(44, 13, n), 19, 88).round()
    income = np.exp(rng.normal(7.9, 0.45, n))
    amount = np.exp(rng.normal(9.0, 0.7, n))
    months = rng.choice([12, 24, 36, 48, 60, 72], n)
    years = np.minimum(rng.exponential(8, n), age - 18)
    job, purpose = rng.choice(5, n, p=[0.55, 0.12, 0.13, 0.13, 0.07]), rng.choice(5, n)
    burden = np.log(amount / months / income)
    odds = 0.6 * (burden - burden.mean()) / burden.std() - 0.05 * (years - 8) - 0.02 * (age - 44)
    odds += np.array(JOB_ODDS)[job] + np.array(PURPOSE_ODDS)[purpose]
    return {
        "age": _whole(age),
        "employment": _some_missing(rng, [JOBS[j] for j in job], 0.04),
        "monthly_income": _some_missing(rng, _whole(income, 10), 0.08),
        "years_with_bank": [f"{y:.1f}" for y in years],
        "loan_amount": _whole(amount, 100),
        "loan_months": _whole(months),
        "purpose": [PURPOSES[p] for p in purpose],
    }, odds


def _bureau(rng: np.random.Generator, n: int) -> tuple[Columns, NDArray[np.float64]]:
    late = rng.poisson(rng.gamma(0.6, 1.4, n))
    cards = rng.poisson(1.8, n)
    use = rng.beta(1.6, 2.4, n)
    debt = np.where(rng.random(n) < 0.2, 0.0, np.exp(rng.normal(8.6, 1.0, n)))
    enquiries = rng.poisson(0.9 + 1.2 * use)
    history = rng.gamma(3.0, 3.5, n)
    home = rng.choice(4, n, p=[0.45, 0.2, 0.25, 0.1])
    odds = 1.1 * (np.log1p(late) - 0.4) + 2.8 * (use - 0.4) + 0.35 * (enquiries - 1.4) - 0.05 * (history - 10)
    odds += 0.05 * (np.log1p(debt) - 7) + np.array(HOME_ODDS)[home]
    return {
        "late_payments": _whole(late),
        "credit_cards": _whole(cards),
        "limit_used": [f"{u:.2f}" for u in use],
        "debt_elsewhere": _some_missing(rng, _whole(debt, 10), 0.06),
        "enquiries_last_year": _whole(enquiries),
        "years_of_history": _some_missing(rng, [f"{h:.1f}" for h in history], 0.03),
        "housing": _some_missing(rng, [HOMES[h] for h in home], 0.05),
    }, odds


def _whole(values: NDArray[np.generic], step: int = 1) -> list[str]:
    return [str(round(float(v) / step) * step) for v in values]


def _some_missing(rng: np.random.Generator, values: list[str], share: float) -> list[str]:
    return ["" if gone else value for gone, value in zip(rng.random(len(values)) < share, values, strict=True)]


def _write(path: Path, ids: list[str], columns: Columns, rows: NDArray[np.int64]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["customer", *columns])
        out.writerows([ids[i], *(values[i] for values in columns.values())] for i in rows)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
