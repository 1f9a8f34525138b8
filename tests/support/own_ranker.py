"""A ranker that the kit has never seen: a user's file and recipe in a folder of the user's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from builders.build import build_ranker
from builders.core.recipe import load_recipe
from builders.core.workspace import Workspace
from builders.data.beir import JudgedQueries
from builders.data.synthetic import generated_catalogue
from builders.evaluate.judge import BuiltRanker
from builders.publish.catalogue import fill_item_store
from builders.publish.endpoints import publish_rankers
from builders.rankers.backbone import packaged_backbone

IMAGE_WIDTH = 4
MODULE = '''
import torch
from torch import nn

from builders.features import multi_hot, dense, history, sparse, tokens, vector

torch.manual_seed(7)


class EveryKind(nn.Module):
    """One feature of every kind and source."""

    features = (
        tokens("asked", "query", 16),
        sparse("lives_in", ["country"], "user", vocabularies=[("se", "no")], oov_buckets=2),
        sparse("hour", ["hour"], "context", oov_buckets=24),
        history("taken", 5, vocabulary=[], oov_buckets=50),
        dense("numbers", ["price", "rating"], log1p=True, mean=(3.0, 1.0), std=(2.0, 0.5)),
        sparse("made_by", ["brand", "color"], vocabularies=[("Alder", "Corvid"), ()], oov_buckets=7),
        multi_hot("path", "category", "item", 3, oov_buckets=40),
        tokens("title", "item", 24, field="title"),
        vector("picture", "image", IMAGE),
    )
    tokenizer_file = TOKENIZER

    def __init__(self):
        super().__init__()
        table = lambda rows: nn.Embedding(rows, 8)
        declared = {feature.name: feature for feature in self.features}
        self.words = table(30522)
        self.user, self.hours = table(declared["lives_in"].rows()), table(declared["hour"].rows())
        self.items, self.brands = table(declared["taken"].rows()), table(declared["made_by"].rows("brand"))
        self.colors, self.paths = table(declared["made_by"].rows("color")), table(declared["path"].rows())
        self.mix = nn.Sequential(nn.Linear(8 * 8 + 2 + IMAGE, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, asked, lives_in, hour, taken, numbers, made_by, path, title, picture):
        mean = lambda table, ids: table(ids).mean(dim=1)
        parts = [
            mean(self.words, asked), mean(self.user, lives_in), mean(self.hours, hour), mean(self.items, taken),
            self.brands(made_by[:, 0]), self.colors(made_by[:, 1]), mean(self.paths, path), mean(self.words, title),
        ]
        return self.mix(torch.cat([*parts, numbers, picture], dim=1))
'''
RECIPE = """
ranker = "every_kind"
module = "every_kind.py:EveryKind"

[[variants]]
name = "fp32_onnx"
"""


def write_own_ranker(folder: Path) -> Path:
    """The recipe's path; the module lies beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = repr(str(packaged_backbone() / "tokenizer.json"))
    module = MODULE.replace("TOKENIZER", tokenizer).replace("IMAGE", str(IMAGE_WIDTH))
    (folder / "every_kind.py").write_text(module, encoding="utf-8")
    (folder / "every_kind.toml").write_text(RECIPE, encoding="utf-8")
    return folder / "every_kind.toml"


def catalogue() -> JudgedQueries:
    """The generated one; every third product has an image's vector, and two users are known."""
    made = generated_catalogue()
    products = {
        item_id: dataclasses.replace(product, fields={"image": [row % 5, 1.0, -1.0, 0.5]} if row % 3 == 0 else {})
        for row, (item_id, product) in enumerate(made.products.items())
    }
    users = {"anna": {"country": "se"}, "paul": {"country": "pl"}}
    return dataclasses.replace(made, products=products, users=users)


def built_own_ranker(folder: Path) -> tuple[BuiltRanker, Workspace]:
    """Through export, parity, gate, store and repository."""
    workspace = Workspace(folder / "build", folder / "models", folder / "store")
    built = build_ranker(load_recipe(write_own_ranker(folder)), catalogue(), lambda _: None, workspace)
    fill_item_store([built], lambda _: None, workspace)
    publish_rankers([built], {}, "made up", lambda _: None, workspace)
    return built, workspace
