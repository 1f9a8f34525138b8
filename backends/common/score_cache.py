"""Scores of rows that were scored before are taken from a file that the instances of a model share; only the other rows
are run. For models whose score of a row does not depend on the rows beside it.

A row is known by all that its score depends on (row_keys.py), so no score outlives its item's text, the prompt or the
model's file. Where the file cannot be used every row is run: that is logged once and counted, and no caller notices.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import triton_python_backend_utils as pb_utils
from batching import Arrays, RunFailed, RunLimits
from counters import Counter
from model_configuration import Unsupported, parameter
from numpy.typing import NDArray
from row_keys import NO_KEY, RowKeys, model_digest
from score_store import ScoreStore

SIZE = "score_cache_mb"
"""Parameter of a model's configuration: MiB of its file; missing for no cache."""
FOLDER_VARIABLE = "TRITONRANK_SCORE_CACHE"
"""Names the folder of the files, a file a model; empty or missing for no cache."""
ASKED = "score_cache"
"""Parameter of a request; false = run every row, and keep none: for canaries."""
MIB = 1 << 20

T = TypeVar("T")
RunRequests = Callable[[Sequence[Arrays]], "list[Arrays | RunFailed]"]
"""Inputs of requests => outputs or failure of each."""


def open_score_cache(
    config: dict[str, Any], args: Mapping[str, str], limits: RunLimits, runtime: str, *, rows_apart: bool
) -> ScoreCache | None:
    """The cache that a configuration asks for; None where it asks for none, or where this server has no folder for it.

    Args:
        args: what Triton hands to ``TritonPythonModel.initialize``.
        limits: of a run of the model.
        runtime: name and version.
        rows_apart: whether requests are run in parts or joined, so that any of their rows may be run by themselves.

    Raises:
        Unsupported: the parameter is no size, or rows of this model cannot be scored apart and kept.
    """
    if parameter(config, SIZE) is None:
        return None
    size_mib = _size_mib(config)
    _check_rows(config, rows_apart)
    layout = _row_layout(config)
    model_name, folder = args["model_name"], os.environ.get(FOLDER_VARIABLE)
    if not folder:
        pb_utils.Logger.log_info(f"{model_name}: no score cache, TRITONRANK_SCORE_CACHE names no folder")
        return None
    model = model_digest(Path(args["model_repository"]) / args["model_version"], config, runtime)
    keys = RowKeys(model, limits, _sequences(config, limits))
    path = Path(folder) / f"{model_name}.sqlite"
    return ScoreCache(keys, limits, layout, path, size_mib * MIB, model_name)


@dataclass
class _Asked:
    """A request: a key and a row of scores each of its rows; those of ``missing`` are not known."""

    inputs: Arrays
    keys: list[bytes]
    scores: NDArray[Any]
    missing: NDArray[np.intp]
    failure: RunFailed | None = None


class ScoreCache:
    """The cache of one instance.

    Args:
        layout: structured type of a row of scores, a field an output.
        path: of the file.
        most_bytes: of the file.
        model_name: for metrics and log.
    """

    def __init__(
        self, keys: RowKeys, limits: RunLimits, layout: np.dtype[Any], path: Path, most_bytes: int, model_name: str
    ) -> None:
        self._keys, self._limits, self._layout = keys, limits, layout
        self._path, self._most_bytes, self.model_name = path, most_bytes, model_name
        self._store: ScoreStore | None = None
        self._told = False
        self._hits = Counter("tritonrank_score_cache_hits_total", "Rows whose scores the score cache knew", model_name)
        self._misses = Counter(
            "tritonrank_score_cache_misses_total", "Rows that it did not know, which were run", model_name
        )
        self._unusable = Counter(
            "tritonrank_score_cache_unusable_total",
            "Times that the score cache could not be read or written",
            model_name,
        )

    def results(self, requests: Sequence[Any], inputs: Sequence[Arrays], run: RunRequests) -> list[Arrays | RunFailed]:
        """Outputs or failure of each request; those without a row that must be run are never handed to ``run``.

        Args:
            requests: as Triton hands them over.
            inputs: of each of them.
        """
        asked = self._look_up(inputs, [self._keys_of(*one) for one in zip(requests, inputs, strict=True)])
        incomplete = [one for one in asked if len(one.missing)]
        if incomplete:
            for one, found in zip(incomplete, run([*map(self._missing_rows, incomplete)]), strict=True):
                self._complete(one, found)
            self._keep(incomplete)
        return [one.failure or self._outputs(one) for one in asked]

    def close(self) -> None:
        """Close the file."""
        if self._store is not None:
            self._store.close()
            self._store = None

    # ------------------------------------------------------------ what is known
    def _keys_of(self, request: Any, inputs: Arrays) -> list[bytes]:
        if json.loads(request.parameters() or "{}").get(ASKED, True):
            return self._keys.of(inputs)
        return [NO_KEY] * len(next(iter(self._limits.of_rows(inputs).values())))

    def _look_up(self, inputs: Sequence[Arrays], keys: Sequence[list[bytes]]) -> list[_Asked]:
        wanted = list({key for of_request in keys for key in of_request} - {NO_KEY})
        known = (self._use(lambda store: store.read(wanted)) if wanted else None) or {}
        asked = [self._asked(*one, known) for one in zip(inputs, keys, strict=True)]
        self._hits.add(sum(len(one.keys) - len(one.missing) for one in asked))
        self._misses.add(sum(one.keys[row] != NO_KEY for one in asked for row in one.missing))
        return asked

    def _asked(self, inputs: Arrays, keys: list[bytes], known: Mapping[bytes, bytes]) -> _Asked:
        scores = np.zeros(len(keys), dtype=self._layout)
        rows = [row for row, key in enumerate(keys) if len(known.get(key, b"")) == self._layout.itemsize]
        scores[rows] = np.frombuffer(b"".join(known[keys[row]] for row in rows), dtype=self._layout)
        return _Asked(inputs, keys, scores, np.setdiff1d(np.arange(len(keys)), rows))

    # ------------------------------------------------------------ what is run
    def _missing_rows(self, asked: _Asked) -> Arrays:
        if len(asked.missing) == len(asked.keys):
            return asked.inputs
        rows = {name: array[asked.missing] for name, array in self._limits.of_rows(asked.inputs).items()}
        return {**asked.inputs, **rows}

    def _complete(self, asked: _Asked, found: Arrays | RunFailed) -> None:
        if isinstance(found, RunFailed):
            asked.failure = found
            return
        for name in self._layout.names or ():
            wanted = np.empty(len(asked.missing), dtype=self._layout[name])
            if (found[name].dtype, found[name].shape) != (wanted.dtype, wanted.shape):
                asked.failure = RunFailed(
                    f"output '{name}' is {found[name].dtype} {list(found[name].shape)}, by the model's configuration "
                    f"{wanted.dtype} {list(wanted.shape)}; mend config.pbtxt, or leave parameter {SIZE} out of it"
                )
                return
            asked.scores[name][asked.missing] = found[name]

    def _keep(self, run: Sequence[_Asked]) -> None:
        values = {
            one.keys[row]: one.scores[row].tobytes()
            for one in run
            if one.failure is None
            for row in one.missing
            if one.keys[row] != NO_KEY
        }
        if values:
            self._use(lambda store: store.write(values))

    def _outputs(self, asked: _Asked) -> Arrays:
        return {name: np.ascontiguousarray(asked.scores[name]) for name in self._layout.names or ()}

    # ------------------------------------------------------------ the file
    def _use(self, use: Callable[[ScoreStore], T]) -> T | None:
        """None where the file cannot be used; it is opened anew the next time, for it may be mended by then."""
        try:
            if self._store is None:
                self._store = ScoreStore(self._path, self._most_bytes)
            return use(self._store)
        except (sqlite3.Error, OSError) as error:
            self._unusable.add(1)
            self._tell(error)
            self.close()
            return None

    def _tell(self, error: Exception) -> None:
        """Once. Neither names a request: SQLite's errors quote no value."""
        cache_path, cache_fault = self._path, f"{type(error).__name__}: {error}"
        if not self._told:
            pb_utils.Logger.log_warn(
                f"{self.model_name}: score cache '{cache_path}' cannot be used ({cache_fault}): rows are run in its "
                "place, which tritonrank_score_cache_unusable_total counts. Let the server write that folder; remove a "
                "damaged file, it is made anew"
            )
        self._told = True


# ---------------------------------------------------------------- what a configuration says
def _size_mib(config: dict[str, Any]) -> int:
    text = parameter(config, SIZE) or ""
    if not text.isdecimal() or int(text) < 1:
        raise Unsupported(f"parameter {SIZE} is '{text}', wanted a number of MiB from 1 on")
    return int(text)


def _check_rows(config: dict[str, Any], rows_apart: bool) -> None:
    """Raises: Unsupported: a row cannot be run without those beside it, or is of texts."""
    if not rows_apart:
        raise Unsupported(
            f"parameter {SIZE} is set, wanted a model that batches any number of rows, or that is run in parts "
            "(parameter max_rows_per_run)"
        )
    texts = [io["name"] for io in [*config["input"], *config["output"]] if io["data_type"] == "TYPE_STRING"]
    if texts:
        raise Unsupported(f"parameter {SIZE} is set, but {', '.join(texts)} is TYPE_STRING; wanted numbers")


def _row_layout(config: dict[str, Any]) -> np.dtype[Any]:
    """Of one row of all outputs. Raises: Unsupported: an output whose rows have no fixed size."""
    fields = []
    for io in config["output"]:
        dims = [int(dim) for dim in (io["reshape"]["shape"] if "reshape" in io else io["dims"])]
        of_row = dims if config["max_batch_size"] > 0 else dims[1:]
        if -1 in of_row:
            raise Unsupported(
                f"parameter {SIZE} is set, but a row of output '{io['name']}' is {of_row}, wanted a fixed shape"
            )
        fields.append((io["name"], pb_utils.triton_string_to_numpy(io["data_type"]), tuple(of_row)))
    return np.dtype(fields)


def _sequences(config: dict[str, Any], limits: RunLimits) -> frozenset[str]:
    """Row inputs with a free second dimension, the first behind the rows."""
    behind_rows = 0 if config["max_batch_size"] > 0 else 1
    return frozenset(
        io["name"]
        for io in config["input"]
        if (not limits.row_inputs or io["name"] in limits.row_inputs)
        and [int(dim) for dim in io["dims"][behind_rows : behind_rows + 1]] == [-1]
    )
