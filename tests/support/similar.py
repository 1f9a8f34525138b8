"""The served code of ``similar``, as it is imported beside its ``model.py``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from builders.core.workspace import SERVED_CODE
from builders.publish.similar_index import SEARCH_CODE


def load_vectors_code() -> ModuleType:
    """``vectors.py``, each time anew, so that its constants can be set for a module of tests."""
    sys.modules["index_search"] = _loaded("index_search", SEARCH_CODE)
    return _loaded("served_similar_vectors", SERVED_CODE / "similar" / "vectors.py")


def _loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
