"""The process that delivers a spool to MLflow: `python -m server.recorders.mlflow_process [--follow PID] SPOOL…`.

With `--follow` it delivers each line as the run with that process id appends it, and leaves when the run has ended, or
when its process is gone and everything is delivered or MLflow fails.  Without, it delivers what is there and leaves.

A line is applied first and counted in `SPOOL.state` afterwards; killed in between, the next process looks in MLflow
whether it was.  While MLflow fails, lines stay where they are, in the spool.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_core.errors import JobFailed
from fl_core.urls import without_passwords
from server.recorders.spool import Spool

if TYPE_CHECKING:
    from server.recorders.mlflow_writer import Writer

POLL_SECONDS = 0.05
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
_QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # we try again ourselves
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_UNUSED = ("pandas", "pyarrow")  # a third of MLflow's memory and start; it runs without them where they are missing
_log = logging.getLogger("fedseal.mlflow")


class Delivery:
    """Delivers one spool; the caller holds its lock."""

    def __init__(self, spool: Spool, parent: int | None) -> None:
        self._spool = spool
        self._parent = parent
        self._state = spool.load()
        self._writer: Writer | None = None
        self._again_until = 0
        self._said: set[str] = set()

    def run(self) -> bool:
        """Deliver until there is nothing more to come; False when MLflow fails and nobody waits any more."""
        pause = FIRST_PAUSE
        while True:
            alone = self._alone()  # asked before reading: then the last lines of a parent that is gone are there
            try:
                self._deliver()
                if self._state.ended:
                    return True
                if alone:
                    self._abandon()
                    return True
                pause = FIRST_PAUSE
                time.sleep(POLL_SECONDS)
            except Exception as error:  # whatever a store, a server or a disk raises
                self._failed(error)
                if alone:
                    return False
                self._wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _deliver(self) -> None:
        if next(self._spool.lines(self._state.offset), None) is None:
            return
        writer = self._writer or self._open()
        for line, end in self._spool.lines(self._state.offset):
            writer.apply(line, again=end <= self._again_until)
            version = writer.version or self._state.version
            self._update(offset=end, ended=line["do"] == "end", abandoned=False, error="", version=version)

    def _open(self) -> Writer:
        """Find or make the run in MLflow.  In another one than before, everything is delivered from the start."""
        from server.recorders.mlflow_writer import Writer

        begin = self._spool.begin()
        if begin is None:
            raise JobFailed(f"{self._spool.path}: no line says where MLflow is")
        os.environ["MLFLOW_TRACKING_URI"] = begin["uri"]  # proxied artifacts are looked up there
        writer = Writer(begin, self._refused)
        run_id = writer.open(self._state.mlflow_run_id)
        if run_id != self._state.mlflow_run_id:
            self._update(mlflow_run_id=run_id, offset=0)
        self._again_until = self._spool.path.stat().st_size
        self._writer = writer
        return writer

    def _abandon(self) -> None:
        if self._state.mlflow_run_id and not self._state.abandoned:
            (self._writer or self._open()).abandon()
            self._update(abandoned=True)

    def _refused(self, error: Exception) -> None:
        """Note what MLflow will never take."""
        self._update(refused=self._state.refused + 1, refusal=self._say(error))

    def _failed(self, error: Exception) -> None:
        """Note why delivery waits; what was half done is looked up when it goes on."""
        self._writer = None
        try:
            self._update(error=self._say(error))
        except JobFailed as full:
            self._say(full)

    def _say(self, error: Exception) -> str:
        """One line for the log, each but once, without a password."""
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        text = without_passwords(first)[:300]
        if text not in self._said and len(self._said) < 100:
            self._said.add(text)
            _log.error("%s", text)
        return text

    def _update(self, **changes: Any) -> None:
        self._state = dataclasses.replace(self._state, **changes)
        self._spool.save(self._state)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._alone():
            time.sleep(POLL_SECONDS)

    def _alone(self) -> bool:
        return self._parent is None or os.getppid() != self._parent


def main(arguments: list[str]) -> int:
    """Deliver the spools that are named."""
    parser = argparse.ArgumentParser(prog="server.recorders.mlflow_process")
    parser.add_argument("--follow", type=int, metavar="PID")
    parser.add_argument("spools", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", level=logging.ERROR)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    for module in _UNUSED:
        sys.modules.setdefault(module, None)  # type: ignore[arg-type]  # makes its import fail
    for spool in map(Spool, options.spools):
        if options.follow is None and spool.is_alive():
            continue
        with spool.held(wait=options.follow is not None) as mine:
            if mine and not Delivery(spool, options.follow).run():
                return 1
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the interpreter's own way out takes a second after mlflow was imported
