"""What the fork server imports once for networks, so that a worker starts in milliseconds and shares the pages."""

from __future__ import annotations

import importlib

from server.runtimes.imports import preload

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

preload(MODULES)
importlib.import_module("torch").set_num_threads(1)
