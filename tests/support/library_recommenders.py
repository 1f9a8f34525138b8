"""Runs where the recommender libraries are installed: trains a small model of one, and builds what its page says.

``python -m tests.support.library_recommenders LIBRARY FOLDER``, where FOLDER holds the files of the library's page and
``shop/``, a folder of purchases. Afterwards FOLDER also holds the ``checkpoint/`` that the page's ``save.py`` wrote,
``expected.json`` with the scores of the library's own prediction for some requests, and the built ``models/`` and
``store/``. Ids and padding are made here as those libraries' users make them, without the kit's encoder.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from builders.build import build_ranker
from builders.core.recipe import load_recipe
from builders.core.workspace import Workspace
from builders.data.evaluation import evaluation_data
from builders.data.purchase_log import Example, PurchaseLog, purchase_log, training_examples
from builders.publish.catalogue import fill_item_store
from builders.publish.endpoints import publish_rankers

LENGTH = 20
CANDIDATES = 40
RECIPES = {"deepctr-torch": "din.toml", "torch-rechub": "mmoe.toml", "recbole": "sasrec.toml"}
SEED = 5

Saved = dict[str, Any]
"""Names that a page's ``save.py`` reads."""
Predict = Callable[[str, Sequence[str], Sequence[str]], Sequence[float]]
"""(user id, history, item ids) => the library's own scores."""


class Shop:
    """A log as these libraries see it: values numbered from 1, 0 = padding."""

    def __init__(self, log: PurchaseLog) -> None:
        self.log = log
        self.items, self.users = list(log.known_items), sorted(log.users)
        self.item_number = {item_id: 1 + row for row, item_id in enumerate(self.items)}
        self.user_number = {user_id: 1 + row for row, user_id in enumerate(self.users)}
        prices = np.log1p([log.items[item_id].price for item_id in self.items])
        self.price_mean, self.price_std = float(prices.mean()), float(prices.std())

    def price(self, item_id: str) -> float:
        return (np.log1p(self.log.items[item_id].price) - self.price_mean) / self.price_std

    def columns(self, user_id: str, history: Sequence[str], item_ids: Sequence[str]) -> dict[str, np.ndarray]:
        """A row an item."""
        taken = [self.item_number[item_id] for item_id in history][-LENGTH:]
        rows = len(item_ids)
        return {
            "user_id": np.full(rows, self.user_number.get(user_id, 0)),
            "item_id": np.array([self.item_number[item_id] for item_id in item_ids]),
            "taken": np.tile(np.pad(taken, (0, LENGTH - len(taken))), (rows, 1)),
            "length": np.full(rows, len(taken)),
            "price": np.array([self.price(item_id) for item_id in item_ids], dtype=np.float32),
        }

    def training_columns(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Columns, and whether each row's item was bought and bought by the dozen: positives and as many negatives."""
        draw = np.random.default_rng(SEED)
        parts, bought, bulk = [], [], []
        for example in training_examples(self.log)[:200]:
            others = draw.choice(self.items, len(example.positives)).tolist()
            parts.append(self.columns(example.user_id, example.history, [*example.positives, *others]))
            bought += [1.0] * len(example.positives) + [0.0] * len(others)
            bulk += [float(units >= 12) for units in example.quantities] + [0.0] * len(others)
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return columns, np.array(bought), np.array(bulk)


def spread(model: torch.nn.Module) -> None:
    """Weights wide enough that a short training leaves scores apart: the libraries start at 0.0001."""
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(0, 0.4)
        for table in model.modules():
            if isinstance(table, torch.nn.Embedding) and table.padding_idx is not None:
                table.weight[table.padding_idx] = 0


def deepctr_torch(shop: Shop) -> tuple[Saved, Predict]:
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import DIN

    def given(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = {"taken": "hist_item_id", "length": "seq_length"}
        return {names.get(name, name): column for name, column in columns.items()}

    taken = SparseFeat("hist_item_id", len(shop.items) + 1, 8, embedding_name="item_id")
    features = [
        SparseFeat("user_id", len(shop.users) + 1, 8),
        SparseFeat("item_id", len(shop.items) + 1, 8),
        VarLenSparseFeat(taken, maxlen=LENGTH, length_name="seq_length"),
        DenseFeat("price", 1),
    ]
    model = DIN(features, ["item_id"], dnn_hidden_units=(32, 16), att_hidden_size=(16,))
    spread(model)
    model.compile("adam", "binary_crossentropy")
    columns, bought, _ = shop.training_columns()
    model.fit(given(columns), bought, batch_size=64, epochs=2, verbose=0)
    names = ("users", "items", "price_mean", "price_std")
    saved = {"model": model, **{name: getattr(shop, name) for name in names}}
    return saved, lambda *request: model.predict(given(shop.columns(*request)))[:, 0].tolist()


def torch_rechub(shop: Shop) -> tuple[Saved, Predict]:
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    rows = len(shop.items) + 1
    features = [
        SparseFeature("user_id", len(shop.users) + 1, embed_dim=8),
        SparseFeature("item_id", rows, embed_dim=8),
        SequenceFeature("taken", rows, embed_dim=8, pooling="mean", shared_with="item_id", padding_idx=0),
    ]
    tasks = ["classification", "classification"]
    model = MMOE(features, tasks, 3, {"dims": [16]}, [{"dims": [8]}, {"dims": [8]}])
    spread(model)
    columns, bought, bulk = shop.training_columns()
    read = {feature.name: columns[feature.name] for feature in features}
    generator = DataGenerator(read, np.stack([bought, bulk], axis=1).astype(np.float32))
    training, *_ = generator.generate_dataloader(split_ratio=[0.9, 0.05], batch_size=64)
    trainer = MTLTrainer(model, tasks, n_epoch=2, device="cpu")
    for _ in range(2):
        trainer.train_one_epoch(training)

    def predict(*request: Any) -> Sequence[float]:
        asked = {name: torch.from_numpy(column) for name, column in shop.columns(*request).items()}
        return (np.array(trainer.predict(model, [asked])) @ [0.75, 0.25]).tolist()

    return {"model": model, "users": shop.users, "items": shop.items}, predict


def recbole(shop: Shop) -> tuple[Saved, Predict]:
    _numpy_1_names()
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.data.interaction import Interaction
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer

    _write_interactions(shop.log, Path("data/shop/shop.inter"))
    settings = {
        **{"data_path": "data", "use_gpu": False, "epochs": 2, "train_neg_sample_args": None, "show_progress": False},
        **{"hidden_size": 16, "inner_size": 32, "n_layers": 2, "n_heads": 2, "MAX_ITEM_LIST_LENGTH": LENGTH},
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    }
    config = Config(model="SASRec", dataset="shop", config_dict=settings)
    dataset = create_dataset(config)
    training, *_ = data_preparation(config, dataset)
    model = SASRec(config, training.dataset)
    spread(model)
    Trainer(config, model).fit(training, saved=False, show_progress=False)
    model.eval()

    def predict(_user_id: str, history: Sequence[str], item_ids: Sequence[str]) -> Sequence[float]:
        taken = [dataset.token2id("item_id", item_id) for item_id in history][-LENGTH:]
        padded = np.pad(taken, (0, LENGTH - len(taken)))
        asked = Interaction(
            {
                "item_id_list": torch.from_numpy(np.tile(padded, (len(item_ids), 1))),
                "item_length": torch.full((len(item_ids),), len(taken)),
                "item_id": torch.tensor([dataset.token2id("item_id", item_id) for item_id in item_ids]),
            }
        )
        with torch.no_grad():
            return model.predict(asked).tolist()

    return {"model": model, "config": config, "dataset": dataset}, predict


def _numpy_1_names() -> None:
    """RecBole 1.2.1's Config spells types as NumPy 1 did."""
    names = {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}
    for name, value in names.items():
        setattr(np, name, value)


def _write_interactions(log: PurchaseLog, path: Path) -> None:
    """RecBole's atomic file."""
    lines = [
        f"{basket.user_id}\t{item_id}\t{basket.time.timestamp()}"
        for baskets in log.baskets.values()
        for basket in baskets
        for item_id in basket.item_ids
    ]
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *lines]), encoding="utf-8")


TRAIN: dict[str, Callable[[Shop], tuple[Saved, Predict]]] = {
    "deepctr-torch": deepctr_torch,
    "torch-rechub": torch_rechub,
    "recbole": recbole,
}


def train(library: str, folder: Path) -> None:
    """Train, save as the page does, and write the library's own scores; in FOLDER, as a user would."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    shop = Shop(purchase_log(folder / "shop"))
    saved, predict = TRAIN[library](shop)
    runpy.run_path("save.py", init_globals=saved)
    requests = [_request(shop, example) for example in training_examples(shop.log)[::40][:8]]
    requests.append({**requests[0], "user_id": "a stranger"})
    expected = [{**request, "scores": list(predict(*request.values()))} for request in requests]
    Path("expected.json").write_text(json.dumps(expected), encoding="utf-8")


def _request(shop: Shop, example: Example) -> dict[str, Any]:
    others = np.random.default_rng(SEED).permutation(shop.items).tolist()
    return {"user_id": example.user_id, "history": example.history, "item_ids": others[:CANDIDATES]}


def build(library: str, folder: Path) -> None:
    """As ``python -m builders build`` does, in a workspace of its own; lines to standard output."""
    workspace = Workspace(folder / "build", folder / "models", folder / "store")
    say = functools.partial(print, flush=True)
    data = evaluation_data("purchases", folder / "shop")
    built = build_ranker(load_recipe(folder / RECIPES[library]), data, say, workspace, fidelity_lists=20)
    fill_item_store([built], say, workspace)
    publish_rankers([built], {}, "made up", say, workspace)


def main(library: str, folder: Path) -> None:
    os.chdir(folder)
    train(library, folder)
    build(library, folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
