"""Clients of joint prediction: of encrypted models (`PredictClient`), and of vertical ones by id (`vertical`)."""

from __future__ import annotations

from clients.predict.channel import OverQuota
from clients.predict.client import PredictClient, Scores

__all__ = ["OverQuota", "PredictClient", "Scores"]
