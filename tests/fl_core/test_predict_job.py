"""Job files of joint predictions: what is asked for, what travels, and what is said to be unsafe."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fl_core.config import job_from_public, load_job
from fl_core.errors import JobFileError
from fl_core.protocols.prediction.plan import plan_of

RUN = "0123456789abcdef"
PARTIES = [{"name": "bank", "data": "new", "id": "id"}, {"name": "lab", "data": "new", "id": "id"}]


def job(predict=None, *, parties=PARTIES, **tables):
    table = {
        "kind": "predict",
        "runtime": "deployment",
        "party": parties,
        "predict": {"model": "credit"} | (predict or {}),
    }
    return load_job(table | tables)


def filled(**more):
    told = {"model": RUN, "active": "bank", "algorithm": "gbdt", "receivers": ("lab",), "folder": "/srv/secret"} | more
    made = job()
    return dataclasses.replace(made, predict=dataclasses.replace(made.predict, **told))


def test_what_travels_names_the_run_and_no_path():
    view = filled().public()
    assert "secret" not in json.dumps(view) and view["predict"]["model"] == RUN
    read = job_from_public(view)
    assert plan_of(read).receivers == ("lab",) and read.predict.folder is None
    assert read.digest() == filled().digest() == filled(folder=None).digest()
    assert filled().own_part("lab")["model"] == "/srv/secret/lab/model"
    assert "model" not in filled(folder=None).own_part("lab")


def test_no_job_file_can_name_the_folder_of_parts():
    for key in ("folder", "\0folder"):
        with pytest.raises(JobFileError):
            job({key: "/etc"})


@pytest.mark.parametrize(
    ("predict", "said"),
    [
        ({"model": ""}, "predict.model: missing"),
        ({"receivers": ["ministry"]}, "predict.receivers: 'ministry'"),
        ({"receivers": ["lab", "lab"]}, "predict.receivers: 'lab'"),
        ({"min_trees": 0}, "predict.min_trees: 0"),
        ({"active": "ministry"}, "predict.active: 'ministry'"),
        ({"algorithm": "oracle"}, "predict.algorithm: 'oracle'"),
        ({"algorithm": "split-nn", "active": "bank", "receivers": ["lab"]}, "allowed: bank, which has the top model"),
        ({"trees": 3}, "predict.trees: unknown key"),
    ],
)
def test_a_wrong_key_is_one_clear_line(predict, said):
    with pytest.raises(JobFileError) as caught:
        job(predict)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"psi": {"output": "union"}}, "psi.output"),
        ({"psi": {"receivers": ["bank"]}}, "psi.receivers"),
        ({"vertical": {"trees": 3}}, "vertical: is not read by a predict job"),
        ({"dataset": {"name": "digits"}}, "dataset: is not read by a predict job"),
        ({"parties": PARTIES[:1]}, "two or more"),
        ({"parties": [PARTIES[0], PARTIES[1] | {"label": "y"}]}, "party[1].label"),
        ({"parties": [PARTIES[0], PARTIES[1] | {"columns": ["a"]}]}, "party[1].columns"),
        ({"parties": [PARTIES[0], {"name": "lab", "data": "new"}]}, "party[1].id"),
        (
            {"parties": [*PARTIES, {"name": "shop", "data": "new", "id": "id"}], "psi": {"protocol": "cm20"}},
            "psi.protocol",
        ),
    ],
)
def test_what_does_not_fit_together_is_one_clear_line(tables, said):
    parties = tables.pop("parties", PARTIES) if "parties" in (tables := dict(tables)) else PARTIES
    with pytest.raises(JobFileError, match=said.replace("[", r"\[")):
        job(parties=parties, **tables)


@pytest.mark.parametrize("model", ["credit", "../" + RUN, RUN.upper(), RUN + "/.."])
def test_a_party_takes_a_run_and_nothing_else_for_a_model(model):
    with pytest.raises(JobFileError):
        plan_of(filled(model=model))
    for missing in ({"active": None}, {"receivers": ()}):
        with pytest.raises(JobFileError):
            plan_of(filled(**missing))


def test_few_trees_and_embeddings_are_said_to_be_unsafe():
    assert filled().unsafe == [] and job().unsafe == []
    assert "5 trees" in filled(min_trees=5).unsafe[0]
    assert filled(min_trees=5, algorithm="logistic").unsafe == []
    assert "embeddings" in filled(algorithm="split-nn", receivers=("bank",)).unsafe[0]


def test_encrypted_trees_for_the_party_with_the_labels_need_no_dealer():
    made = filled(protocol="ckks", receivers=("bank",))
    assert plan_of(made).protocol == "ckks" and not plan_of(made).deals
    assert plan_of(filled()).protocol == "shared" and plan_of(filled()).deals
    assert job_from_public(made.public()).digest() == made.digest() != filled(receivers=("bank",)).digest()


THIRD = [*PARTIES, {"name": "shop", "data": "new", "id": "id"}]


@pytest.mark.parametrize(
    ("told", "parties", "said"),
    [
        ({"receivers": ("lab",)}, PARTIES, "receivers lab"),
        ({"receivers": ("bank", "lab")}, PARTIES, "receivers bank, lab"),
        ({"algorithm": "logistic"}, PARTIES, "logistic"),
        ({"algorithm": "split-nn"}, PARTIES, "split-nn"),
        ({}, THIRD, "3 parties"),
    ],
)
def test_encryption_where_there_is_none_is_one_clear_line(told, parties, said):
    made = dataclasses.replace(
        filled(**{"protocol": "ckks", "receivers": ("bank",), **told}), parties=job(parties=parties).parties
    )
    with pytest.raises(JobFileError, match=r"predict\.protocol: 'ckks' with ") as caught:
        plan_of(made)
    assert f"with {said}; allowed: shared; ckks for boosted trees of two parties" in str(caught.value)
    plan_of(dataclasses.replace(made, predict=dataclasses.replace(made.predict, protocol="shared")))


def test_a_protocol_that_is_none_and_an_unknown_model_are_refused():
    with pytest.raises(JobFileError, match=r"predict\.protocol: 'he' is not allowed; allowed: shared \| ckks"):
        job({"protocol": "he"})
    with pytest.raises(JobFileError, match=r"predict\.algorithm: missing"):
        plan_of(filled(protocol="ckks", receivers=("bank",), algorithm=None))
