"""A deployment in good weather: the commands of the README, what each person sees, and who is kept out."""

from __future__ import annotations

import json
import signal
import ssl
import urllib.request

import httpx
import pytest

from tests.e2e.federation import DEPLOYED, Federation
from tests.e2e.process import wait_until

pytestmark = pytest.mark.e2e

NAMES = ("bank", "bureau", "clinic")


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    made = Federation(tmp_path_factory.mktemp("federation"))
    made.start()
    for name in NAMES:
        table = made.place.table(name, 60)
        node = made.node(name, "--data", f"patients={made.place.path / table}", "--max-epsilon", "4")
        node.start(wait=False)
    for node in made.nodes.values():
        node.service.wait_for("connected")
        node.wait_for_executor()
    made.person("ann")
    yield made
    made.clear()


def write(person, name, *, rounds=2, parties=None, least=3, more=""):
    if parties is None:
        parties = "\n".join(f'[[party]]\nname = "{n}"\ndata = "patients"\nid = "id"\nlabel = "y"' for n in NAMES)
    path = person.path / f"{name}.toml"
    path.write_text(DEPLOYED.format(name=name, rounds=rounds, parties=parties, least=least, more=more))
    return path


def test_the_same_job_gives_the_same_metrics_as_on_one_machine(federation, tmp_path):
    ann = federation.people["ann"]
    done = ann.fedseal("run", write(ann, "same"), "--json")
    assert done.code == 0, done
    deployed = done.json
    parties = "\n".join(
        f'[[party]]\nname = "{n}"\ndata = "{federation.place.path / n}.csv"\nid = "id"\nlabel = "y"' for n in NAMES
    )
    local = federation.place.fedseal(
        "run", write(ann, "local", parties=parties), "--runtime", "local", "--home", tmp_path / "home", "--json"
    )
    assert local.code == 0, local
    for name in ("accuracy", "loss"):
        assert deployed["metrics"][name] == pytest.approx(local.json["metrics"][name], abs=1e-4)
    assert deployed["outputs"] == {n: {"model": None} for n in NAMES}
    assert federation.verdict() == 0
    (job,) = federation.ledger("job")
    assert job["body"]["submitted"]["name"] == "ann"
    assert job["body"]["submitted"]["roles"] == ["engineer"]


def test_each_owner_sees_what_the_node_did_and_got(federation):
    for node in federation.nodes.values():
        seen = node.status()
        assert seen["connected"] and seen["running"] and not seen["paused"]
        assert seen["runs"][-1]["job"] == "same" and seen["runs"][-1]["state"] == "done"
        run = seen["runs"][-1]["run"]
        assert (node.folder / "outputs" / run / node.name / "model.pt").is_file()
        assert [d["name"] for d in seen["data"]] == ["patients"]
    assert federation.place.fedseal("coordinator", "status").code == 0
    with urllib.request.urlopen(f"http://127.0.0.1:{federation.health_port}/health", timeout=5) as reply:
        assert json.load(reply)["ok"]


def test_an_outsider_with_the_authoritys_certificate_gets_nothing(federation):
    ca = str(federation.place.home / "coordinator" / "authority.pem")
    context = ssl.create_default_context(cafile=ca)
    base = f"https://localhost:{federation.nodes_port}"
    with httpx.Client(verify=context) as client:
        for path in ("start-run", "stop-run", "list-runs", "register-node", "list-nodes", "stream-logs"):
            assert client.post(f"{base}/v1/control/{path}", content=b"").status_code == 404, path
        for path in ("/v1/runtime/acquire-task", "/docs", "/openapi.json", "/health", "/v1/fleet/register-node"):
            assert client.post(base + path, content=b"").status_code == 404, path
        for path in ("pull-messages", "activate-node", "get-run", "push-object"):
            assert client.post(f"{base}/v1/fleet/{path}", content=b"").status_code == 401, path
        assert client.get(f"{base}/fedseal/federation").json()["authority"].startswith("-----BEGIN CERTIFICATE")
        with pytest.raises(httpx.HTTPError):  # the door asks for a client's certificate
            client.get(f"https://localhost:{federation.door_port}/")


def test_an_auditor_may_look_but_not_submit(federation):
    eve = federation.person("eve", "auditor")
    assert "auditor" in eve.fedseal("run", write(eve, "no")).fails(3)
    assert [r["name"] for r in eve.fedseal("runs", "--json").json["runs"]] == ["same"]
    assert "round 1" in eve.fedseal("logs", "same").out
    (refusal,) = [e for e in federation.ledger("refusal") if e["body"].get("method") == "Submit"]
    assert refusal["body"]["caller"]["name"] == "eve"
    assert federation.coordinator("revoke", "eve").code == 0
    assert "revoked" in eve.fedseal("runs").fails(3)


def test_an_owners_decisions_hold_against_the_job(federation):
    ann, bank = federation.people["ann"], federation.nodes["bank"]
    assert bank.place.fedseal("node", "pause").code == 0
    assert "bank" in ann.fedseal("run", write(ann, "paused")).fails(3)
    assert bank.status()["runs"][0]["state"] == "refused"
    assert bank.place.fedseal("node", "resume").code == 0
    greedy = '[privacy]\nmechanism = "dp-sgd"\ntarget_epsilon = 9.0\n'
    assert "budget" in ann.fedseal("run", write(ann, "greedy", more=greedy)).fails(3)
    path = federation.place.path / "bank.csv"
    parties = "\n".join(f'[[party]]\nname = "{n}"\ndata = "{path}"\nlabel = "y"' for n in NAMES)
    assert "node" in ann.fedseal("run", write(ann, "path", parties=parties)).fails(2)
    parties = "\n".join(f'[[party]]\nname = "{n}"\ndata = "other"\nlabel = "y"' for n in NAMES)
    assert "bank" in ann.fedseal("run", write(ann, "other", parties=parties)).fails(2)
    code = '[[party]]\nname = "bank"\n[[party]]\nname = "bureau"\n[[party]]\nname = "clinic"\n[dataset]\nname = "antigravity:x"\n'
    assert "bank" in ann.fedseal("run", write(ann, "code", parties=code)).fails(3)


def test_a_node_that_is_not_registered_or_disabled_is_kept_out(federation):
    ann = federation.people["ann"]
    stranger = federation.node("stranger", register=False)
    service = stranger.start(wait=False)
    service.wait_for("refused")
    stranger.kill_all()
    parties = "\n".join(f'[[party]]\nname = "{n}"' for n in (*NAMES, "stranger")) + '\n[dataset]\nname = "digits"\n'
    assert "stranger" in ann.fedseal("run", write(ann, "stranger", parties=parties)).fails(1)
    assert federation.coordinator("disable", "clinic").code == 0
    assert "clinic" in ann.fedseal("run", write(ann, "disabled")).fails(1)
    federation.nodes["clinic"].service.wait_for("refused")
    assert federation.coordinator("enable", "clinic").code == 0
    wait_until(lambda: federation.nodes["clinic"].status()["connected"], "clinic to come back", 90)
    states = [e["body"]["state"] for e in federation.ledger("node")]
    assert states[-2:] == ["disabled", "enabled"]


def test_ctrl_c_leaves_the_run_and_it_is_found_again(federation):
    ann = federation.people["ann"]
    running = ann.start("run", write(ann, "long", rounds=500))
    running.wait_for("round 1:")
    running.process.send_signal(signal.SIGINT)
    done = running.end()
    assert done.code == 0 and "goes on" in done.err, done
    (told,) = [r for r in ann.fedseal("runs", "--json").json["runs"] if r["name"] == "long"]
    assert told["status"] == "running"
    assert "round 1" in ann.fedseal("logs", told["run"]).out
    assert ann.fedseal("stop", told["run"], "--json").json["status"] == "stopped"
    resumed = ann.start("run", write(ann, "long", rounds=500), "--resume")
    resumed.wait_for("round")
    assert ann.fedseal("stop", "long", "--json").json["status"] == "stopped"
    assert resumed.end().code == 1
    assert [e["body"]["caller"]["name"] for e in federation.ledger("stop")] == ["ann", "ann"]
