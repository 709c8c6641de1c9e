"""The coordinator's side: ServerApp, runtimes, recorders and the command line.

`from server import run_job` runs a job from Python, as `fedseal run` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.run import run_job

__all__ = ["run_job"]


def __getattr__(name: str) -> Any:
    """Import on use, so that the command line starts fast."""
    if name == "run_job":
        from server.run import run_job

        return run_job
    raise AttributeError(name)
