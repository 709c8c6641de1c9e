"""What the fork server imports once, so that a worker starts in milliseconds and shares the pages."""

from __future__ import annotations

import gc
import logging

import flwr.clientapp
import flwr.common.serde
import opacus
import tenseal.sealapi
import torch
import torch._dynamo
import torch.profiler
from opacus.accountants.analysis import rdp

import clients.app

torch.set_num_threads(1)
logging.getLogger("flwr").setLevel(logging.WARNING)
gc.collect()
gc.freeze()  # keeps the collector from copying shared pages in every worker

__all__ = ["clients", "flwr", "opacus", "rdp", "tenseal"]
