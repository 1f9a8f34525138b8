"""What all peers of a kind are given: the same weights and the same requests, in files that need no library of ours.

cross_encoder  ``checkpoint/`` as sentence-transformers saved it, ``model.onnx`` as optimum-onnx would export it
interactions   ``model.onnx``, the very file that Triton serves; ``items.npz``, each item's encoded features by its id;
               ``features.json`` and ``users.json``: how a request is encoded, and customers' fields
both           ``requests.json``: what a client sends for each request

The endpoints that are compared with them are published to a repository beside these files.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from perf.bench_graphs import export_plainly
from perf.endpoints import Endpoint
from perf.errors import PerfError
from perf.forms import ENSEMBLE, FORMS
from perf.kit.data import (
    PROJECT,
    JudgedQueries,
    Recipe,
    Request,
    Workspace,
    evaluation_data,
    find_data,
    first_stage,
    judging_queries,
    load_recipe,
    write_atomically,
)
from perf.kit.forms import publish_both_forms
from perf.kit.rankers import BuiltRanker, build_ranker, publish

RECIPES = {"cross_encoder": Path("recipes/examples/st_cross_encoder.toml"), "interactions": Path("recipes/dcn_v2.toml")}
"""Kind => the recipe whose checkpoint everyone serves."""
SHOWN = {"cross_encoder": ("int8_onnx", "int8_openvino"), "interactions": ()}
"""Kind => its variants that are served besides the reference."""
REQUESTS, CANDIDATES = 24, 512
"""Of a kind; candidates are of interactions, a search query brings its own."""
FIDELITY_LISTS = 20
"""Of the gate, in place of the recipe's: speed is measured here."""
REQUESTS_FILE, MODEL_FILE, ITEMS_FILE, CHECKPOINT = "requests.json", "model.onnx", "items.npz", "checkpoint"
FEATURES_FILE, USERS_FILE = "features.json", "users.json"


@dataclasses.dataclass(frozen=True)
class Ours:
    """One of our endpoints, in one form.

    Attributes:
        form: "ensemble" or "fused".
        workspace: whose repository has it.
    """

    endpoint: Endpoint
    form: str
    workspace: Workspace


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One kind's.

    Attributes:
        folder: with the files that peers read.
        ours: the FP32 one first.
        requests: with their candidates, in the order of ``bodies``.
        bodies: what a peer is sent for each.
    """

    kind: str
    folder: Path
    ours: Sequence[Ours]
    requests: Sequence[tuple[Request, list[str]]]
    bodies: Sequence[Mapping[str, Any]]

    @property
    def candidates(self) -> list[int]:
        """Of each request."""
        return [len(item_ids) for _, item_ids in self.requests]


def prepare(kind: str, console: Console, *, data: Path | None = None, workspace: Workspace = PROJECT) -> Inputs:
    """Build and publish the recipe's endpoints to a repository of their own, and write what peers read.

    Raises:
        PerfError: the recipe's checkpoint is not there.
        BuilderError: it cannot be built, or the data is not there.
    """
    recipe = load_recipe(RECIPES[kind])
    if recipe.checkpoint is None or not recipe.path(recipe.checkpoint).is_dir():
        raise PerfError(
            f"{recipe.path(recipe.checkpoint or Path())}: no checkpoint of {recipe.ranker} there; run "
            f"'.venv/bin/python -m builders train {RECIPES[kind]}'"
        )
    recipe = _shown(recipe, SHOWN[kind])
    source = find_data(data)
    folder = workspace.build / "peers" / kind
    folder.mkdir(parents=True, exist_ok=True)
    own = Workspace(folder / "build", folder / "model_repository", folder / "item_store")  # few requests judge it
    lists = requests_of(kind, judging_queries(recipe, evaluation_data(recipe.data, source.folder)))
    say = functools.partial(console.print, style="dim", markup=False, highlight=False, soft_wrap=True)
    built = build_ranker(recipe, lists, say, own, fidelity_lists=FIDELITY_LISTS, wanted=SHOWN[kind])
    publish([built], source.kind, say, own, gated=False)
    requests = [(lists.request(query_id), list(grades)) for query_id, grades in lists.judgements.items()]
    bodies = _WRITERS[kind](built, requests, folder)
    write_atomically(folder / REQUESTS_FILE, json.dumps(bodies))
    endpoints = [Endpoint(recipe, variant, built.ranker.endpoint.name) for variant in recipe.variants]
    return Inputs(kind, folder, _in_their_forms(kind, endpoints, own, folder), requests, bodies)


def _in_their_forms(kind: str, endpoints: Sequence[Endpoint], own: Workspace, folder: Path) -> list[Ours]:
    """Of interactions both forms of each; where the network takes most of the time, a form makes no difference."""
    if kind == "cross_encoder":
        return [Ours(endpoint, ENSEMBLE, own) for endpoint in endpoints]
    ours = []
    for endpoint in endpoints:
        target = folder / "forms" / endpoint.model
        publish_both_forms(own.repository, endpoint.name, endpoint.recipe.serving.instances, target)
        ours += [Ours(endpoint, form, dataclasses.replace(own, repository=target / form)) for form in FORMS]
    return ours


def requests_of(kind: str, judging: JudgedQueries) -> JudgedQueries:
    """The first :data:`REQUESTS` that the network answers, with their own candidates; those of interactions filled up
    to :data:`CANDIDATES`.

    A customer without a history is left out: the kit's endpoint answers with popularity, its network unasked.
    """
    asking = [query_id for query_id in judging.queries if kind == "cross_encoder" or judging.request(query_id).history]
    chosen = judging.only(asking[:REQUESTS])
    if kind == "cross_encoder":
        order = first_stage(chosen)
        lists = {query_id: list(order[query_id]) for query_id in chosen.queries}
    else:
        filled = (
            (query_id, dict.fromkeys([*grades, *itertools.islice(chosen.products, CANDIDATES)]))
            for query_id, grades in chosen.judgements.items()
        )
        lists = {query_id: list(item_ids)[:CANDIDATES] for query_id, item_ids in filled}
    judgements = {
        query_id: {item_id: chosen.judgements[query_id].get(item_id, 0) for item_id in item_ids}
        for query_id, item_ids in lists.items()
    }
    return dataclasses.replace(chosen, judgements=judgements, sampled="")


def _shown(recipe: Recipe, names: Sequence[str]) -> Recipe:
    kept = [variant for variant in recipe.variants[1:] if variant.name in names]
    return recipe.model_copy(update={"variants": (recipe.variants[0], *kept)})


def _write_texts(
    built: BuiltRanker, requests: Sequence[tuple[Request, list[str]]], folder: Path
) -> list[dict[str, Any]]:
    """The checkpoint, a plain export of it; query and documents of each request."""
    from transformers import AutoModelForSequenceClassification

    ranker: Any = built.ranker
    assert built.recipe.checkpoint is not None  # the classifier's recipe names one
    source = built.recipe.path(built.recipe.checkpoint)
    shutil.copytree(source, folder / CHECKPOINT, dirs_exist_ok=True)
    network = AutoModelForSequenceClassification.from_pretrained(
        source, attn_implementation="eager", local_files_only=True
    )
    request, item_ids = requests[0]
    sample = ranker.sample(request, [built.data.products[item_id] for item_id in item_ids])[ranker.graphs[0].name]
    export_plainly(
        Logits(network.eval()), {name: array.astype(np.int64) for name, array in sample.items()}, folder / MODEL_FILE
    )
    return [
        {
            "query": ranker.form.query(request.query),
            "documents": list(ranker.form.items(built.data.products[item_id] for item_id in item_ids)),
        }
        for request, item_ids in requests
    ]


class Logits(nn.Module):
    """A classifier's logits alone, its tensors named as the library's tokenizer names them."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """int64 [rows, length] each => float32 [rows, 1]."""
        logits: torch.Tensor = self.network(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).logits
        return logits


def _write_items(
    built: BuiltRanker, requests: Sequence[tuple[Request, list[str]]], folder: Path
) -> list[dict[str, Any]]:
    """The served graph, all items' encoded features, how requests are encoded; each request's own features, encoded and
    raw."""
    [graph] = built.ranker.graphs
    [(_, onnx_file)] = built.variants[0].models.values()
    shutil.copyfile(onnx_file, folder / MODEL_FILE)
    products = list(built.data.products.values())
    of_item = set(graph.row_inputs)
    items = built.ranker.sample(requests[0][0], products)[graph.name]
    ids = np.array([product.item_id for product in products])
    arrays: dict[str, Any] = {"item_ids": ids, **{name: items[name] for name in of_item}}
    np.savez(folder / ITEMS_FILE, **arrays)
    write_atomically(folder / FEATURES_FILE, str(built.ranker.preprocess_files[FEATURES_FILE]))
    write_atomically(folder / USERS_FILE, json.dumps(built.data.users))
    bodies = []
    for request, item_ids in requests:
        sample = built.ranker.sample(request, [built.data.products[item_id] for item_id in item_ids])[graph.name]
        own = {name: array.tolist() for name, array in sample.items() if name not in of_item}
        raw = {"user_id": request.user_id, "history": request.history, "context": request.context}
        bodies.append({"item_ids": item_ids, "request": own, "raw": raw})
    return bodies


_WRITERS: Mapping[str, Callable[[BuiltRanker, Sequence[tuple[Request, list[str]]], Path], list[dict[str, Any]]]] = {
    "cross_encoder": _write_texts,
    "interactions": _write_items,
}
