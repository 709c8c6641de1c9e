"""Run a job: home, ledger, recorders and a runtime around the ServerApp; the one way in for command line and Python.

`run_job` returns the object that `fedseal run --json` prints, and raises the errors of `fl_core.errors`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server import environment

environment.prepare()

from flwr.app import Context, RecordDict  # noqa: E402

from fl_core.config import load_job  # noqa: E402
from fl_core.errors import FedsealError, JobFailed, UsageError  # noqa: E402
from fl_core.files import write_atomic  # noqa: E402
from fl_core.home import Home  # noqa: E402
from fl_core.job import Job  # noqa: E402
from fl_core.messages import COORDINATOR  # noqa: E402
from fl_core.records import RoundRecord  # noqa: E402
from fl_core.trust import canonical  # noqa: E402
from fl_core.trust.checkpoint import parse_checkpoint, parse_note  # noqa: E402
from fl_core.trust.entry import Statement  # noqa: E402
from fl_core.trust.identity import CardBook, Identity  # noqa: E402
from fl_core.trust.ledger import Ledger  # noqa: E402
from fl_core.urls import without_passwords  # noqa: E402
from server import orders, runtimes  # noqa: E402
from server.app import activated, app, outcome  # noqa: E402
from server.artifacts import MODEL_FOLDER, commitments, write_artifacts  # noqa: E402
from server.recorders.fanout import Fanout  # noqa: E402
from server.recorders.ledger import LedgerRecorder  # noqa: E402
from server.recorders.mlflow import MlflowRecorder, deliver_leftovers  # noqa: E402
from server.recorders.words import flat, note  # noqa: E402
from server.registry import RunFolder, RunInfo, find_unfinished, new_run_id  # noqa: E402
from server.report.facts import examine, gather, judge  # noqa: E402
from server.runtimes.base import FederationGrid  # noqa: E402
from server.trained import with_model, with_run  # noqa: E402
from strategies.coordination import Coordination, Event, SessionHost  # noqa: E402

if TYPE_CHECKING:
    from server.runtimes.deployment import Link

EXPERIMENT = "fedseal"
MLFLOW_SECONDS = 30.0
MOST_CHECKED = 5000  # entries of a log that is verified while its run ends
LEAST_FREE = 1 << 20  # bytes on the home's disk


def run_job(
    job: Path | str | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    home: Path | str | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    on_event: Callable[[Event], None] | None = None,
    as_name: str | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """Run a job to its end.

    Parameters
    ----------
    job : a job file, or its parsed table.
    overrides : `{"train.rounds": 10}` or `["train.rounds=10"]`.
    home : instead of `FEDSEAL_HOME` or `./.fedseal`.
    out : folder of the outputs; default `runs/<name>-<time>`.
    resume : go on with the last unfinished run of this job in this home.
    on_event : gets each `Event` as it happens.
    as_name : who orders the job, under a key of this home; default `engineer`, or who the pass is for.
    strict : parties ask for a grant as nodes do, and make none themselves; a node of a deployment decides that itself.

    Returns
    -------
    dict : `job, kind, runtime, status, mlflow_run_id, ledger, metrics, outputs, seconds`, and what else is shown.

    Raises
    ------
    UsageError, RefusedError, JobFailed : see `fl_core.errors`; nothing half-written remains but the unfinished run.
    """
    started = time.time()
    read = load_job(job, overrides)
    runtimes.require(read.runtime)
    place = Home.open(home)
    if read.runtime == "deployment":
        from server.runtimes.remote import run_remote

        if strict:
            allowed = "local, simulation; the owner of a node decides (fedseal node set --consent)"
            raise UsageError(f"--strict with runtime deployment; allowed: {allowed}")
        read = with_run(read, place)
        return run_remote(read, place, out=out, resume=resume, on_event=on_event, as_name=as_name)
    read = with_model(read, place)
    person = as_name or orders.ENGINEER
    orders.check_person(person)
    if resume:
        folder, info = find_unfinished(place, read.digest())
        if out is not None and os.path.abspath(out) != info.out:
            raise UsageError(f"--out {out}: the run to resume writes to {info.out}")
    else:
        target = Path(out) if out else Path("runs") / f"{read.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        info = RunInfo(
            new_run_id(),
            read.name,
            read.kind,
            read.runtime,
            read.digest(),
            str(target.absolute()),
            started,
            os.getpid(),
        )
        free(target)
        orders.person(place, person)  # what is wrong with its key is told before there is a run
        folder = RunFolder.create(place, info)
    with folder.held():
        order = orders.of_run(folder.path, lambda: orders.local(place, orders.person(place, person), read))
        tell = on_event or (lambda _: None)
        running = Running(read, place, folder, info, tell, resume=resume, order=order, strict=strict)
        return running.run(started)


def free(out: Path) -> None:
    """Make the folder of the outputs.  A new run never writes over an old one's outputs."""
    if (out / "summary.json").exists():
        raise UsageError(f"--out {out}: holds the outputs of another run; allowed: a new folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be made ({error.strerror})") from None


class Running:
    """One run in this process.

    `link` and `caller` belong to a deployment: the way to the SuperLink, and who submitted the job, for the ledger.
    `order` is what the submitter signed.
    """

    def __init__(
        self,
        job: Job,
        home: Home,
        folder: RunFolder,
        info: RunInfo,
        on_event: Callable[[Event], None],
        *,
        resume: bool,
        link: Link | None = None,
        caller: Mapping[str, Any] | None = None,
        order: Mapping[str, bytes] | None = None,
        strict: bool = False,
    ) -> None:
        self.order, self.strict = dict(order or {}), strict
        self.job, self.home, self.folder, self.info, self.resume = job, home, folder, info, resume
        self.link, self.caller = link, caller
        self.on_event = on_event
        self.grid: FederationGrid | None = None
        self.failures: dict[str, str] = {}

    def run(self, started: float) -> dict[str, Any]:
        """Start everything, run, close everything, and return the summary."""
        self.info.status, self.info.pid, self.info.error = "running", os.getpid(), ""
        self.folder.save(self.info)
        logging.getLogger("flwr").setLevel(logging.WARNING)
        with ExitStack() as stack:
            mlflow = self._mlflow()
            deliver_leftovers(self.home.runs)
            runtimes.warm_up(self.job)
            try:
                identity = Identity.load_or_create(self.home.coordinator, COORDINATOR)
                self.ledger = ledger = stack.enter_context(Ledger.open(self.home.ledger, identity))
                self._open_run(ledger, identity)
                for entry in ledger.entries(run=self.info.run, kind="round"):  # what a crash kept from MLflow
                    mlflow.record(RoundRecord.from_body(self.info.run, entry.body))
                result = self._serve(ledger, identity, mlflow)
            except BaseException as error:
                self._failed(error, mlflow)
                raise
            summary = self._summary(ledger, result.metrics, result.model_digest, time.time() - started)
            self._finish(summary, ledger, mlflow, result.published)
            return summary

    # ---- start

    def _mlflow(self) -> MlflowRecorder:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.home.path / 'mlflow.db'}"
        params = {k: v for k, v in flat(self.job.public()) if v != ""}
        tags = {"fedseal.run": self.info.run, "fedseal.job": self.info.job, "fedseal.kind": self.job.kind}
        return MlflowRecorder.start(
            self.folder.spool,
            tracking_uri=uri,
            artifacts=self.home.path / "artifacts",
            experiment=EXPERIMENT,
            run_name=self.job.name,
            params=params,
            tags=tags,
            datasets=[],
        )

    def _open_run(self, ledger: Ledger, identity: Identity) -> None:
        kind, body = "job", {"job": self.info.job, "view": self.job.public(), "unsafe": self.job.unsafe}
        if any(ledger.entries(run=self.info.run, kind="job")):
            kind, body = "resume", {"job": self.info.job}
        if self.caller is not None:
            body["submitted"] = dict(self.caller)
        body |= orders.said(self.order)
        own = orders.card(self.home, self.order, ledger) if self.link is None else []
        ledger.append([*own, Statement.make(identity, log=ledger.log, kind=kind, run=self.info.run, body=body)])

    def _coordination(
        self,
        nodes: dict[str, int],
        ledger: Ledger,
        identity: Identity,
        mlflow: MlflowRecorder,
        host: SessionHost | None,
    ) -> Coordination:
        return Coordination(
            job=self.job,
            run=self.info.run,
            nodes=nodes,
            identity=identity,
            cards=CardBook(self.home.coordinator / "cards.json"),
            ledger=ledger,
            workdir=self.folder.path,
            recorder=Fanout([LedgerRecorder(ledger, identity, self.info.run), mlflow]),
            progress=lambda event: self._event(event, mlflow),
            stopped=self._stopping,
            own={} if self.link is None else told_to(self.job),
            host=host,
            order=self.order,
        )

    def _stopping(self) -> bool:
        """Whether to stop; a full disk fails the run before its parties wait for answers that nobody can store."""
        free = shutil.disk_usage(self.home.path).free
        if free < LEAST_FREE:
            raise JobFailed(f"{self.home.path}: No space left on the disk ({free} bytes); make room, then --resume")
        return self.folder.is_stopping()

    def _event(self, event: Event, mlflow: MlflowRecorder) -> None:
        if event.kind == "joined":
            data = event.facts["data"].items()
            mlflow.add_datasets([{"name": n, "digest": digest, "context": "training"} for n, digest in data])
        notices = self.grid.notices if self.grid else {}
        if event.kind in ("dropped", "refused"):
            party = str(event.facts["party"])
            text = notices.get(party) or str(event.facts.get("text", ""))
            if text:
                self.failures[party] = text
                event = replace(event, facts={**event.facts, "text": text})
        if event.kind == "round" and self.link is not None:
            head = {"size": self.ledger.size, "root": self.ledger.root.hex()}
            event = replace(event, facts={**event.facts, "ledger": head})
        if event.kind == "session" and self.job.kind == "vertical":
            from fl_core.protocols.vertical.plan import plan_of

            plan = plan_of(self.job)
            event = replace(event, facts={**event.facts, "unit": plan.unit, "steps": plan.steps})
        self.folder.write_log(f"{event.kind} round {event.round} {json.dumps(event.facts, default=str)}")
        self.on_event(event)

    def _serve(self, ledger: Ledger, identity: Identity, mlflow: MlflowRecorder) -> Any:
        if self.link is None:
            for place in (str(self.job.base), os.getcwd()):  # where "module:function" names of a job file live
                if place not in sys.path:
                    sys.path.append(place)
        names = [p.name for p in self.job.parties] + list(self.job.train.receivers)
        configs = {name: self._node_config(name) for name in names}
        number = int(self.info.run, 16) or 1
        context = Context(number, 1, node_config={}, state=RecordDict(), run_config={"run": self.info.run})
        with ExitStack() as stack:
            host = stack.enter_context(runtimes.open_host(self.link)) if self.job.is_session else None
            self.grid = stack.enter_context(
                runtimes.open_grid(self.job, configs, run_id=number, log=self.folder.log, link=self.link)
            )
            co = self._coordination(self.grid.nodes, ledger, identity, mlflow, host)
            with activated(co), _stop_on_signals(self.folder):
                app(self.grid, context)
        return outcome(self.info.run)

    def _node_config(self, name: str) -> dict[str, str]:
        """What a node's own configuration holds in a deployment: its folders and its part of the job file."""
        return {
            "party": name,
            "home": str(self.home.party(name)),
            "out": self.info.out,
            "base": str(self.job.base),
            "run": self.info.run,
            "own": json.dumps(self.job.own_part(name)),
            "strict": "1" if self.strict else "",
        }

    # ---- end

    def _failed(self, error: BaseException, mlflow: MlflowRecorder) -> None:
        """Note the failure everywhere; a place that cannot take it (a full disk) does not hide the failure itself."""
        code = error.code if isinstance(error, FedsealError) else "interrupted" if _is_interrupt(error) else "internal"
        if isinstance(error, FedsealError) and self.failures:
            told = "; ".join(f"{party}: {text}" for party, text in sorted(self.failures.items()))
            error.args = (f"{error} [{told}]" if not isinstance(error, UsageError) else told,)
        status = {"stopped": "stopped", "interrupted": "stopped"}.get(code, "failed")
        if isinstance(error, FedsealError) and error.exit_code == 3:
            status = "refused"
        self.info.status, self.info.ended, self.info.error = status, time.time(), str(error)
        self.folder.write_log(f"{status}: {error}")
        self._try(lambda: self.folder.save(self.info))
        self._try(lambda: self._failure_entry({"code": code, "status": status}))
        mlflow.finish("KILLED" if status == "stopped" else "FAILED", note=f"{status}: {code}", timeout=20.0)
        self.info.mlflow_run_id = mlflow.run_id(0.0)
        self._try(lambda: self.folder.save(self.info))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except FedsealError as second:
            self.folder.write_log(f"while noting the failure: {second}")

    def _failure_entry(self, body: dict[str, str]) -> None:
        identity = Identity.load_or_create(self.home.coordinator, COORDINATOR)
        with Ledger.open(self.home.ledger, identity) as ledger:
            ledger.commit([Statement.make(identity, log=ledger.log, kind="failure", run=self.info.run, body=body)])
            if (told := self._ask_witnesses(ledger)) is not None:
                self.folder.write_log(f"witnesses from outside: {json.dumps(told)}")

    def _ask_witnesses(self, ledger: Ledger) -> dict[str, Any] | None:
        """What those from outside said; None where this home names none."""
        if not self.home.witnesses.exists():  # most homes: nothing is imported for it
            return None
        from server.witness import ask_about_run

        return ask_about_run(self.home, ledger)

    def _summary(self, ledger: Ledger, metrics: dict[str, float], model: str, seconds: float) -> dict[str, Any]:
        out = Path(self.info.out)
        outputs: dict[str, dict[str, str | None]]
        outputs = {}
        for name, party, file in self._outputs():  # in a deployment each lies at its own node
            path = out / party / file
            if self.link is not None or path.exists():
                outputs.setdefault(party, {})[name] = None if self.link is not None else str(path)
        return {
            "job": self.job.name,
            "kind": self.job.kind,
            "runtime": self.job.runtime,
            "status": "done",
            "run": self.info.run,
            "mlflow_run_id": None,
            "ledger": {"path": str(self.home.ledger), "size": ledger.size, "root": ledger.root.hex()},
            "metrics": metrics,
            "outputs": outputs,
            "seconds": round(seconds, 3),
            "model_digest": model,
            "unsafe": self.job.unsafe,
        }

    def _outputs(self) -> list[tuple[str, str, str]]:
        """Name, party and file of what the parties may have got."""
        parties = [p.name for p in self.job.parties]
        if self.job.kind == "horizontal":
            return [("model", name, "model.pt") for name in [*parties, *self.job.train.receivers]]
        if self.job.kind == "vertical":
            models = [("model", name, "model") for name in parties]
            union = self.job.psi.output == "union"
            return models if union else [*models, ("predictions", self.job.active, "predictions.csv")]
        if self.job.kind == "predict":
            return [("scores", name, "scores.csv") for name in self.job.predict.receivers]
        if self.job.psi.output == "cardinality":
            return []
        name = {"receivers": "intersection", "union": "union"}[self.job.psi.output]
        return [(name, party, f"{name}.csv") for party in self.job.psi.receivers or parties]

    def _finish(self, summary: dict[str, Any], ledger: Ledger, mlflow: MlflowRecorder, published: bytes | None) -> None:
        ledger.checkpoint()
        facts = gather(ledger, self.home.ledger, self.info.run) | {"seconds": summary["seconds"]}
        verdict = judge(self.home.ledger, self.info.run, most=MOST_CHECKED)
        facts["audit"] = examine(ledger, self.info.run, verdict, now=False)
        written = write_artifacts(self.folder.path, facts)
        publish = None
        if published is not None:
            model = self.folder.path / "model.pt"
            write_atomic(model, published)
            publish = {"model": str(model), "name": self.job.name, "digest": summary["model_digest"]}
        files = [*written.files, *([(Path(publish["model"]), MODEL_FOLDER)] if publish else [])]
        summary["ledger"] |= self._commit_to(files, ledger)
        if (told := self._ask_witnesses(ledger)) is not None:
            summary["witnesses"] = told
        tags = {"ledger.size": str(summary["ledger"]["size"]), "ledger.root": summary["ledger"]["root"]}
        if summary["model_digest"]:
            tags["model.digest"] = summary["model_digest"]
        delivered = mlflow.finish(
            "FINISHED",
            tags=tags,
            note=written.note or note(summary),
            artifacts=written.files,
            publish=publish,
            timeout=MLFLOW_SECONDS,
        )
        summary["mlflow_run_id"] = mlflow.run_id(0.0)
        summary["mlflow"] = {
            "uri": without_passwords(mlflow.tracking_uri),
            "delivered": delivered,
            "reason": mlflow.reason,
        }
        write_atomic(Path(self.info.out) / "summary.json", json.dumps(summary, indent=1).encode(), mode=0o644)
        self.info.status, self.info.ended, self.info.metrics = "done", time.time(), summary["metrics"]
        self.info.mlflow_run_id = summary["mlflow_run_id"]
        self.folder.save(self.info)
        shutil.rmtree(self.folder.path / "sums", ignore_errors=True)

    def _commit_to(self, files: Sequence[tuple[Path, str]], ledger: Ledger) -> dict[str, Any]:
        """Put the digests of what MLflow gets on the ledger; its head, which MLflow is told."""
        identity = Identity.load_or_create(self.home.coordinator, COORDINATOR)
        body = {"artifacts": commitments(files)}
        said = Statement.make(identity, log=ledger.log, kind="publish", run=self.info.run, body=body)
        _, note = ledger.commit([said])
        head = parse_checkpoint(parse_note(note).text)
        return {"size": head.size, "root": head.root.hex()}


def told_to(job: Job) -> dict[str, bytes]:
    """Each party's part of the job, for its node alone."""
    parts = {p.name: job.own_part(p.name).items() for p in job.parties}
    told = {n: {k: list(v) if isinstance(v, tuple) else v for k, v in p if k != "key"} for n, p in parts.items()}
    return {n: canonical.encode(part) for n, part in told.items()}


def _is_interrupt(error: BaseException) -> bool:
    return isinstance(error, (KeyboardInterrupt, SystemExit))


@contextmanager
def _stop_on_signals(folder: RunFolder) -> Iterator[None]:
    """SIGINT and SIGTERM ask the run to stop after the reply at hand, so that it can be resumed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, lambda *_: folder.ask_to_stop()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
