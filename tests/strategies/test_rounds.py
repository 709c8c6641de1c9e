"""The round loop over the real ClientApp, in one process: results, dropouts, resume, and hostile messages."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fl_core import messages
from fl_core.errors import BudgetExceeded, DataError, JobFailed, LedgerBroken
from fl_core.trust.verify import verify_ledger
from strategies.coordination import Stopped
from tests.support import Federation, digits


def weights(path: Path, party: str = "party_1") -> np.ndarray:
    content = torch.load(path / party / "model.pt", weights_only=True)
    return np.concatenate([t.numpy().ravel() for t in content["weights"].values()])


def reference(job: dict) -> np.ndarray:
    """FedAvg in twenty plain lines: no Flower, no encryption, no messages."""
    from clients.data import load_party_data
    from fl_core.config import load_job
    from fl_core.learning import models, training
    from fl_core.learning.seeds import derive_seed

    read = load_job(job)
    data = [load_party_data(read, p) for p in read.parties]
    model = models.build_model(
        read.model, input_shape=data[0].input_shape, image_shape=data[0].image_shape,
        num_classes=len(data[0].classes), seed=read.seed,
    )  # fmt: skip
    w = models.get_vector(model)
    for number in range(1, read.train.rounds + 1):
        total, rows = np.zeros_like(w), 0
        for party, d in zip(read.parties, data, strict=True):
            models.set_vector(model, w)
            seed = derive_seed(read.seed, party.name, number)
            result = training.local_train(model, d.x_train, d.y_train, read.train, seed=seed, global_vector=w)
            total, rows = total + result.delta * len(d.y_train), rows + len(d.y_train)
        w = w + total / rows
    return w


@pytest.mark.parametrize("profile", ["NONE", "CKKS_2048", "CKKS_4096", "BFV_2048"])
def test_the_federation_computes_what_a_plain_loop_computes(tmp_path, profile):
    encryption = {"scheme": "none"} if profile == "NONE" else {"profile": profile}
    job = digits(encryption=encryption, name="loop")
    fed = Federation(tmp_path)
    outcome = fed.run(job)
    tolerance = {"NONE": 1e-6, "BFV_2048": 3e-3}.get(profile, 1e-5)
    assert np.abs(weights(fed.out) - reference(job)).max() < tolerance
    assert outcome.metrics["accuracy"] > 0.85
    assert [r.round for r in fed.records] == [0, 1, 2, 3]
    assert verify_ledger(fed.home.ledger).status == 0


def test_all_parties_hold_the_same_model_and_outputs_stay_apart(tmp_path):
    fed = Federation(tmp_path)
    fed.run(digits())
    assert all(np.array_equal(weights(fed.out), weights(fed.out, f"party_{i}")) for i in (2, 3))


@pytest.mark.parametrize("strategy", ["fedprox", "fedavgm", "fedadam"])
def test_server_optimisers_run_at_the_parties_under_encryption(tmp_path, strategy):
    plain, sealed = Federation(tmp_path / "plain"), Federation(tmp_path / "sealed")
    one = plain.run(digits(train__strategy=strategy, encryption={"scheme": "none"}))
    two = sealed.run(digits(train__strategy=strategy))
    assert np.abs(weights(plain.out) - weights(sealed.out)).max() < 1e-4
    assert one.metrics["accuracy"] == pytest.approx(two.metrics["accuracy"], abs=0.005)


def lose(party: str, step: str, when: int = 1, times: int = 1):
    """A hook that loses messages `when` … of a step to a party."""
    count = SimpleNamespace(n=0)

    def hook(p, s, arrays):
        if (p, s) == (party, step):
            count.n += 1
            if when <= count.n < when + times:
                return None
        return arrays

    return hook


def four(**changes):
    return digits(dataset={"name": "digits", "parties": 4}, **changes)


def test_a_lost_upload_leaves_the_round_to_the_others_and_the_party_catches_up(tmp_path):
    fed = Federation(tmp_path)
    outcome = fed.run(four(), reply=lose("party_2", messages.ROUND, when=2))
    aggregates = [e.body for e in fed.entries("aggregate")]
    assert [a["missing"] for a in aggregates] == [[], ["party_2"], [], []]
    assert [e.body["party"] for e in fed.entries("drop")] == ["party_2"]
    assert np.array_equal(weights(fed.out, "party_1"), weights(fed.out, "party_2"))
    assert outcome.metrics["accuracy"] > 0.8
    assert verify_ledger(fed.home.ledger).status == 0


def test_a_party_lost_for_two_rounds_gets_both_sums(tmp_path):
    fed = Federation(tmp_path)
    fed.run(four(), request=lose("party_3", messages.ROUND, when=2, times=2))
    assert np.array_equal(weights(fed.out, "party_1"), weights(fed.out, "party_3"))


def test_too_few_parties_end_the_run_and_say_who_is_missing(tmp_path):
    fed = Federation(tmp_path)
    with pytest.raises(JobFailed, match=r"round 2: 2 of 3 parties contributed, 3 are needed \(party_2: died\)"):
        fed.run(digits(), request=lose("party_2", messages.ROUND, when=2, times=9))


class Crash(Exception):
    pass


def crash_at(wanted: int):
    count = SimpleNamespace(n=0)

    def progress(event):
        count.n += 1
        if count.n == wanted:
            raise Crash

    return progress


def test_resume_at_every_event_gives_the_result_of_an_undisturbed_run(tmp_path):
    job = digits(train__rounds=2, train__strategy="fedavgm")
    whole = Federation(tmp_path / "whole")
    expected = whole.run(job)
    events = len(whole.events)
    for at in range(1, events + 1):
        fed = Federation(tmp_path / str(at))
        with pytest.raises(Crash):
            fed.run(job, progress=crash_at(at))
        outcome = fed.run(job)
        assert np.abs(weights(fed.out) - weights(whole.out)).max() < 1e-6, at
        assert outcome.metrics["accuracy"] == expected.metrics["accuracy"]
        assert sorted(r.round for r in fed.records) == [0, 1, 2], at
        assert [e.body["round"] for e in fed.entries("aggregate")] == [1, 2, 3]
        assert verify_ledger(fed.home.ledger).status == 0


def test_resume_after_a_crash_between_any_two_replies(tmp_path):
    job = digits(train__rounds=2)
    whole = Federation(tmp_path / "whole")
    polls = SimpleNamespace(n=0)

    def count_polls():
        polls.n += 1
        return False

    whole.run(job, stopped=count_polls)
    for at in range(0, polls.n, 2):
        fed = Federation(tmp_path / str(at))
        count = SimpleNamespace(n=0)

        def stopped(count=count, at=at):
            count.n += 1
            return count.n > at

        with pytest.raises(Stopped):
            fed.run(job, stopped=stopped)
        fed.run(job)
        assert np.abs(weights(fed.out) - weights(whole.out)).max() < 1e-6, at
        assert verify_ledger(fed.home.ledger).status == 0


# ---- hostile messages


def test_an_altered_upload_is_refused_by_name_and_the_run_survives(tmp_path):
    def flip(party, step, arrays):
        if party == "party_4" and step == messages.ROUND and "update" in arrays:
            data = bytearray(arrays["update"])
            data[len(data) // 2] ^= 1
            return {**arrays, "update": bytes(data)}
        return arrays

    fed = Federation(tmp_path)
    fed.run(four(), reply=flip)
    said = [e.body for e in fed.entries("refusal")]
    assert {(b["party"], b["code"]) for b in said} == {("party_4", "message")}
    assert all("party_4" in e.body["missing"] for e in fed.entries("aggregate"))


def test_an_upload_of_an_earlier_round_again_is_refused(tmp_path):
    old: dict = {}

    def replay(party, step, arrays):
        if party == "party_1" and step == messages.ROUND:
            if old:
                return dict(old)
            old.update(arrays)
        return arrays

    fed = Federation(tmp_path)
    fed.run(four(), reply=replay)
    assert {(e.body["party"], e.body["round"]) for e in fed.entries("refusal")} >= {("party_1", 2), ("party_1", 3)}


def test_one_party_speaking_as_another_is_refused(tmp_path):
    held: dict = {}

    def swap(party, step, arrays):
        if step == messages.ROUND:
            held.setdefault(party, arrays)
            if party == "party_2" and "party_1" in held:
                return held["party_1"]
        return arrays

    fed = Federation(tmp_path)
    fed.run(four(), reply=swap)
    assert {e.body["party"] for e in fed.entries("refusal")} == {"party_2"}
    assert {e.body["code"] for e in fed.entries("refusal")} == {"signature"}


@pytest.mark.parametrize("junk", [b"", b"\x80\x04\x95pickle", b"{}", b"\xff" * 64])
def test_junk_and_pickles_instead_of_a_head_are_refused(tmp_path, junk):
    def bad(party, step, arrays):
        return {**arrays, "head": junk} if party == "party_3" and step == messages.ROUND else arrays

    fed = Federation(tmp_path)
    fed.run(four(train__rounds=1), reply=bad)
    assert {e.body["party"] for e in fed.entries("refusal")} == {"party_3"}


def test_an_oversized_reply_is_refused(tmp_path):
    def big(party, step, arrays):
        return {**arrays, "more": bytes(40 << 20)} if party == "party_3" and step == messages.ROUND else arrays

    fed = Federation(tmp_path)
    fed.run(four(train__rounds=1), reply=big)
    assert {e.body["party"] for e in fed.entries("refusal")} == {"party_3"}


def test_a_ciphertext_of_another_key_is_refused(tmp_path):
    """A party whose stored group key was replaced: its upload does not enter the sum."""
    from clients.group_key import GroupKey
    from fl_core.crypto.aggregation import make_key

    fed = Federation(tmp_path)
    import clients.app

    def replace_key(event):
        if event.kind == "round" and event.round == 1:
            fed.home.party("party_2").joinpath("runs/run-1/key").write_bytes(
                GroupKey(make_key("CKKS_2048", parties=4), 1024).to_bytes()
            )
            clients.app._participants.pop((str(fed.home.party("party_2")), "run-1"))

    fed.run(four(), progress=replace_key)
    failed = [e.body["code"] for e in fed.entries("failure") if e.by == "party_2"]
    assert failed
    assert set(failed) <= {"key", "message"}


def test_a_tampered_request_is_refused_by_the_party(tmp_path):
    def tamper(party, step, arrays):
        if party == "party_1" and step == messages.ROUND:
            head = json.loads(arrays["head"])
            head["statement"]["body"]["act"] = messages.EVALUATE
            return {
                **arrays,
                "head": json.dumps(head, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(),
            }
        return arrays

    fed = Federation(tmp_path)
    fed.run(four(train__rounds=1), request=tamper)
    assert {e.body["code"] for e in fed.entries("failure") if e.by == "party_1"} == {"signature"}


def test_a_coordinator_that_rewrites_its_log_gets_no_more_updates(tmp_path):
    """The ledger is exchanged for an older copy between two runs: every party's witness refuses to go on."""
    fed = Federation(tmp_path)
    fed.run(digits(train__rounds=1), run="first")
    copy = fed.home.ledger.read_bytes()
    fed.run(digits(train__rounds=1), run="second")
    for name in ("ledger.db-wal", "ledger.db-shm"):
        fed.home.path.joinpath(name).unlink(missing_ok=True)
    fed.home.ledger.write_bytes(copy)
    with pytest.raises(JobFailed, match="contributed"):
        fed.run(digits(train__rounds=1), run="third")
    codes = {e.body["code"] for e in fed.entries("failure", run="third")}
    assert codes & {"fork", "stale"}


def test_a_swapped_identity_card_is_refused(tmp_path):
    import shutil

    fed = Federation(tmp_path)
    fed.run(digits(train__rounds=1), run="first")
    shutil.rmtree(fed.home.party("party_2"))
    with pytest.raises(JobFailed, match="party_2"):
        fed.run(digits(train__rounds=1), run="second")
    assert [(e.body["party"], e.body["code"]) for e in fed.entries("refusal")] == [("party_2", "key")]


def test_a_coordinator_cannot_ask_for_rounds_that_are_not_in_the_job(tmp_path, monkeypatch):
    """More training than agreed, with honest signatures: every party refuses the extra round."""
    real = messages.schedule
    fed = Federation(tmp_path)
    monkeypatch.setattr("strategies.rounds.messages", _with(messages, schedule=lambda r, **k: real(r + 1, **k)))
    with pytest.raises(JobFailed, match="round 3: 0 of 3"):
        fed.run(digits(train__rounds=2))
    assert {e.body["code"] for e in fed.entries("failure")} == {"message"}


def _with(module, **changes):
    return SimpleNamespace(**{**vars(module), **changes})


# ---- what the coordinator sees


def test_the_coordinator_sees_no_update_no_count_no_key_and_no_partys_metric(tmp_path):
    """Everything the coordinator ever received, searched for what it must not hold."""
    from clients.data import load_party_data
    from fl_core.config import load_job

    fed = Federation(tmp_path)
    keys: set[bytes] = set()

    def collect(event):
        for path in fed.home.path.glob("parties/*/runs/*/key"):
            keys.add(path.read_bytes())

    job = digits()
    fed.run(job, progress=collect)
    seen = b"".join(wire for _, _, wire in fed.grid.seen)
    assert keys
    for key in keys:
        body = key[-512:]
        assert body not in seen
        assert body.hex().encode() not in seen
    read = load_job(job)
    for party in read.parties:
        data = load_party_data(read, party)
        for row in data.x_train[:50]:
            assert row.tobytes() not in seen
            assert row.astype(np.float64).tobytes() not in seen
    final = weights(fed.out)
    assert final.astype("<f4").tobytes()[:64] not in seen
    assert final.astype("<f8").tobytes()[:64] not in seen
    spoken = {key for e in fed.entries() for key in e.body}
    assert not spoken & {"rows", "num_examples", "count", "correct", "n"}
    reports = [e.body["pooled"] for e in fed.entries("update") if "pooled" in e.body]
    assert reports
    by_round: dict = {}
    for report in reports:
        by_round.setdefault(report["round"], set()).add(json.dumps(report["metrics"], sort_keys=True))
    assert all(len(values) == 1 for values in by_round.values())


# ---- privacy


def private(**changes):
    return digits(
        privacy={"mechanism": "dp-sgd", "target_epsilon": 8.0, **changes.pop("privacy", {})}, train__rounds=2, **changes
    )


def with_limit(job: dict, limit: float) -> dict:
    job["party"] = [{"name": n, **({"max_epsilon": limit} if n == "b" else {})} for n in ("a", "b", "c")]
    del job["dataset"]["parties"]
    return job


def test_the_owners_limit_refuses_the_second_job_before_its_data_are_opened(tmp_path, monkeypatch):
    fed = Federation(tmp_path)
    job = with_limit(private(), 10.0)
    outcome = fed.run(job, run="first")
    assert 7.5 < outcome.metrics["epsilon"] <= 8.0
    import clients.guard
    from fl_core.trust.budget import Budget

    opened = []
    real = clients.guard.load_party_data
    monkeypatch.setattr(
        clients.guard, "load_party_data", lambda j, p, policy: opened.append(p.name) or real(j, p, policy)
    )
    with pytest.raises(BudgetExceeded):
        fed.run(job, run="second")
    assert "b" not in opened
    refused = fed.entries("refusal", run="second")
    assert [(e.by, e.body["code"]) for e in refused] == [("b", "budget")]
    for other in ("a", "c"):
        budget = Budget(fed.home.party(other) / "budget.db")
        assert budget.open_runs() == ()
    assert "limit" in fed.grid.notices["b"] or "allow" in fed.grid.notices["b"]


def test_a_resumed_run_does_not_spend_twice(tmp_path):
    from fl_core.learning.privacy import epsilon
    from fl_core.trust.budget import OWNER_DELTA, Budget

    fed = Federation(tmp_path)
    job = with_limit(private(), 8.5)
    with pytest.raises(Crash):
        fed.run(job, progress=crash_at(3))
    fed.run(job)
    spent = Budget(fed.home.party("b") / "budget.db").spent("digits", OWNER_DELTA, epsilon)
    assert 7.5 < spent <= 8.0


def test_seeded_noise_repeats_and_os_noise_does_not(tmp_path):
    def final(name, noise):
        fed = Federation(tmp_path / name)
        fed.run(private(privacy={"noise": noise}))
        return weights(fed.out)

    assert np.abs(final("a", "seeded") - final("b", "seeded")).max() < 1e-5  # CKKS's own noise remains
    assert np.abs(final("c", "os") - final("d", "os")).max() > 1e-3


def test_client_dp_clips_and_accounts(tmp_path):
    fed = Federation(tmp_path)
    job = private(privacy={"mechanism": "client-dp", "target_epsilon": 50.0, "clipping_norm": 0.5})
    outcome = fed.run(job)
    assert outcome.metrics["epsilon"] <= 50.0
    assert "train_loss" not in {k for r in fed.records for k in r.metrics}


# ---- receivers, data of one's own


def table(path: Path, rows: slice, columns: str = "abcd", shift: float = 0.0) -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(300, 4)) * [1, 1000, 0.01, 5] + [0, 5000, 3, -7]
    y = (x[:, 0] + (x[:, 1] - 5000) / 1000 > 0).astype(int)
    lines = ["id," + ",".join(columns) + ",y"]
    lines += [f"{i}," + ",".join(f"{v:.6f}" for v in x[i]) + f",{y[i]}" for i in range(300)[rows]]
    path.write_text("\n".join(lines) + "\n")


def own_data(tmp_path: Path, **changes) -> dict:
    for i, name in enumerate("abc"):
        table(tmp_path / f"{name}.csv", slice(100 * i, 100 * i + 100))
    job = digits(**changes)
    del job["dataset"]
    job["party"] = [{"name": n, "data": str(tmp_path / f"{n}.csv"), "id": "id", "label": "y"} for n in ("a", "b", "c")]
    return job


def test_unscaled_tables_are_standardised_by_pooled_moments(tmp_path):
    fed = Federation(tmp_path)
    outcome = fed.run(own_data(tmp_path, train__rounds=5))
    assert outcome.metrics["accuracy"] > 0.9
    model = torch.load(fed.out / "a" / "model.pt", weights_only=True)
    assert model["feature_names"] == ["a", "b", "c", "d"]
    assert 4500 < float(model["standardization"]["mean"][1]) < 5500
    assert [e.body["act"] for e in fed.entries("aggregate")][:2] == ["standardize", "train"]


def test_a_receiver_without_data_gets_the_model_and_nothing_else(tmp_path):
    fed = Federation(tmp_path)
    fed.run(own_data(tmp_path, train__receivers=["lab"]))
    assert np.array_equal(weights(fed.out, "a"), weights(fed.out, "lab"))
    assert [e.by for e in fed.entries("receipt")] == ["lab"]
    assert not list(fed.home.party("lab").glob("runs/*/key"))


def test_parties_with_other_columns_are_named(tmp_path):
    job = own_data(tmp_path)
    table(tmp_path / "b.csv", slice(0, 100), columns="abce")
    with pytest.raises(DataError, match=r"party b.*schema"):
        Federation(tmp_path).run(job)


def test_a_class_missing_at_a_party_is_named_unless_the_job_lists_all(tmp_path):
    job = own_data(tmp_path, train__rounds=1)
    lines = (tmp_path / "c.csv").read_text().splitlines()
    (tmp_path / "c.csv").write_text("\n".join([*lines, "900,0,0,0,0,2"]) + "\n")
    with pytest.raises(DataError, match=r"party c.*classes"):
        Federation(tmp_path / "one").run(job)
    job["model"]["classes"] = ["0", "1", "2"]
    Federation(tmp_path / "two").run(job)


def test_nan_label_is_a_data_error_whose_text_stays_at_the_party(tmp_path):
    job = own_data(tmp_path)
    text = (tmp_path / "a.csv").read_text().replace(",1\n", ",\n", 1)
    (tmp_path / "a.csv").write_text(text)
    fed = Federation(tmp_path)
    with pytest.raises(DataError):
        fed.run(job)
    assert "a.csv" in fed.grid.notices["a"]
    assert not any(b"a.csv" in wire for _, _, wire in fed.grid.seen)


def test_a_diverging_party_fails_by_code(tmp_path):
    with pytest.raises(JobFailed, match="diverged"):
        Federation(tmp_path).run(digits(train__learning_rate=1e9, model={"name": "mlp"}))


def test_zero_rounds_evaluate_a_given_model(tmp_path):
    first = Federation(tmp_path / "one")
    trained = first.run(digits())
    job = digits(train__rounds=0, model={"name": "logistic", "init": str(first.out / "party_1" / "model.pt")})
    second = Federation(tmp_path / "two")
    outcome = second.run(job)
    assert outcome.metrics["accuracy"] == trained.metrics["accuracy"]
    assert np.array_equal(weights(first.out), weights(second.out))


def test_different_sums_to_different_parties_are_noticed(tmp_path):
    """A coordinator that shows one party another sum (validly signed) ends up with parties that disagree."""
    fed = Federation(tmp_path)
    from strategies import rounds

    real = rounds.Rounds._request

    def lie(self, party, number, body, proofs):
        request = real(self, party, number, body, proofs)
        if party == "party_3" and number == 3:
            older = (self.sums / "1.bin").read_bytes()
            request.blobs["sum.2"] = older
        return request

    rounds.Rounds._request = lie
    try:
        with pytest.raises(LedgerBroken, match="different"):
            fed.run(digits(train__rounds=3))
    finally:
        rounds.Rounds._request = real
