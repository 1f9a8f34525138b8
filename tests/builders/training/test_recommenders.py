"""Training of item rankers: what an example teaches, the same weights from the same seed, a checkpoint that loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from builders.core.recipe import RecipeError
from builders.core.training_settings import RecommenderSettings
from builders.core.workspace import REPOSITORY_ROOT
from builders.data.beir import Request
from builders.data.purchase_log import PurchaseLog, purchase_log, training_examples
from builders.data.purchases import PURCHASES, load_purchases
from builders.rankers.din import DIN
from builders.rankers.feature_ranker import FeatureRanker
from builders.rankers.load import load_ranker
from builders.rankers.ncf import NCF
from builders.training.recommenders import (
    EncodedExamples,
    TrainingError,
    _batches,
    _drawn_candidates,
    _labels,
    _requests,
    _scores,
    encode_examples,
    softmax_loss,
    train_interactions,
    trained_network,
)
from tests.support.purchase_lines import generated_folder, generated_log, line, small_recipe, write_lines

NCF_MODULE = str(REPOSITORY_ROOT / "builders/rankers/ncf.py:NCF")


@pytest.fixture(scope="module")
def ranker() -> FeatureRanker:
    return FeatureRanker("ncf", NCF.for_log(generated_log(), {}))


@pytest.fixture(scope="module")
def encoded(ranker: FeatureRanker) -> EncodedExamples:
    return encode_examples(ranker, generated_log(), RecommenderSettings(half_life_days=30))


def test_an_unknown_setting_or_loss_is_refused_by_name() -> None:
    with pytest.raises(RecipeError) as refusal:
        RecommenderSettings.of({"epoch": 3, "loss": "hinge", "stones": 1})
    assert str(refusal.value) == (
        "training.loss: Input should be 'softmax' or 'logistic'; "
        "training.epoch: unknown field; did you mean 'epochs'?; "
        "training.stones: unknown field; wanted one of seed, threads, epochs, examples, half_life_days, batch, "
        "learning_rate, weight_decay, loss, negatives, user_dropout, network"
    )


def test_labels_are_over_items_that_the_customer_had_not_bought(encoded: EncodedExamples) -> None:
    log = generated_log()
    number, example = next(
        (number, example) for number, example in enumerate(training_examples(log)) if len(example.history) > 8
    )
    kept, bought, quantities = _labels(encoded, number, torch.arange(len(log.known_items)))
    candidates = [log.known_items[row] for row in kept.tolist()]
    assert set(log.known_items) - set(candidates) == set(example.history) - set(example.positives)
    found = {candidates[row]: int(quantities[row]) for row in bought.nonzero()[:, 0].tolist()}
    assert found == dict(zip(example.positives, example.quantities, strict=True))


def shop_with_impressions(folder: Path) -> PurchaseLog:
    """The generated shop without prices and countries, in which each purchase had an item beside it that was not
    taken: the one 7 places further in the order of ids."""
    lines = load_purchases(generated_folder()).drop_columns(["price", "country"])
    ids = sorted(set(lines["stock_code"].to_pylist()))
    beside = [ids[(ids.index(item_id) + 7) % len(ids)] for item_id in lines["stock_code"].to_pylist()]
    taken, passed = (pa.array([value] * lines.num_rows) for value in (True, False))
    at = lines.column_names.index("stock_code")
    not_taken = lines.set_column(at, "stock_code", pa.array(beside)).append_column("label", passed)
    pq.write_table(pa.concat_tables([lines.append_column("label", taken), not_taken]), folder / PURCHASES)
    return purchase_log(folder)


def test_given_negatives_are_what_an_example_is_set_against(tmp_path: Path, ranker: FeatureRanker) -> None:
    log = shop_with_impressions(tmp_path)
    encoded = encode_examples(ranker, log, RecommenderSettings())
    number, example = next((number, one) for number, one in enumerate(training_examples(log)) if len(one.shown) > 2)
    candidates = _drawn_candidates(encoded, torch.tensor([number]), RecommenderSettings(negatives=5))
    kept, bought, _ = _labels(encoded, number, candidates)
    held = [log.known_items[row] for row in candidates[kept].tolist()]
    assert set(held) == {*example.positives, *example.shown} & set(log.known_items)
    assert {held[row] for row in bought.nonzero()[:, 0].tolist()} == set(example.positives)


@pytest.mark.parametrize("name", ["ncf", "dcn_v2", "mmoe"])
def test_a_log_without_prices_and_countries_trains(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = shop_with_impressions(tmp_path)
    network = trained_network(small_recipe(name), log)
    scores = FeatureRanker(name, network).score(Request(history=log.known_items[:3]), [*log.items.values()][:20])
    assert np.isfinite(scores).all() and np.ptp(scores, axis=0).max() > 0
    assert f"{name}: negatives given for " in capsys.readouterr().out


def test_drawn_candidates_hold_every_positive_of_the_batch(encoded: EncodedExamples) -> None:
    drawn = torch.arange(5)
    candidates = set(_drawn_candidates(encoded, drawn, RecommenderSettings(negatives=10)).tolist())
    positives = {row for number in range(5) for row in encoded.positives[number].tolist()}
    assert positives <= candidates and len(candidates) <= len(positives) + 10


def test_an_older_example_is_drawn_less(encoded: EncodedExamples) -> None:
    ages = torch.tensor([example.age_days for example in training_examples(generated_log())])
    torch.testing.assert_close(encoded.weights, 0.5 ** (ages / 30))
    settings = RecommenderSettings(examples=4000, batch=100, half_life_days=30)
    torch.manual_seed(0)
    drawn = torch.cat(list(_batches(encoded, settings)))
    assert ages[drawn].mean() < ages.mean() / 2


def test_a_hidden_user_is_an_unknown_one(encoded: EncodedExamples, ranker: FeatureRanker) -> None:
    names = [feature.name for feature in ranker.features if not feature.per_candidate]
    shown, hidden = (
        dict(zip(names, _requests(encoded, torch.arange(4), RecommenderSettings(user_dropout=share)), strict=True))
        for share in (0.0, 1.0)
    )
    assert (shown["user_id"] > 1).all() and (hidden["user_id"] == 0).all()
    torch.testing.assert_close(shown["history"], hidden["history"])


def test_a_batch_scores_as_one_request_after_the_other(encoded: EncodedExamples) -> None:
    network = DIN.for_log(generated_log(), {}).eval()
    ranker, drawn = FeatureRanker("din", network), torch.arange(3)
    examples = encode_examples(ranker, generated_log(), RecommenderSettings())
    with torch.no_grad():
        together = _scores(network, _requests(examples, drawn, RecommenderSettings()), examples.candidates)
        alone = [network(examples.requests["history"][row : row + 1], *examples.candidates) for row in range(3)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)


def test_softmax_loss_is_the_cross_entropy_of_positives_over_the_root_of_their_number() -> None:
    scores, bought = torch.tensor([2.0, 0.0, 1.0, -1.0]), torch.tensor([True, False, True, False])
    log_total = torch.logsumexp(scores, 0)
    assert softmax_loss(scores, bought).item() == pytest.approx((2 * log_total - 3).item() / 2**0.5)


@pytest.mark.parametrize("loss", ["softmax", "logistic"])
def test_one_seed_gives_the_same_weights_and_another_gives_others(loss: str) -> None:
    first, second, other = (
        trained_network(small_recipe("ncf", loss=loss, seed=seed), generated_log()).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["product_items.weight"], other["product_items.weight"])


def test_customers_with_one_basket_each_teach_nothing(tmp_path: Path) -> None:
    lines = [line(1, "a", "2010-01-01", "x"), line(1, "b", "2010-11-03", "y")]
    recipe = small_recipe("ncf").model_copy(update={"root": tmp_path, "module": NCF_MODULE})
    with pytest.raises(TrainingError, match="no customer has two baskets before 2010-11-01"):
        train_interactions(recipe, write_lines(tmp_path, lines))


def test_the_written_checkpoint_loads_as_a_ranker(tmp_path: Path) -> None:
    recipe = small_recipe("ncf").model_copy(
        update={"root": tmp_path, "module": NCF_MODULE, "checkpoint": Path("trained")}
    )
    assert train_interactions(recipe, generated_folder()) == tmp_path / "trained"
    loaded = load_ranker(recipe)
    assert isinstance(loaded, FeatureRanker) and loaded.endpoint.name == "recommend"


def test_a_recipe_without_a_checkpoint_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="ncf: no checkpoint in the recipe"):
        train_interactions(small_recipe("ncf").model_copy(update={"checkpoint": None}), tmp_path)


def test_a_network_setting_that_the_network_does_not_take_names_the_recipe() -> None:
    found = r"recipe of ncf: \[training\.network\] does not fit '.*ncf\.py:NCF' \(.*'factor'"
    with pytest.raises(TrainingError, match=found):
        trained_network(small_recipe("ncf", network={"factor": 3}), generated_log())
