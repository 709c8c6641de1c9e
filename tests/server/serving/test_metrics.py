"""Metrics: no count is lost between threads, strangers make no series, percentiles and minutes are those of a list."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from server.serving.metrics import LATEST, MINUTES, Metrics, percentile

times = st.floats(0, 1e3, allow_nan=False)


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a Prometheus server reads."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def serve(metrics: Metrics, *, client="a", model="m", version="1", rows=1, seconds=0.01) -> None:
    metrics.served(client=client, model=model, version=version, rows=rows, seconds=seconds)


@given(st.lists(times, min_size=1, max_size=200), st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]))
def test_percentiles_are_the_nearest_ranks(values, share):
    found = percentile(sorted(values), share)
    assert found == np.percentile(values, 100 * share, method="inverted_cdf")
    assert sum(v <= found for v in values) >= math.floor(share * len(values))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 50)), max_size=80), st.integers(0, 5000))
def test_rows_a_minute_are_those_of_a_plain_list(calls, pause):
    """Against a list that forgets nothing; the last hour only, also after a pause without a call."""
    now, start = [1_000_000.0], 1_000_000.0
    metrics = Metrics(["a"], clock=lambda: now[0])
    calls = sorted(calls)
    for after, rows in calls:
        now[0] = start + after
        serve(metrics, rows=rows)
    now[0] += pause
    latency = metrics.snapshot().latency
    if not calls:
        assert latency == {}
        return
    ages = [(int(now[0] // 60) - int((start + after) // 60), rows) for after, rows in calls]
    expected = [sum(r for age, r in ages if age == MINUTES - 1 - i) for i in range(MINUTES)]
    assert latency["m"].minutes == tuple(expected)


def test_percentiles_are_of_the_latest_blocks_and_memory_is_bounded():
    metrics = Metrics(["a"])
    for i in range(3 * LATEST):
        serve(metrics, seconds=float(i))
    latency = metrics.snapshot().latency["m"]
    assert latency.blocks == 3 * LATEST
    assert (latency.p50, latency.p99) == (2.5 * LATEST - 1, 3 * LATEST - 1 - LATEST / 100)
    (held,) = metrics._models.values()
    assert len(held.seconds) == LATEST and len(held.minutes) <= MINUTES


def test_no_count_is_lost_between_threads():
    metrics, threads = Metrics(["a", "b"]), []

    def work(name: str) -> None:
        for _ in range(500):
            serve(metrics, client=name, rows=3)
            metrics.refused(client=name, code="quota")

    for i in range(8):
        threads.append(threading.Thread(target=work, args=("ab"[i % 2],)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    read, seen = samples(metrics), metrics.snapshot()
    for name in "ab":
        who = (("client", name), ("model", "m"), ("version", "1"))
        assert read["fedseal_rows_total", who] == seen.clients[name].rows == 6000
        assert read["fedseal_blocks_total", who] == seen.clients[name].blocks == 2000
        assert read["fedseal_refusals_total", (("client", name), ("code", "quota"))] == 2000
        assert seen.refusals["quota", name] == seen.clients[name].refusals == 2000
    assert (metrics.rows, metrics.refusals, seen.latency["m"].blocks) == (12000, 4000, 4000)


def test_strangers_make_no_series():
    metrics = Metrics({"known": None})
    before = len(samples(metrics))
    for i in range(1000):
        metrics.refused(client=f"stranger{i}", code="refused")
        serve(metrics, client=f"stranger{i}")
    metrics.refused(client="", code="refused")
    read = samples(metrics)
    assert read["fedseal_refusals_total", (("client", ""), ("code", "refused"))] == 1001
    assert len(read) - before < 30 and not any("stranger" in str(key) for key in read)
    seen = metrics.snapshot()
    assert set(seen.refusals) == {("refused", "")} and set(seen.clients) == {""}


def test_a_client_that_is_added_later_has_its_own_label():
    clients: dict[str, None] = {}
    metrics = Metrics(clients)
    serve(metrics, client="late")
    clients["late"] = None
    serve(metrics, client="late", rows=5)
    assert metrics.snapshot().clients["late"].rows == 5


def test_two_servers_in_one_process_count_apart():
    """The global registry would refuse the second, or add both up."""
    one, two = Metrics(["a"]), Metrics(["a"])
    serve(one, rows=7)
    assert (one.rows, two.rows) == (7, 0) and b'client="a"' not in two.text()


@pytest.mark.parametrize("name", ['a"} 1\nevil{x="', "back\\slash", "new\nline"])
def test_a_name_cannot_break_out_of_its_label(name):
    metrics = Metrics([name])
    serve(metrics, client=name, model=name, version=name)
    who = (("client", name), ("model", name), ("version", name))
    read = samples(metrics)
    assert read["fedseal_rows_total", who] == 1 and not any(key[0].startswith("evil") for key in read)


def test_gauges_show_what_is_there_when_somebody_looks():
    clients, models, today = {"a": 1, "b": 2}, [("m", "1")], {"a": 5, "b": 0}
    metrics = Metrics(clients)
    metrics.observe(models=lambda: models, rows_today=today.__getitem__, rows_a_day=10)
    models.append(("n", "2"))
    today["b"] = 10
    read = samples(metrics)
    assert read["fedseal_models", ()] == read["fedseal_clients", ()] == 2
    assert read["fedseal_model", (("model", "n"), ("version", "2"))] == 1
    assert read["fedseal_client_rows_today", (("client", "b"),)] == read["fedseal_client_rows_a_day", ()] == 10
    assert read["process_resident_memory_bytes", ()] > 1 << 20


def test_the_histogram_is_of_the_seconds_given():
    metrics = Metrics(["a"])
    for seconds in (0.004, 0.02, 0.3, 100.0):
        serve(metrics, seconds=seconds)
    read = samples(metrics)
    assert read["fedseal_block_seconds_bucket", (("le", "0.5"), ("model", "m"))] == 3
    assert read["fedseal_block_seconds_count", (("model", "m"),)] == 4
    assert read["fedseal_block_seconds_sum", (("model", "m"),)] == pytest.approx(100.324)


def test_last_seen_counts_refusals_and_last_served_does_not():
    now = [100.0]
    metrics = Metrics(["a"], clock=lambda: now[0])
    serve(metrics)
    now[0] = 200.0
    metrics.refused(client="a", code="busy")
    seen = metrics.snapshot()
    assert (seen.clients["a"].last, seen.clients["a"].served, seen.served, seen.since) == (200.0, 100.0, 100.0, 100.0)
