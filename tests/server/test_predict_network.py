"""Networks over TLS: right scores in both forms, several versions at once; keys that cannot be are refused."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from clients.predict.askers import make_asker
from fl_core.errors import DataError, UsageError
from fl_core.serving import digest
from server.serving.folding import Found, ready, squares
from server.serving.model import serve_network
from tests.server.test_predict import Place

D, HIDDEN = 12, 6
NAMES = tuple(f"measure_{i:02d}" for i in range(D))
KEY = b"k" * 32


def network(classes=3, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(HIDDEN, D)) / np.sqrt(D), rng.normal(size=HIDDEN) * 0.2
    last = rng.normal(size=(classes, HIDDEN)), rng.normal(size=classes)
    return Found(
        features=NAMES,
        classes=tuple(f"c{k}" for k in range(classes)),
        layers=(first, last),
        activations=(squares(HIDDEN),),
        mean=rng.normal(size=D) * 10,
        std=np.exp(rng.normal(size=D)),
    )


def rows_for(found, count, seed=1):
    return found.mean + found.std * np.random.default_rng(seed).normal(size=(count, D))


def against_first(found, x):
    logits = found.logits(x)
    return logits[:, 1:] - logits[:, :1]


def served(found, name="net", parameters="CKKS_NETWORK"):
    return serve_network(name, ready(found), parameters=parameters, version_key=KEY)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    models = {"net": served(network()), "newer": served(network(seed=5)), "two": served(network(2, seed=3), "two")}
    made = Place(tmp_path_factory.mktemp("network"), models=models)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def client(place):
    with place.client() as made:
        yield made


@pytest.mark.parametrize("rows", [1, 3, 9, 600])
def test_scores_are_those_of_the_plain_network_by_row_and_by_column(client, rows):
    found = network(2, seed=3)
    x = rows_for(found, rows)
    scores = client.predict(x, NAMES, "two")
    assert np.abs(scores.logits - against_first(found, x)).max() < 1e-3
    assert scores.probabilities.shape == (rows, 2)


def test_of_several_versions_the_last_is_asked_unless_one_is_named(client):
    offers = [offer for offer in client.models() if offer.name == "net"]
    assert len({offer.version for offer in offers}) == 2
    for seed, name in ((5, "net"), (0, f"net@{offers[0].version}"), (5, f"net@{offers[1].version}")):
        found = network(seed=seed)
        x = rows_for(found, 2, seed=seed)
        assert np.abs(client.predict(x, NAMES, name).logits - against_first(found, x)).max() < 1e-3
    with pytest.raises(UsageError, match="allowed: net, two"):
        client.predict(rows_for(network(), 1), NAMES, "net@0000")


def test_features_without_room_are_refused_before_they_are_sent(client, place):
    before = place.accounts.rows_today("clinic")
    found = network()
    with pytest.raises(DataError, match="scaled value"):
        client.predict(found.mean[None] + 100 * found.std, NAMES, "net")
    assert place.accounts.rows_today("clinic") == before


@pytest.mark.parametrize("change", ["zeros", "cut", "longer", "digest", "rotations", "many", "linear", "unknown"])
def test_keys_that_cannot_be_are_refused(place, client, change):
    asker = make_asker(client.model("two"))
    good, steps, parameters = asker.public, asker.rotations, "CKKS_NETWORK"
    data = {"zeros": bytes(len(good)), "cut": good[:-1], "longer": good + b"x"}.get(change, good)
    steps = {"rotations": steps[:-1], "many": tuple(range(1, 200))}.get(change, steps)
    parameters = {"linear": "CKKS_LINEAR", "unknown": "CKKS_NETWORK_9"}.get(change, parameters)
    request = place.context(data, parameters, rotations=steps)
    if change == "digest":
        request = place.context(good[:-1] + bytes([good[-1] ^ 1]), parameters, rotations=steps)[:1] + request[1:]
    parts = [type(request[1])(part=data[at : at + 1_000_000]) for at in range(0, len(data), 1_000_000)]
    assert place.refused("OpenContext", [request[0], *parts]) == grpc.StatusCode.INVALID_ARGUMENT


def test_garbage_rows_are_refused_and_the_honest_one_after_them_is_answered(place, client):
    offer = client.model("two")
    asker = make_asker(offer)
    size = 1_000_000
    request = place.context(asker.public, "CKKS_NETWORK", rotations=asker.rotations)
    parts = [type(request[1])(part=asker.public[at : at + size]) for at in range(0, len(asker.public), size)]
    place.raw("OpenContext", [request[0], *parts])
    name = digest([asker.public])
    row = asker.row(offer, np.zeros(D))

    def block(data):
        return place.block(name, [data], model="two", version=offer.version)

    for bad in (row[:-1], bytes(len(row)), b"\xff" * len(row), b""):
        assert place.refused("Predict", block(bad)) == grpc.StatusCode.INVALID_ARGUMENT
    reply = place.raw("Predict", block(row))
    scores = asker.open_row(offer, list(reply.answers))
    assert np.abs(scores - against_first(network(2, seed=3), centre(offer))).max() < 1e-3


def centre(offer):
    """The raw row that is zero in the client's scale."""
    return np.array([offer.centre])
