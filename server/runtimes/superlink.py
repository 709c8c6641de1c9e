"""Flower's Control API as the coordinator uses it, on loopback: start a run, know the nodes.

All private names of Flower on this path are imported here only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import httpx
from flwr.common.constant import SubStatus
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from clients.runtime_api import SERVER_TASK, RuntimeApi, Task
from fl_core import bundle
from fl_core.errors import JobFailed, WaitTimeout

TASK_SECONDS = 30.0
ONLINE = "online"


@dataclass(frozen=True)
class SuperLink:
    """Where this coordinator's SuperLink is reached: host:port on loopback, its authority, its secret."""

    address: str
    ca: bytes
    secret: bytes

    @contextmanager
    def _control(self) -> Iterator[ControlHttpClient]:
        interceptors = [RuntimeVersionHttpInterceptor(component_name="flwr CLI")]
        client = ControlHttpClient.from_server_address(self.address, False, self.ca, interceptors)
        try:
            yield client
        except httpx.HTTPStatusError as error:
            raise JobFailed(
                f"the SuperLink answered {error.response.status_code}: {error.response.text[:200]}"
            ) from None
        except httpx.TransportError as error:
            raise JobFailed(f"the SuperLink at {self.address} does not answer ({type(error).__name__})") from None
        finally:
            client.close()

    def runtime(self, *, patience: float, signs: bool = False) -> RuntimeApi:
        """Its Runtime API, with the secret where tasks are to be asked for."""
        return RuntimeApi(self.address, ca=self.ca, secret=self.secret if signs else None, patience=patience)

    def register(self, key: bytes) -> int:
        """Have Flower know a node's key (PEM); returns Flower's number of the node."""
        with self._control() as control:
            return int(control.RegisterNode(RegisterNodeRequest(public_key=key)).node_id)

    def unregister(self, number: int) -> None:
        """Have Flower forget a node."""
        with self._control() as control:
            control.UnregisterNode(UnregisterNodeRequest(node_id=number))

    def online(self) -> dict[int, bool]:
        """Whether each registered node is connected."""
        with self._control() as control:
            nodes = control.ListNodes(ListNodesRequest()).nodes_info
        return {node.node_id: node.status == ONLINE for node in nodes if not node.unregistered_at}

    def start_run(self, run: str) -> Task:
        """Start a Flower run for fedseal's `run` and take its task, which is for this coordinator alone.

        Tasks of runs that nobody works on any more are ended on the way.
        """
        shipped = Fab(hash_str=bundle.digest(), content=bundle.content())
        with self._control() as control:
            config = user_config_to_proto({"run": run})
            number = control.StartRun(StartRunRequest(fab=shipped, override_config=config)).run_id
        end = time.monotonic() + TASK_SECONDS
        with closing(self.runtime(patience=TASK_SECONDS, signs=True)) as api:
            while time.monotonic() < end:
                task = api.acquire(SERVER_TASK)
                if task is None:
                    time.sleep(0.05)
                elif task.run_id == number:
                    return task
                else:
                    api.begin(task)
                    api.finish(status=SubStatus.FAILED, details="its coordinator is gone")
        raise WaitTimeout(f"the task of Flower run {number}", TASK_SECONDS)

    def stop_run(self, number: int) -> None:
        """End a Flower run that did not begin."""
        with self._control() as control:
            control.StopRun(StopRunRequest(run_id=number))
