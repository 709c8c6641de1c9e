"""Imports of the fork server, laid out so that its workers share their pages."""

from __future__ import annotations

import gc
import importlib
import logging
from collections.abc import Sequence


def preload(modules: Sequence[str]) -> None:
    """Import them all.

    The collector rests more meanwhile: imports make little garbage, and looking for it takes a sixth of their time.
    """
    gc.set_threshold(10_000, 10, 10)  # no collector at all leaves holes, which every worker fills with copied pages
    for name in modules:
        importlib.import_module(name)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    gc.collect()
    gc.freeze()  # keeps the collector from copying shared pages in every worker
    gc.set_threshold(700, 10, 10)
