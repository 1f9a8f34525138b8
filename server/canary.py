"""A real request to each endpoint that is served, and whether its answer is as the build expects.

The request and the expected scores stand in the repository's manifest.json (builders/publish/canary.py), for each
generation of an endpoint: what is loaded is asked its own, since what was published last may not be loaded yet. An
answer must be complete, finite and, where the request leaves the order to the scores, in their order. While the store
holds just what the build scored, the scores must be the build's, too, but for the tolerance; once a refresh has changed
or removed one of the items they may be any, so that no price change makes a server unready.

Imports no package but lmdb, and that only to compare stored items.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FRESH = {"score_cache": False}
"""Parameter of a request whose scores shall be computed and not remembered; see backends/common/score_cache.py."""
RANKED, SCORES = "ranked_ids", "scores"
BAD_REQUEST = 400


def canaries(repository: Path) -> dict[str, list[dict[str, Any]]]:
    """Endpoint => its generations that have a canary, the newest last, of those whose newest has one.

    A repository without a manifest, or one of an earlier build, has none. Raises OSError or ValueError where the
    manifest cannot be read.
    """
    path = repository / MANIFEST
    if not path.is_file():
        return {}
    endpoints = json.loads(path.read_text(encoding="utf-8")).get("endpoints", {})
    return {
        name: [generation for generation in generations if generation.get("canary")]
        for name, generations in endpoints.items()
        if generations[-1].get("canary")
    }


def faults(host: str, port: int, repository: Path, store: Path | None, timeout_s: float) -> Iterator[str]:
    """What is wrong with the answers of the endpoints that are loaded; nothing where all is well.

    Args:
        store: the item store's folder, to tell whether what the build scored is still stored; None = it is not asked.
        timeout_s: for each answer.
    """
    for endpoint, generations in canaries(repository).items():
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
        try:
            if _call(connection, "GET", f"/v2/models/{endpoint}/ready")[0] == http.client.OK:
                canary, is_served = _of_what_is_loaded(connection, endpoint, generations)
                stored = is_served and store is not None and holds(store, canary["stored"])
                fault = _fault(connection, endpoint, canary, stored)
                if fault:
                    yield f"{endpoint}: {fault}"
        except (OSError, http.client.HTTPException) as error:
            yield f"{endpoint}: no answer ({type(error).__name__}: {error})"
        finally:
            connection.close()


def silent_endpoint(host: str, port: int, repository: Path, timeout_s: float) -> str | None:
    """The first endpoint that takes a request and does not answer it in time; None where each answers, be it an error,
    or is not loaded. Raises as `canaries`."""
    for endpoint, generations in canaries(repository).items():
        inputs = generations[-1]["canary"]["inputs"]
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
        try:
            if _call(connection, "GET", f"/v2/models/{endpoint}/ready")[0] == http.client.OK:
                _ask(connection, endpoint, inputs)
        except TimeoutError:
            return endpoint
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()
    return None


def holds(store: Path, digests: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether the store holds just what these digests are of: table => item id => SHA-256 of what is stored."""
    import lmdb

    with lmdb.open(str(store), readonly=True, create=False, max_dbs=len(digests) + 1, readahead=False) as environment:
        try:
            return all(
                _stored_digest(environment, table, item) == digest
                for table, items in digests.items()
                for item, digest in items.items()
            )
        except lmdb.NotFoundError:  # no such table
            return False


def _stored_digest(environment: Any, table: str, item: str) -> str | None:
    with environment.begin(db=environment.open_db(table.encode(), create=False)) as transaction:
        value = transaction.get(item.encode())
    return None if value is None else hashlib.sha256(value).hexdigest()


def _of_what_is_loaded(
    connection: http.client.HTTPConnection, endpoint: str, generations: list[dict[str, Any]]
) -> tuple[dict[str, Any], bool]:
    """The canary to ask, and whether it is of what is loaded."""
    newest: dict[str, Any] = generations[-1]["canary"]
    status, body = _call(connection, "GET", f"/v2/models/{endpoint}/config")
    scheduling = json.loads(body).get("ensemble_scheduling") if status == http.client.OK else None
    if scheduling is None:  # no ensemble: a model of the endpoint's own name
        return newest, True
    loaded = {step["model_name"]: int(step["model_version"]) for step in scheduling["step"]}
    same = [generation["canary"] for generation in generations if generation["steps"] == loaded]
    return (same[-1], True) if same else (newest, False)


def _fault(
    connection: http.client.HTTPConnection, endpoint: str, canary: Mapping[str, Any], stored: bool
) -> str | None:
    status, body = _ask(connection, endpoint, canary["inputs"])
    if status == BAD_REQUEST and canary["may_be_refused"] and not stored:
        return None
    if status != http.client.OK:
        return f"answered {status}: {body.decode(errors='replace')[:200]}"
    try:
        outputs = {output["name"]: output["data"] for output in json.loads(body)["outputs"]}
        ids, scores = outputs[RANKED], outputs[SCORES]
    except (ValueError, KeyError, TypeError) as error:
        return f"answered what is no ranked list ({type(error).__name__}: {error})"
    return _wrong_list(canary, ids, scores) or (_wrong_scores(canary, ids, scores) if stored else None)


def _wrong_list(canary: Mapping[str, Any], ids: list[str], scores: list[float]) -> str | None:
    wanted = canary["items"]
    if (wanted and sorted(ids) != sorted(wanted)) or len(ids) != len(scores):
        return f"answered {len(ids)} items with {len(scores)} scores, wanted each of {len(wanted)} once"
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        return f"answered scores that are not finite: {scores}"
    if sorted(scores, reverse=True) != scores:
        return f"answered scores out of order: {scores}"
    return None


def _wrong_scores(canary: Mapping[str, Any], ids: list[str], scores: list[float]) -> str | None:
    found = dict(zip(ids, scores, strict=True))
    tolerance = canary["tolerance"]
    for item, wanted in canary["scores"].items():
        if abs(found[item] - wanted) > tolerance:
            return f"scored item '{item}' {found[item]:.6g}, the build {wanted:.6g} (tolerance {tolerance:.3g})"
    return None


def _ask(connection: http.client.HTTPConnection, endpoint: str, inputs: list[dict[str, Any]]) -> tuple[int, bytes]:
    request = {"inputs": inputs, "parameters": FRESH}
    return _call(connection, "POST", f"/v2/models/{endpoint}/infer", json.dumps(request))


def _call(connection: http.client.HTTPConnection, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    connection.request(method, path, body)
    response = connection.getresponse()
    return response.status, response.read()
