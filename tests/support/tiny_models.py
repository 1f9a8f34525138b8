"""A model of one step that is quick to publish and to serve: it answers item ids in the order given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from builders.core.contract import ITEM_IDS, QUERY, RANK, RANKED_IDS, SCORES, TOP_K, Contract
from builders.publish import model_config
from builders.publish.repository import Ensemble, ServedModel, publish_models
from tests.support.repositories import python_model

CONTRACT = Contract("tiny", (QUERY, ITEM_IDS, TOP_K), (RANKED_IDS, SCORES))

_IDS = f"tensor('{ITEM_IDS.name}')"


def tiny_model(folder: Path, score: int, contract: Contract = CONTRACT, name: str = "tiny") -> ServedModel:
    """A model that gives every item ``score``, so that an answer says which version it is from."""
    code = folder / f"answers_{score}.py"
    code.parent.mkdir(parents=True, exist_ok=True)
    outputs = {RANKED_IDS.name: _IDS, SCORES.name: f"np.full(len({_IDS}), {score}, np.float32)"}
    code.write_text(python_model(outputs), encoding="utf-8")
    contract = dataclasses.replace(contract, name=name)
    return ServedModel(model_config.python_config(contract), contract, {"model.py": code}, {"recipe": "tiny.toml"})


def ensembles(step: str = "tiny") -> list[Ensemble]:
    """``rank`` and the variant's own endpoint."""
    return [
        Ensemble(name, [step], model_config.endpoint_contract(name, RANK, [CONTRACT]))
        for name in (f"rank_{step}", "rank")
    ]


def publish(repository: Path, *models: ServedModel) -> dict[str, int]:
    """Publish the models; the first is what the endpoints serve."""
    return publish_models(repository, models, ensembles(models[0].name), {"library": "1.0"})
