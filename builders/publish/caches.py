"""What an endpoint serves, published once more with its scorers' caches, to be measured beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as triton

from builders.core.contract import ENDPOINTS
from builders.publish import model_config
from builders.publish.fused import published_steps
from builders.publish.manifest import RepositoryError
from builders.publish.repository import Ensemble, ServedModel, publish_models


def publish_caching(repository: Path, endpoint: str, target: Path, size_mb: int) -> None:
    """The endpoint as an ensemble in the repository ``target``: its scorers ask for a score cache and for Triton's.

    Args:
        size_mb: MiB of each score cache.

    Raises:
        RepositoryError: there is no such endpoint, or none of its scorers runs the rows of a request apart.
    """
    steps = [_caching(step, size_mb) for step in published_steps(repository, endpoint)]
    if not any(step.config.response_cache.enable for step in steps):
        raise RepositoryError(
            f"{endpoint}: no network of it runs the rows of a request apart, so that their scores could be remembered; "
            "name the recipe of another ranker"
        )
    agreed = ENDPOINTS[endpoint.split("_")[0]]
    contract = model_config.endpoint_contract(endpoint, agreed, [step.contract for step in steps])
    publish_models(target, steps, [Ensemble(endpoint, [step.name for step in steps], contract)], {}, lambda _: None)


def _caching(step: ServedModel, size_mb: int) -> ServedModel:
    if model_config.ROW_CAP not in step.config.parameters:
        return step
    config = triton.ModelConfig()
    config.CopyFrom(step.config)
    model_config.add_score_cache(config, size_mb)
    config.response_cache.enable = True
    return dataclasses.replace(step, config=config)
