"""Run a job in this process and print when each event came: `python -m experiments.timed_run JOB.json`.

Prints one JSON object: `events` (seconds since the start, kind, round, act), `summary` of the run, and `peak_rss_mb`,
the peak memory of this process alone, which is the coordinator: the parties live in processes of their own.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from experiments.process_tree import peak_rss_mb
from server.run import run_job
from strategies.coordination import Event


def main(path: str) -> int:
    """Run the job of the file, a JSON table, in the home that FEDSEAL_HOME names."""
    began, events = time.perf_counter(), []

    def seen(event: Event) -> None:
        events.append([time.perf_counter() - began, event.kind, event.round, event.facts.get("act", "")])

    summary = run_job(json.loads(Path(path).read_text(encoding="utf-8")), on_event=seen)
    print(json.dumps({"events": events, "summary": summary, "peak_rss_mb": peak_rss_mb()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
