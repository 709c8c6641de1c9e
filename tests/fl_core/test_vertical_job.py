"""Job files of vertical training: what cannot be is one clear line, before anything starts."""

from __future__ import annotations

import pytest

from fl_core.config import load_job
from fl_core.errors import JobFileError

BANK = {"name": "bank", "data": "loans", "id": "who", "label": "defaulted"}
BUREAU = {"name": "bureau", "data": "scores", "id": "who"}


def job(vertical=None, *, bank=BANK, bureau=BUREAU, **tables):
    return load_job({"kind": "vertical", "runtime": "deployment", "party": [bank, bureau], "vertical": vertical or {}} | tables)


def test_a_plain_job_is_read():
    made = job({"algorithm": "gbdt", "trees": 3})
    assert (made.vertical.algorithm, made.vertical.trees, made.active) == ("gbdt", 3, "bank")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bureau": BUREAU | {"label": "kind"}}, r"party\[1\].label: 'kind': party bank has a label already"),
        ({"vertical": {"bins": 300}}, "vertical.bins: 300 is not allowed"),
        ({"vertical": {"protocol": "ckks", "algorithm": "gbdt"}}, "vertical.protocol"),
        ({"vertical": {"algorithm": "logistic", "mode": "open"}, "psi": {"output": "union"}}, "vertical.mode"),
        ({"vertical": {"algorithm": "gbdt"}, "privacy": {"mechanism": "cut-layer"}}, "privacy.mechanism"),
        ({"train": {"rounds": 3}}, "train: is not read by a vertical job"),
    ],
)
def test_what_cannot_be_is_one_clear_line(change, said):
    with pytest.raises(JobFileError, match=said) as caught:
        job(**change)
    assert "\n" not in str(caught.value)
