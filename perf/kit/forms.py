"""Forms of an endpoint: published side by side, and what was measured of them kept for publishing."""

from __future__ import annotations

from builders.publish.caches import publish_caching
from builders.publish.fused import WINS_BY, FormFigures, FormsReport, forms_file, publish_both_forms

__all__ = ["WINS_BY", "FormFigures", "FormsReport", "forms_file", "publish_both_forms", "publish_caching"]
