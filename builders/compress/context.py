"""What the steps of a variant's chain share: the ranker as trained, the data, where products lie; and real requests."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from builders import features
from builders.compress.lists import tensors_of
from builders.core.contract import (
    CONTEXT,
    HISTORY,
    MAX_CANDIDATES,
    USER_ID,
    USUAL_CANDIDATES,
    rows_per_run,
)
from builders.core.keys import code_of, digests
from builders.core.recipe import Recipe
from builders.core.versions import libraries
from builders.core.workspace import PROJECT, Workspace
from builders.data.beir import JudgedQueries, Request
from builders.data.unlabeled import unlabeled_lists
from builders.export.onnx import OPSET
from builders.rankers.base import Graph, Ranker, Sample
from builders.rankers.load import load_teacher

IMPORTANCE_SEED, CALIBRATION_SEED = 101, 102
"""Of the lists that pruning measures and calibration reads: other lists than the gate's and distillation's."""
LIST_CANDIDATES = 12
_FEATURES_CODE = sorted(Path(features.__file__).parent.glob("*.py"))
"""Makes every ranker's samples."""

Say = Callable[[str], None]
LoadRanker = Callable[[str], Ranker]
"""A recipe's name or path => its ranker: how a step finds its teachers."""


@dataclasses.dataclass(frozen=True)
class BuildContext:
    """What every step needs.

    Attributes:
        ranker: as trained, the chain's start.
        data: judged queries, whose corpus and training queries steps may read.
        folder: ``build/rankers/<ranker>``.
        load_ranker: for teachers.
    """

    recipe: Recipe
    ranker: Ranker
    data: JudgedQueries
    folder: Path
    load_ranker: LoadRanker
    say: Say

    @property
    def steps_folder(self) -> Path:
        """Of products between two steps."""
        return self.folder / "steps"


def build_context(
    recipe: Recipe, ranker: Ranker, judged: JudgedQueries, say: Say = print, workspace: Workspace = PROJECT
) -> BuildContext:
    """What the steps of the recipe's variants need."""
    return BuildContext(recipe, ranker, judged, workspace.ranker_folder(recipe.ranker), load_teacher, say)


@functools.lru_cache(maxsize=16)
def ranker_inputs(ranker: Ranker) -> dict[str, str]:
    """What a ranker's scores depend on before any step: checkpoint, code and libraries. Hashes the checkpoint once."""
    return digests(
        {
            "checkpoint": list(ranker.checkpoint_files),
            "code": [*code_of(ranker, *(graph.module for graph in ranker.graphs)), *_FEATURES_CODE],
            "settings": dict(ranker.settings),
            "opset": OPSET,
            "libraries": libraries(),
        }
    )


def parity_samples(ranker: Ranker, judged: JudgedQueries, say: Say = print) -> list[dict[str, Sample]]:
    """Requests for every shape: one candidate, a usual request, and the largest at the longest texts: MAX_CANDIDATES,
    or the rows that a scorer which runs a request in parts ever runs at once.

    The first is a real one as it is; the others hold a history, a user and a context wherever the ranker reads one,
    from other real requests if their own have none. What the data has nowhere is said.
    """
    query_id, grades = next(iter(judged.judgements.items()))
    request = judged.request(query_id)
    longest_query = judged.request(max(judged.queries, key=lambda each: len(judged.queries[each])))
    candidates = [judged.products[item_id] for item_id in grades]
    scorer = ranker.graphs[-1]
    largest = rows_per_run(max(scorer.lengths, default=1)) if scorer.batches or scorer.splits else MAX_CANDIDATES
    longest = sorted(judged.products.values(), key=lambda product: len(product.title))[-largest:]
    found = _fullest(ranker, judged, say)
    return [
        ranker.sample(request, candidates[:1]),
        ranker.sample(_filled(request, found), candidates[:USUAL_CANDIDATES]),
        ranker.sample(_filled(longest_query, found), longest),
    ]


def _fullest(ranker: Ranker, judged: JudgedQueries, say: Say) -> dict[str, Any]:
    """The longest history, a user and a context of the data, of those that the ranker reads."""
    reads = {tensor.name for tensor in ranker.preprocess.inputs}
    requests = [judged.request(query_id) for query_id in judged.queries]
    found: dict[str, Any] = {}
    if HISTORY.name in reads:
        found["history"] = max((request.history for request in requests), key=len, default=())
        if not found["history"]:
            found["history"] = tuple(itertools.islice(judged.products, USUAL_CANDIDATES))
            told = f"the first {len(found['history'])} items stand in for one"
            say(f"{ranker.name}: no request of the data has a history; in its parity samples {told}")
    if USER_ID.name in reads:
        users = itertools.chain((request.user for request in requests), judged.users.values())
        found["user"] = next(filter(None, users), None)
    if CONTEXT.name in reads:
        found["context"] = next((request.context for request in requests if request.context), {})
    for name in ("user", "context"):
        if name in found and not found[name]:
            say(f"{ranker.name}: no request of the data has a {name}; its parity samples have none either")
    return found


def _filled(request: Request, found: Mapping[str, Any]) -> Request:
    """With what the request lacks."""
    return dataclasses.replace(request, **{name: value for name, value in found.items() if not getattr(request, name)})


def calibration_samples(context: BuildContext, ranker: Ranker, graph: Graph, count: int) -> list[Sample]:
    """Real candidates of training queries, the test queries stay unseen; unlabeled lists where there are none. In parts
    where the server runs them so."""
    train = context.data.subset("train")
    if train.queries:
        chosen = list(train.queries)[:count]
        lists = [(train.request(one), [train.products[item] for item in train.judgements[one]]) for one in chosen]
    else:
        made = unlabeled_lists(context.data, count, USUAL_CANDIDATES, CALIBRATION_SEED)
        lists = [(one.request, list(one.products)) for one in made]
    samples = (ranker.sample(request, products)[graph.name] for request, products in lists)
    return [part for sample in samples for part in graph.parts(sample)]


def importance_samples(context: BuildContext, ranker: Ranker, lists: int) -> list[dict[str, Sample]]:
    """Unlabeled lists, on which pruning measures what a network needs least."""
    return tensors_of(ranker, unlabeled_lists(context.data, lists, LIST_CANDIDATES, IMPORTANCE_SEED))
