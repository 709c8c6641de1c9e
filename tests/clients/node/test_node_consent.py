"""Standing grants of a node: signed as its settings say, and not against what the owner took back."""

from __future__ import annotations

import dataclasses

import pytest

from clients.consent.decision import Consent
from clients.node.folder import NodeFolder, Settings, Source
from clients.policy import ASK, STANDING
from fl_core.home import Home
from fl_core.trust.identity import Identity
from server.cli.node import consent_line

SOURCES = {name: Source(f"/data/{name}.csv") for name in ("credit", "loans")}


@pytest.fixture
def node(tmp_path):
    settings = Settings("bank", "fed.example:9443", sources=SOURCES)
    folder = NodeFolder.create(Home.open(tmp_path / "home"), settings, authority=b"pem")
    folder.pin(Identity.create("coordinator").card)
    folder.agree()
    return folder


def change(node, *, anew=False, **changes):
    node.save(dataclasses.replace(node.settings(), **changes))
    node.agree(anew=anew)


def standing(node):
    """Dataset → kinds of the standing grants that hold."""
    consent = Consent(node.path, Identity.load_or_create(node.path, "bank"))
    return {a.grant.terms.dataset: a.grant.terms.kinds for a in consent.grants() if not a.revoked}


def test_each_bound_name_has_one_and_an_owner_who_asks_has_none(node):
    kinds = node.settings().kinds
    assert standing(node) == {"credit": kinds, "loans": kinds}
    change(node, consent=ASK)
    assert standing(node) == {} and node.policy().consent == ASK
    change(node, consent=STANDING, anew=True)
    assert standing(node) == {"credit": kinds, "loans": kinds}


def test_it_follows_what_the_node_allows(node):
    change(node, kinds=("psi",))
    assert standing(node) == {"credit": ("psi",), "loans": ("psi",)}
    change(node, sources={**SOURCES, "people": Source("/data/people.csv")})
    assert set(standing(node)) == {"credit", "loans", "people"}


def test_what_the_owner_took_back_comes_back_by_its_word_only(node):
    consent = Consent(node.path, Identity.load_or_create(node.path, "bank"))
    (id,) = (a.grant.id for a in consent.grants() if a.grant.terms.dataset == "loans")
    consent.revoke(id, "no more", log=consent.approval(id).log)
    change(node, limits={"*": 3.0})
    assert set(standing(node)) == {"credit"}
    change(node, consent=STANDING, anew=True)
    assert set(standing(node)) == {"credit", "loans"}


def test_one_loud_line_says_who_may_use_the_data(node):
    line = consent_line(node.settings())
    assert "CONSENT standing" in line and "everyone whom the coordinator admits may use credit, loans" in line
    assert "--consent ask" in line and "\n" not in line
    change(node, consent=ASK)
    assert "CONSENT ask: each use of credit, loans needs a grant" in consent_line(node.settings())
