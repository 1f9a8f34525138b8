"""A network between two steps as a file, read without running what the file says.

A compressed network has other layers than the trained one, so that its weights alone do not give it back: the file
holds its modules too, as ``torch.save`` writes them. It is read by torch's restricted unpickler (``weights_only``),
which makes nothing but what it is allowed by name: what the trained network in memory is made of, and torch's and this
package's modules.
"""

from __future__ import annotations

import importlib
import io
import pickle
import pickletools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from builders.core.errors import BuilderError, listed

FORM = "modules, read by name"
"""Part of the key of a stored network: one that was written for another way of reading is made anew."""
_PACKAGES = ("torch.nn.", "builders.compress.")


class StoredNetworkError(BuilderError):
    """A stored network is not what a step wrote."""


def can_be_stored(trained: nn.Module) -> bool:
    """Whether everything that the trained network is made of may be named in a file: no function of Python's own is."""
    return all(_may_be_named(_found(name)) for name in _names_in(trained))


def save_network(network: nn.Module, path: Path) -> None:
    """Written whole or not at all where :func:`builders.core.keeper.keep` calls it."""
    torch.save(network, path)


def load_network(path: Path, trained: nn.Module) -> nn.Module:
    """What :func:`save_network` wrote of a network that came of ``trained``; nothing else is made or called.

    Raises:
        StoredNetworkError: no such file, or it names something that neither ``trained`` nor a step brings.
    """
    try:
        named = get_unsafe_globals_in_checkpoint(path)
        allowed = _allowed(named, {*_names_in(trained)})
        if foreign := [name for name in named if name not in allowed]:
            raise StoredNetworkError(
                f"{path}: holds {listed(foreign)}, wanted modules of torch and of the trained network alone, so "
                f"nothing of it was run; {_NEXT}"
            )
        with safe_globals([(thing, name) for name, thing in allowed.items()]):
            network = torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        if isinstance(error, StoredNetworkError):
            raise
        raise StoredNetworkError(
            f"{path}: not a network that a step wrote ({type(error).__name__}); {_NEXT}"
        ) from error
    if not isinstance(network, nn.Module):
        raise StoredNetworkError(f"{path}: holds {type(network).__name__}, wanted a network; {_NEXT}")
    return network


_NEXT = "remove it, and the next build makes it anew"


def _allowed(named: Iterable[str], of_trained: set[str]) -> dict[str, Any]:
    found = {name: _found(name) for name in named if name in of_trained or name.startswith(_PACKAGES)}
    return {
        name: thing
        for name, thing in found.items()
        if (name in of_trained and _may_be_named(thing)) or (isinstance(thing, type) and issubclass(thing, nn.Module))
    }


def _may_be_named(thing: Any) -> bool:
    """A class, or a function that is not of Python's own: ``getattr`` and ``eval`` among them would do anything."""
    own = (getattr(thing, "__module__", None) or "builtins").partition(".")[0] in sys.stdlib_module_names
    return isinstance(thing, type) or (callable(thing) and not own)


def _names_in(network: nn.Module) -> list[str]:
    """``module.name`` of each class and function that a pickle of it names."""
    written = io.BytesIO()
    _WithoutTensors(written, protocol=2, fix_imports=False).dump(network)
    globals_named = (argument for code, argument, _ in pickletools.genops(written.getvalue()) if code.name == "GLOBAL")
    return sorted({str(named).replace(" ", ".") for named in globals_named})


class _WithoutTensors(pickle.Pickler):
    def persistent_id(self, thing: Any) -> str | None:
        return "tensor" if isinstance(thing, torch.Tensor) else None


def _found(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module) or importlib.import_module(module), attribute, None)
