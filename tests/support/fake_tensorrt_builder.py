"""A fake ``tensorrt`` for machines without a GPU: it has the recorded names of one release and refuses every other.

It builds nothing: a plan is a text. What it proves is which calls ``builders.engines.build`` makes, and that the
release has them.

The building half. The running half, fake_tensorrt_runtime.py, is a file of its own since it is copied as
``tensorrt.py`` to where Triton's stub imports it, and nothing of this project can be imported there; and since it
computes: it stands for one release's runtime and for CUDA, this one for the names of any release.
"""

from __future__ import annotations

import enum
import json
import types
from pathlib import Path
from typing import Any

INTERFACES = Path(__file__).parent / "tensorrt_interfaces"
RELEASES = sorted(path.stem for path in INTERFACES.glob("*.json"))


def read_interface(release: str) -> dict[str, Any]:
    """``tensorrt_8_5`` => version, source, recorded_from, names (class => names that it has)."""
    interface: dict[str, Any] = json.loads((INTERFACES / f"{release}.json").read_text())
    return interface


class FakeTensorRT(types.ModuleType):
    """The module; ``calls`` holds what was done with it, in order.

    Attributes:
        engine_information: what the engine inspector answers.
        plan: what a build gives; None for a build that fails.
        parse_errors: what the parser finds fault with.
        layers: of the network, after parsing.
    """

    def __init__(self, release: str) -> None:
        super().__init__("tensorrt")
        interface = read_interface(release)
        self.__version__ = interface["version"]
        self.names: dict[str, list[str]] = interface["names"]
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.engine_information = '{"Layers": []}'
        self.plan: bytes | None = b"a plan"
        self.parse_errors: list[str] = []
        self.layers: list[Fake] = []
        self.knows_timing_cache = True
        for enumeration in set(self.names["module"]) - {"Logger", "Builder", "OnnxParser", "Runtime"}:
            setattr(self, enumeration, enum.IntEnum(enumeration, self.names[enumeration], start=0))
        self.Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, severity: None})
        self.Builder = lambda logger: Fake(self, "Builder")
        self.OnnxParser = lambda network, logger: Fake(self, "OnnxParser", num_errors=len(self.parse_errors))
        self.Runtime = lambda logger: Fake(self, "Runtime")

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """Arguments of every call of ``name``, or the values that it was set to."""
        return [arguments for called, arguments in self.calls if called == name]

    def answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """What the call gives."""
        objects = {
            "create_builder_config": "IBuilderConfig",
            "create_optimization_profile": "IOptimizationProfile",
            "create_timing_cache": "ITimingCache",
            "get_timing_cache": "ITimingCache",
            "deserialize_cuda_engine": "ICudaEngine",
            "create_engine_inspector": "EngineInspector",
        }
        if name in objects:
            return Fake(self, objects[name])
        answers = {
            "create_network": lambda: Fake(self, "INetworkDefinition", num_layers=len(self.layers)),
            "get_layer": lambda: self.layers[arguments[0]],
            "parse": lambda: not self.parse_errors,
            "parse_from_file": lambda: not self.parse_errors and Path(arguments[0]).is_file(),
            "get_error": lambda: self.parse_errors[arguments[0]],
            "build_serialized_network": lambda: self.plan,
            "get_engine_information": lambda: self.engine_information,
            "serialize": lambda: b"timings",
            "set_timing_cache": lambda: self.knows_timing_cache,
        }
        return answers.get(name, lambda: None)()


class Fake:
    """An object of one recorded class; a name that the release lacks is an AttributeError, read or set."""

    def __init__(self, module: FakeTensorRT, kind: str, **values: Any) -> None:
        self.__dict__.update(_module=module, _kind=kind, **values)

    def __getattr__(self, name: str) -> Any:
        self._check(name)
        return lambda *arguments, **named: self._call(name, (*arguments, *named.values()))

    def __setattr__(self, name: str, value: Any) -> None:
        self._check(name)
        self._module.calls.append((name, (value,)))
        self.__dict__[name] = value

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        self._module.calls.append((name, arguments))
        return self._module.answer(name, arguments)

    def _check(self, name: str) -> None:
        if name not in self._module.names.get(self._kind, []):
            raise AttributeError(f"TensorRT {self._module.__version__} has no {self._kind}.{name}")


def layer(module: FakeTensorRT, name: str, kind: str = "", dtype: str = "FLOAT") -> Fake:
    """One layer with one output of ``dtype``; ``kind`` is a LayerType that is passed over, or none."""
    output = types.SimpleNamespace(dtype=getattr(module.DataType, dtype, None))
    return Fake(
        module,
        "ILayer",
        name=name,
        type=getattr(module.LayerType, kind) if kind else -1,
        num_outputs=1,
        get_output=lambda place: output,
    )
