"""Asking by id: odd ids, an application's values, files; what is refused before anything is sent."""

from __future__ import annotations

import csv
import threading
import unicodedata

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.columns import MISSING, read_columns
from clients.predict.vertical_file import vertical_predict_file
from clients.predict.vertical_table import MAX_ID, columns_of, hash_texts, load_part, read_rows
from fl_core.errors import DataError, UsageError
from tests.server.serving.vertical_world import ACTIVE, GONE, Place, hashes_of, identifier, make_world, own_rows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), "logistic")


@pytest.fixture(scope="module")
def place(tmp_path_factory, world):
    made = Place(tmp_path_factory.mktemp("place"), {"cancer": world.served()})
    yield made
    made.stop()


# ------------------------------------------------------------------------------------------------ ids


def normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(normal), min_size=1))
def test_an_id_of_any_characters_is_the_one_that_the_tables_have(ids):
    distinct = list({normal(one): one for one in ids}.values())
    hashes = hash_texts(distinct, "x")
    assert (hashes == hash_texts([normal(one) for one in distinct], "x")).all()
    assert len({one.tobytes() for one in hashes}) == len(distinct)
    assert (hashes[0] == hashes_of(distinct[0])[0]).all()


def test_numbers_and_their_texts_are_one_id():
    assert (hash_texts([7, "8"], "x") == hash_texts(["7", 8], "x")).all()
    pair = pa.table({"a": ["x", "x"], "b": [1, 2]})
    assert len(np.unique(hash_texts(pair, "x"), axis=0)) == 2


@pytest.mark.parametrize(
    "bad",
    [
        "x" * (10 << 20),
        "x" * (MAX_ID + 1),
        "",
        " \n",
        "\ud800 secret",
        None,
        1.5,
        True,
        b"secret",
        ["secret"],
        "secret-1",
    ],
)
def test_what_is_no_id_is_refused_by_its_row_and_never_shown(place, world, bad):
    ids = ["secret-1", bad]
    with place.client(world.active) as client, pytest.raises(DataError) as caught:
        client.score(ids, own_rows(np.arange(2)))
    said = str(caught.value)
    assert "secret" not in said and "xxxx" not in said and "\n" not in said and len(said) < 200


# ------------------------------------------------------------------------------------------------ values

KINDS = {"age": "numbers", "town": "categories"}
CELLS = st.sampled_from(["1", " 2.5", "-3e2 ", "", "NA", "?", "nan"])
TOWNS = st.sampled_from(["Ulm", " Bonn", "Bonn", "7", "", "null", "ü"])


@given(st.lists(st.tuples(CELLS, TOWNS), min_size=1, max_size=9))
def test_an_applications_values_mean_what_they_mean_in_a_file(tmp_path_factory, cells):
    path = tmp_path_factory.mktemp("cells") / "x.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", *KINDS), *((i, *row) for i, row in enumerate(cells))])
    read = read_columns(path, id_columns=["id"], label=None, only=tuple(KINDS), kinds=KINDS, where="x").columns
    given_ = columns_of({name: [row[i] for row in cells] for i, name in enumerate(KINDS)}, KINDS, len(cells), "x")
    for one, two in zip(read, given_, strict=True):
        assert (one.name, one.kind) == (two.name, two.kind)
        if one.kind == "numbers":
            assert np.array_equal(one.numbers, two.numbers, equal_nan=True)
        else:
            words = [[c.categories[k] if k >= 0 else None for k in c.codes.tolist()] for c in (one, two)]
            assert words[0] == words[1]


def test_values_of_python_and_numpy_and_what_is_missing():
    values = {"age": [None, np.float64("nan"), np.int64(3)], "town": [None, 7, True], "other": "ignored"}
    age, town = columns_of(values, KINDS, 3, "x")
    assert np.array_equal(age.numbers, [np.nan, np.nan, 3], equal_nan=True)
    assert town.categories == ("7", "true") and town.codes.tolist() == [-1, 0, 1]
    assert all(columns_of({"age": [word]}, {"age": "numbers"}, 1, "x").columns[0].numbers != 0 for word in MISSING)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"town": ["a"]}, "'age': is not there"),
        ({"age": [1, 2], "town": ["a"]}, "'age': has 2 values; allowed: 1"),
        ({"age": ["secret"], "town": ["a"]}, "not a number"),
        ({"age": ["1_0"], "town": ["a"]}, "not a number"),
        ({"age": [{}], "town": ["a"]}, "not a number"),
        ({"age": [float("inf")], "town": ["a"]}, "not finite"),
        ({"age": [10**400], "town": ["a"]}, "not a number"),
        ({"age": [1], "town": [1.5]}, "neither text"),
    ],
)
def test_values_that_cannot_be_are_one_clear_line_without_the_value(values, said):
    with pytest.raises(DataError, match=said) as caught:
        columns_of(values, KINDS, 1, "x")
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_as_many_rows_as_ids(place, world):
    with place.client(world.active) as client:
        for ids, rows in (([], 0), (["a"], 2), (["a", "b"], 1)):
            with pytest.raises(DataError):
                client.score(ids, own_rows(np.arange(rows)))
        columns = read_rows(world.data(ACTIVE), ["id"], client.part)[2]
        with pytest.raises(DataError, match="1 ids for 569 rows"):
            client.score(["a"], columns)


def test_the_other_partys_part_cannot_ask(place, world):
    with pytest.raises(DataError, match="had no labels; allowed: the part of the party with the labels"):
        place.client(world.passive)
    with pytest.raises(DataError, match=r"no model\.json"):
        place.client(world.folder)


# ------------------------------------------------------------------------------------------------ files


def test_a_file_gets_scores_of_the_rows_that_both_have(place, world, tmp_path):
    out = tmp_path / "scores.csv"
    with place.client(world.active) as client:
        told = vertical_predict_file(client, world.data(ACTIVE), id_columns=["id"], out=out)
        one = client.score([identifier(3)], own_rows(np.array([3]))).predictions[0]
    found = pd.read_csv(out)
    assert list(found.columns) == ["id", "score"] and (told["asked"], told["rows"]) == (569, 569 - GONE.sum())
    assert found["id"].tolist() == [identifier(row) for row in np.flatnonzero(~GONE)]
    assert np.abs(found["score"] - world.plain(np.flatnonzero(~GONE))).max() < 1e-6
    assert found["score"][3] == pytest.approx(one)


def test_chosen_ids_are_scored_in_their_order_and_others_are_refused_unseen(place, world, tmp_path):
    out, gone = tmp_path / "scores.csv", identifier(int(np.flatnonzero(GONE)[0]))
    with place.client(world.active) as client:

        def ask(*ids, columns=("id",)):
            return vertical_predict_file(client, world.data(ACTIVE), id_columns=columns, ids=ids, out=out)

        ask(identifier(9), gone, f" {identifier(2)}")
        assert pd.read_csv(out)["id"].tolist() == [identifier(9), identifier(2)]
        for ids, said in (((gone,), "none of 1 ids"), (("nobody", identifier(2)), "1 of 2 are not in hospital.csv")):
            with pytest.raises(UsageError, match=said) as caught:
                ask(*ids)
            assert "nobody" not in str(caught.value) and gone not in str(caught.value)
        with pytest.raises(UsageError, match="without --id"):
            ask(columns=())
        with pytest.raises(UsageError, match="allowed: one"):
            ask("a", columns=("id", "mean radius"))


def test_a_party_that_had_the_labels_alone_asks_with_ids(world, tmp_path):
    from clients.model_folder import read_part, write_part

    told, arrays = read_part(world.active, "x")
    told = {name: value for name, value in told.items() if name not in ("format", "digest")}
    write_part(tmp_path / "m", {**told, "features": None}, {"weights": arrays["weights"][-1:]})
    (tmp_path / "ids.csv").write_text(f"id\n{identifier(1)}\n{identifier(2)}\n", encoding="utf-8")
    part = load_part(tmp_path / "m", active=True)[0]
    ids, hashes, columns = read_rows(tmp_path / "ids.csv", ["id"], part)
    assert (hashes == hashes_of(identifier(1), identifier(2))).all() and len(columns) == ids.num_rows == 2
    place = Place(tmp_path / "place", {"cancer": world.served()})
    with place.client(tmp_path / "m") as client:
        logits = client.score([identifier(1), identifier(2)], {}).logits[:, 0]
    whole, own = load_part(world.passive, active=False)[0], arrays["weights"][-1, 0]
    from tests.server.serving.vertical_world import PASSIVE
    from tests.server.serving.vertical_world import columns as columns_in

    expected = whole.partial(columns_in(PASSIVE, np.array([1, 2]), list(whole.kinds)))[:, 0] + own
    place.stop()
    assert logits == pytest.approx(expected, abs=1e-6)


def test_a_client_that_first_asks_from_many_threads_opens_one_key(tmp_path):
    trees = make_world(tmp_path, "trees")
    place, found = Place(tmp_path / "place", {"cancer": trees.served()}), []
    opened = []
    keep = place.service._keys.keep
    place.service._keys.keep = lambda *key: (opened.append(key[0]), keep(*key))
    with place.client(trees.active) as client:
        work = [
            threading.Thread(target=lambda: found.append(client.score([identifier(1)], own_rows(np.array([1])))))
            for _ in range(4)
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join(30)
    place.stop()
    assert len(opened) == 1 and len({one.predictions[0] for one in found}) == 1 and len(found) == 4
