"""The fork server of the local runtime.  Imports nothing heavy: it starts while this process still imports flwr."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from typing import Any

from server import environment


def warm_up(*, torch: bool = True) -> None:
    """Start the fork server and its imports, without waiting for them; once it runs, nothing happens."""
    environment.prepare()
    context = multiprocessing.get_context("forkserver")
    with on_its_own():
        context.set_forkserver_preload([f"server.runtimes.{'preload' if torch else 'preload_session'}"])
        forkserver.ensure_running()


@contextlib.contextmanager
def on_its_own() -> Iterator[None]:
    """Keep multiprocessing's processes from importing the caller's script again, or modules from the current folder."""
    main, safe = sys.modules["__main__"], os.environ.get("PYTHONSAFEPATH")
    saved: dict[str, Any] = {
        name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__
    }
    main.__spec__ = None
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        main.__dict__.update(saved)
        os.environ.pop("PYTHONSAFEPATH")
        if safe is not None:
            os.environ["PYTHONSAFEPATH"] = safe
