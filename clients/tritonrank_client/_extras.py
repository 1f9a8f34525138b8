"""What the package's extras bring."""

from __future__ import annotations

import importlib
from types import ModuleType

from ._errors import InvalidRequest


def extra(module: str, name: str, option: str) -> ModuleType:
    """A module of the extra `name`. Raises: InvalidRequest, naming `option`, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f"{option}: found no package {module}, which it needs; pip install 'tritonrank-client[{name}]'", option
        ) from error
