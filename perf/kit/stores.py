"""Item stores of any size, of generated items, for what a catalogue's size costs. Imports no torch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from builders.data.beir import Product
from builders.publish.item_store import ItemStore, table_name
from builders.publish.postprocessing import ATTRIBUTES_TABLE, ATTRIBUTES_VERSION, attribute_records
from builders.publish.similar_index import SimilarPlan, plan_index, told

__all__ = ["generated_ids", "index_line", "steady_writer", "write_generated_store"]

CATEGORIES, DIRECTIONS = 300, 64
"""Vectors of texts lie around some middles and in few directions; those of pure noise no index could find."""
SPREAD, NOISE = 0.8, 0.05
AT_ONCE = 10_000
RECALL = 0.95


def generated_ids(count: int) -> list[str]:
    """Of a catalogue of so many items."""
    return [f"G{number:09d}" for number in range(count)]


def write_generated_store(folder: Path, parameters: dict[str, Any], count: int) -> None:
    """A vector and attributes for each item, and the index of ``similar`` where the catalogue is large.

    Args:
        parameters: of a contract that names the table of vectors and their width.
    """
    features, version = parameters["item_features"], parameters["item_features_version"]
    width = parameters["vector_width"]
    ids = generated_ids(count)
    with ItemStore(folder) as store:
        store.claim("generated")
        store.put(features, version, zip(ids, _vectors(count, width), strict=True))
        products = (Product(item_id, item_id, brand=f"brand {item_id[-2:]}") for item_id in ids)
        store.put(ATTRIBUTES_TABLE, ATTRIBUTES_VERSION, attribute_records(products))
        plan_index(store, table_name(features, version), SimilarPlan(width, exact=False, recall=RECALL), _quiet)


def index_line(folder: Path, parameters: dict[str, Any]) -> str:
    """How ``similar`` compares, with the index's recall."""
    with ItemStore(folder) as store:
        return told(store, table_name(parameters["item_features"], parameters["item_features_version"]))


def steady_writer(folder: Path, parameters: dict[str, Any], per_s: int) -> BaseProcess:
    """A process that replaces so many items a second, a transaction each, until it is terminated."""
    process = multiprocessing.get_context("spawn").Process(
        target=_write_steadily, args=(folder, parameters, per_s), daemon=True
    )
    process.start()
    return process


def _write_steadily(folder: Path, parameters: dict[str, Any], per_s: int) -> None:
    import time

    ids, start_s, written = generated_ids(1000), time.monotonic(), 0
    with ItemStore(folder) as store:
        for value in _endless(parameters["vector_width"]):
            item = ids[written % len(ids)], value
            store.put(parameters["item_features"], parameters["item_features_version"], [item])
            written += 1
            time.sleep(max(0.0, start_s + written / per_s - time.monotonic()))


def _endless(width: int) -> Iterator[bytes]:
    seed = 1
    while True:
        yield from _vectors(AT_ONCE, width, seed)
        seed += 1


def _vectors(count: int, width: int, seed: int = 0) -> Iterator[bytes]:
    """Of each item, FP32 as the store keeps it; of one shape of the catalogue, whatever the seed."""
    shape, draw = np.random.default_rng(0), np.random.default_rng([seed, 1])
    directions = shape.normal(size=(DIRECTIONS, width)) / width**0.5
    middles = shape.normal(size=(CATEGORIES, DIRECTIONS))
    for start in range(0, count, AT_ONCE):
        rows = min(AT_ONCE, count - start)
        places = middles[draw.integers(CATEGORIES, size=rows)] + SPREAD * draw.normal(size=(rows, DIRECTIONS))
        vectors = places @ directions + NOISE * draw.normal(size=(rows, width))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        yield from (vector.tobytes() for vector in vectors.astype("<f4"))


def _quiet(line: str) -> None:
    """Takes a line and shows nothing."""
