"""The declared features' encoder, without torch."""

from __future__ import annotations

from builders.features.encoder import FeatureEncoder

__all__ = ["FeatureEncoder"]
