"""What the fork server imports once, so that a worker starts in milliseconds and shares the pages.

The collector rests more meanwhile: imports make little garbage, and looking for it takes a sixth of their time.
"""

from __future__ import annotations

import gc
import importlib
import logging

MODULES = (
    "flwr.clientapp",
    "flwr.common.serde",
    "opacus",
    "opacus.accountants.analysis.rdp",
    "tenseal.sealapi",
    "torch",
    "torch._dynamo",  # torch's optimisers import it in their first step
    "torch.profiler",
    "clients.app",
    "server.runtimes.wire",
    "fl_core.learning.dp_optimizer",
    "fl_core.crypto.seal_ckks",  # with what it imports late: a worker's own imports are in nobody else's memory
    "pyarrow",
    "cloudpickle",
    "torch.utils.serialization.config",
)

gc.set_threshold(10_000, 10, 10)  # no collector at all leaves holes, which every worker fills with copied pages
for _module in MODULES:
    importlib.import_module(_module)
importlib.import_module("torch").set_num_threads(1)
logging.getLogger("flwr").setLevel(logging.WARNING)
gc.collect()
gc.freeze()  # keeps the collector from copying shared pages in every worker
gc.set_threshold(700, 10, 10)
