"""A model of one step that is quick to publish and to serve: it answers item ids in the order given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from builders.core.contract import ITEM_IDS, QUERY, RANK, RANKED_IDS, SCORES, TOP_K, Contract
from builders.publish import model_config
from builders.publish.repository import Ensemble, ServedModel, publish_models

CONTRACT = Contract("tiny", (QUERY, ITEM_IDS, TOP_K), (RANKED_IDS, SCORES))

_CODE = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.respond(request) for request in requests]

    def respond(self, request):
        ids = pb_utils.get_input_tensor_by_name(request, "item_ids").as_numpy()
        scores = np.full(len(ids), {score}, np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("ranked_ids", ids), pb_utils.Tensor("scores", scores)])
"""


def tiny_model(folder: Path, score: int, contract: Contract = CONTRACT, name: str = "tiny") -> ServedModel:
    """A model that gives every item ``score``, so that an answer says which version it is from."""
    code = folder / f"answers_{score}.py"
    code.parent.mkdir(parents=True, exist_ok=True)
    code.write_text(_CODE.format(score=score), encoding="utf-8")
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
