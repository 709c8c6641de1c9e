"""Job files: every mistake is one line that names the key, the value and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.config import job_from_public, load_job
from fl_core.errors import JobFileError, UsageError
from fl_core.job import KINDS, Job

ROOT = Path(__file__).parents[2]
BASE = {"kind": "horizontal", "dataset": {"name": "digits", "parties": 4}}


def job(**sections) -> dict:
    return {**json.loads(json.dumps(BASE)), **sections}


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda p: p.name)
def test_every_job_file_of_the_house_is_valid(path):
    assert load_job(path).kind in KINDS


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "diagonal"}, "kind: 'diagonal' is not allowed; allowed: horizontal"),
        ({"extra": 1}, "extra: unknown key"),
        ({"train": {"round": 3}}, "train.round: unknown key; did you mean 'rounds'?"),
        ({"train": {"rounds": "3"}}, "train.rounds: '3' is not a whole number; allowed: a whole number >= 0"),
        ({"train": {"rounds": True}}, "train.rounds: True is not a whole number"),
        ({"train": {"learning_rate": 0}}, "train.learning_rate: 0.0 is not allowed; allowed: a number > 0"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate: nan is not allowed"),
        ({"train": 3}, "train: 3 is not a table; allowed: [train]"),
        ({"train": {"strategy": "fedfoo"}}, "allowed: fedavg | fedprox | fedavgm | fedadam"),
        ({"model": {"hidden": 64}}, "model.hidden: 64 is not a list"),
        ({"model": {"hidden": [0]}}, "model.hidden[0]: 0 is not allowed"),
        ({"dataset": {"parties": 3}}, "dataset.name: missing"),
        ({"dataset": {"name": "digits", "parties": 2}}, "each learns the other's update"),
        ({"train": {"min_parties": 5}}, "train.min_parties: 5 of 4 parties"),
        ({"train": {"min_parties": 2}}, "allowed: more than half, 3 to 4"),
        ({"party": [{"name": "Bank A"}] * 4}, "party[0].name: 'Bank A'; allowed: a-z 0-9"),
        ({"party": [{"name": "a"}, {"name": "a"}, {"name": "b"}, {"name": "c"}]}, "is there twice"),
        ({"model": {"init": "nowhere.pt"}}, "model.init: no file"),
        ({"encryption": {"profile": "CKKS_9"}}, "encryption.profile"),
        ({"model": {"name": "transformer"}}, "model.name"),
        ({"dataset": {"name": "digit", "parties": 4}}, "dataset.name"),
        ({"privacy": {"mechanism": "dp-sgd"}, "train": {"standardize": "pooled"}}, "train.standardize"),
    ],
)
def test_a_mistake_names_key_value_and_what_is_allowed(change, told):
    with pytest.raises(JobFileError) as caught:
        load_job(job(**change))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_real_parties_must_name_data_and_label(tmp_path):
    parties = [{"name": n, "data": "x.csv", "label": "y"} for n in "abc"]
    with pytest.raises(JobFileError, match=r"party\[0\].data: no file .*x.csv"):
        load_job({"kind": "horizontal", "party": parties})
    del parties[1]["label"]
    with pytest.raises(JobFileError, match=r"party\[1\].label: missing for party 'b'"):
        load_job({"kind": "horizontal", "party": parties})


@pytest.mark.parametrize("text", ["kind = ", "\xff", "a = 1\na = 2"])
def test_a_broken_file_is_one_line(tmp_path, text):
    path = tmp_path / "job.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        load_job(path)
    assert "job.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "value"), [("train.rounds=7", 7), ("train.rounds = 7", 7)])
def test_overrides_win(text, value):
    assert load_job(BASE, [text.replace(" ", "")]).train.rounds == value


def test_an_override_may_be_a_bare_word_a_list_or_name_a_party():
    read = load_job(
        job(party=[{"name": n} for n in "abcd"]), ["model.name=cnn", "model.hidden=[8, 9]", "party.0.max_epsilon=2"]
    )
    assert (read.model.name, read.model.hidden, read.parties[0].max_epsilon) == ("cnn", (8, 9), 2.0)


@pytest.mark.parametrize("text", ["train.rounds", "=3", "party.9.name=x", "train=3"])
def test_a_bad_override_is_refused(text):
    with pytest.raises(UsageError):
        load_job(job(party=[{"name": n} for n in "abcd"]), [text])


def test_the_public_view_tells_no_path_column_or_limit(tmp_path):
    (tmp_path / "secret-place.csv").write_text("x\n")
    parties = [
        {"name": n, "data": str(tmp_path / "secret-place.csv"), "id": "ssn", "label": "illness", "max_epsilon": 1.25}
        for n in "abc"
    ]
    view = json.dumps(load_job({"kind": "horizontal", "party": parties}).public())
    assert not any(word in view for word in ("secret-place", "ssn", "illness", "1.25", str(tmp_path)))


@given(
    rounds=st.integers(0, 100),
    rate=st.floats(1e-9, 1e9),
    delta=st.floats(1e-12, 0.1),
    classes=st.lists(st.text("abc", min_size=1), max_size=3),
)
def test_public_view_round_trips_and_names_the_job(rounds, rate, delta, classes):
    read = load_job(
        job(
            train={"rounds": rounds, "learning_rate": rate}, privacy={"target_delta": delta}, model={"classes": classes}
        )
    )
    back = job_from_public(json.loads(json.dumps(read.public())))
    assert isinstance(back, Job)
    assert (back.train, back.privacy, back.model) == (read.train, read.privacy, read.model)
    assert back.digest() == read.digest()
    assert load_job(job(), {"train.rounds": rounds + 1}).digest() != load_job(job(), {"train.rounds": rounds}).digest()


@pytest.mark.parametrize(("n", "least"), [(3, 3), (4, 3), (5, 4), (10, 9)])
def test_min_parties_defaults_to_all_but_one_and_at_least_three(n, least):
    assert load_job(job(dataset={"name": "digits", "parties": n})).min_parties == least


def test_unsafe_choices_are_said():
    read = load_job(
        job(
            encryption={"scheme": "none"},
            privacy={"mechanism": "dp-sgd", "noise": "seeded"},
            dataset={"name": "digits", "parties": 2},
            train={"min_parties": 2},
        )
    )
    assert len(read.unsafe) == 3
