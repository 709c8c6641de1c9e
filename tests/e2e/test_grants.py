"""An owner who wants to be asked: no run without a grant, one run with a grant for one, none after it."""

from __future__ import annotations

import pytest

from clients.consent.data import place_of
from clients.consent.decision import Consent
from clients.consent.terms import Wanted
from fl_core.config import load_job
from fl_core.home import Home
from fl_core.trust import canonical
from fl_core.trust.checkpoint import log_id
from fl_core.trust.grant_statements import GrantRequest
from fl_core.trust.grants import Signer, Terms
from fl_core.trust.identity import Identity
from server import orders
from tests.clients.owners import card_of
from tests.e2e.federation import DEPLOYED, Federation
from tests.e2e.process import Place

pytestmark = pytest.mark.e2e

NAMES = ("bank", "bureau", "clinic")


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path)
    made.start()
    for name in NAMES:
        data = f"patients={made.place.path / made.place.table(name, 60)}"
        asks = ("--consent", "ask") if name == "bank" else ()
        made.node(name, "--data", data, *asks).start(wait=False)
    for node in made.nodes.values():
        node.service.wait_for("connected")
        node.wait_for_executor()
    made.person("ann")
    yield made
    made.clear()


def works(done):
    assert done.code == 0, done
    return done.json


def test_an_owner_who_asks_is_asked_for_each_use(federation):
    ann, bank = federation.people["ann"], federation.nodes["bank"].place
    parties = "\n".join(f'[[party]]\nname = "{n}"\ndata = "patients"\nid = "id"\nlabel = "y"' for n in NAMES)
    job = ann.path / "job.toml"
    job.write_text(DEPLOYED.format(name="asked", rounds=1, parties=parties, least=3, more=""))
    assert federation.nodes["bank"].status()["consent"] == "ask"

    done = ann.fedseal("check", job, "--json")
    assert done.code == 3 and [p["status"] for p in done.json["parties"]] == ["refused", "ready", "ready"], done
    done = ann.fedseal("run", job, "--json")
    assert done.code == 3 and "party bank, joining: grant (none)" in done.json["error"], done

    done = federation.coordinator("admit", "bank", "--role", "data-owner", "--out", ann.path / "bank.pass")
    assert done.code == 0, done
    assert bank.fedseal("login", ann.path / "bank.pass").code == 0
    works(bank.fedseal("data", "publish", "--name", "patients", "--purpose", "research", "--json"))
    request = works(ann.fedseal("grant", "request", "bank/patients", "--job", job, "--json"))["request"]
    granted = works(bank.fedseal("grant", "approve", request, "--uses", 1, "--json"))["grant"]

    done = ann.fedseal("run", job, "--json")
    assert done.code == 0, done
    again = ann.fedseal("run", job, "--json")
    assert again.code == 3 and "party bank, joining: grant (uses)" in again.json["error"], again

    refusals = [entry for entry in federation.ledger("refusal") if entry["by"] == "bank"]
    assert [entry["body"]["topics"] for entry in refusals] == [["none"], ["uses"]]
    joins = {entry["by"]: entry["body"] for entry in federation.ledger("join")}
    assert joins["bank"]["grant"] == granted and "standing" not in joins["bank"]
    assert joins["bureau"]["standing"] and joins["clinic"]["standing"]
    orders = [entry["body"] for entry in federation.ledger("job")]
    assert len({body["order"] for body in orders}) == 3 and {body["grantee"]["name"] for body in orders} == {"ann"}
    assert sorted(entry["by"] for entry in federation.ledger("grant")) == sorted(NAMES)  # once each, however often used
    assert federation.verdict() == 0


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.clear()


def test_strict_on_one_machine_asks_for_real_grants_and_then_uses_them(place):
    """The data are known by where they lie: the job file names the file, the grant the dataset."""
    files = [place.table(name, 60) for name in NAMES]
    parties = "\n".join(
        f'[[party]]\nname = "{name}"\ndata = "{file}"\nid = "id"\nlabel = "y"\n'
        for name, file in zip(NAMES, files, strict=True)
    )
    job = place.job("strict", rounds=1, parties=parties)
    done = place.fedseal("run", job, "--strict", "--as", "ann", "--json")
    assert done.code == 3 and "joining: grant (none)" in done.json["error"], done
    for name, file in zip(NAMES, files, strict=True):
        approve(place, name, place.path / file, job)
    done = place.fedseal("run", job, "--strict", "--as", "ann", "--json")
    assert done.code == 0, done
    done = place.fedseal("run", job, "--strict", "--as", "ann", "--json")
    assert done.code == 3 and "joining: grant (uses)" in done.json["error"], done


def approve(place, name, file, job):
    """What `fedseal data publish`, `grant request --job` and `grant approve` do, in this process."""
    home = Home.open(place.home)
    owner, ann = orders.person(home, name), orders.person(home, "ann")
    log, consent = (
        log_id(Identity.load_or_create(home.coordinator, "coordinator").card),
        Consent(home.party(name), owner),
    )
    card = card_of(name, name="patients", purposes=("research",))
    consent.publish(card, log=log, place=place_of(file))
    wanted = Wanted.of(load_job(job), owner=name, dataset="patients")
    terms = Terms(
        owner=name, dataset="patients", version="", grantee=Signer.of(ann.card), kinds=(wanted.kind,),
        algorithms=(wanted.algorithm,), model="", job=wanted.job, private_only=False, uses=1, epsilon=0,
        receivers=wanted.receivers, not_before=0, not_after=canonical.MAX_INT, purpose="research",
    )  # fmt: skip
    request = consent.receive(GrantRequest(terms).sign(ann, log=log), ann.card)
    consent.approve(request, log=log)
