"""Explanations: contributions add up on real rankers and on networks of every form, and go to the field at work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from builders.data.beir import Product, Request
from builders.evaluate.explain.explanation import ExplainError, Explanation, ItemExplanation
from builders.evaluate.explain.fields import explain_features
from builders.evaluate.explain.page import print_explanation, write_explanation_html
from builders.evaluate.explain.run import explain, run_explain
from builders.evaluate.explain.text import explain_text
from builders.features.encoder import Feature, dense, history, multi_hot, sparse, tokens, vector
from builders.features.padding import padding_id_of
from builders.rankers.backbone import packaged_backbone
from builders.rankers.base import Ranker
from builders.rankers.bilstm import BiLstm
from builders.rankers.cross_encoder import CrossEncoderRanker
from builders.rankers.dcn_v2 import DCNv2
from builders.rankers.din import DIN
from builders.rankers.dlrm import DLRM
from builders.rankers.feature_ranker import FeatureRanker
from builders.rankers.intent import Intent, intent_features
from builders.rankers.layers.text_matcher import TextMatcher
from builders.rankers.mmoe import MMoE
from builders.rankers.ncf import NCF
from builders.rankers.sasrec import SASRec
from builders.rankers.text_cnn import TextCnn
from builders.rankers.two_tower import TwoTowerRanker
from builders.rankers.wide_mlp import WideMLP
from tests.support import fields
from tests.support.byte_level_bpe import write_byte_level_bpe
from tests.support.tiny_xlm_roberta import chinese_queries, write_backbone

FAMILIES = [DCNv2(fields.FEATURES), DLRM(fields.FEATURES), MMoE(fields.FEATURES), WideMLP(fields.FEATURES)]
CHECKPOINT = Path(__file__).resolve().parents[3] / "checkpoints" / "cross_encoder"
WIDTH = 8
CLOSE = 0.02
"""Of the contributions' absolute sum, where the integral stops early on purpose at 0.01."""
EXACT = 1e-4
FEATURES: tuple[Feature, ...] = (
    tokens("words", "query", 8),
    history("bought", 4, ["mug", "tea pot", "lamp"]),
    sparse("about", ["country"], "user", vocabularies=(("France", "Peru"),)),
    sparse("when", ["weekday"], "context", vocabularies=(("Mon", "Tue"),)),
    sparse("made_by", ["brand", "color"], vocabularies=(("acme", "zeta"), ("red", "blue"))),
    multi_hot("shelf", "category", "item", 3, vocabularies=(("home", "kitchen", "mugs"),)),
    dense("numbers", ["price", "rating"], mean=(10.0, 3.0), std=(5.0, 1.0)),
    vector("image", "image", 3),
)
REQUEST = Request(
    query="red mug",
    history=("lamp", "unheard of", "mug"),
    user_id="u1",
    user={"country": "Peru"},
    context={"weekday": "Tue"},
)
PRODUCTS = [
    Product("mug", "A red mug", brand="acme", color="red", category=("home", "mugs"), price=4.0, rating=4.5),
    Product("lamp", "A lamp", brand="new", category=("home",), fields={"image": [0.5, -1.0, 2.0]}),
]
WANTED_LABELS = {
    "query: red", "query: mug", "history: A lamp", "history: unheard of", "history: A red mug", "country=Peru",
    "weekday=Tue", "brand=acme", "color=red", "category=home", "category=mugs", "price=4.0", "rating=4.5",
    "image (3 numbers)",
}  # fmt: skip
TITLES = {product.item_id: product.title for product in PRODUCTS}


class AllKinds(nn.Module):
    """One table that history and items share, offsets in another, a bag layer, and all kinds of features."""

    features = FEATURES

    def __init__(self, mode: str = "mean") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokenizer_file = str(packaged_backbone() / "tokenizer.json")
        self.words = nn.Embedding(40_000, WIDTH)
        self.items = nn.Embedding(FEATURES[1].rows(), WIDTH, padding_idx=0)
        self.places = nn.Embedding(20, WIDTH)
        rows = FEATURES[4].table_rows
        self.fields = nn.Embedding(sum(rows), WIDTH)
        self.register_buffer("offsets", torch.tensor([0, rows[0]]))
        self.shelf = nn.EmbeddingBag(FEATURES[5].rows(), WIDTH, mode=mode, padding_idx=0)
        self.output = nn.Sequential(nn.Linear(6 * WIDTH + 5, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.score_of(self.request_of(*inputs[:4]), *inputs[4:])

    def request_of(self, words: Tensor, bought: Tensor, about: Tensor, when: Tensor) -> Tensor:
        """float32 [rows, 4 * WIDTH]."""
        present = (bought > 0).float().unsqueeze(-1)
        taken = (self.items(bought) * present).sum(1) / present.sum(1).clamp(min=1)
        return torch.cat([self.words(words).mean(1), taken, self.places(about)[:, 0], self.places(when + 10)[:, 0]], 1)

    def score_of(self, request: Tensor, made_by: Tensor, shelf: Tensor, numbers: Tensor, image: Tensor) -> Tensor:
        """float32 [rows, 1]."""
        made = self.fields(made_by + self.offsets).sum(1)
        return self.output(torch.cat([request.expand(len(made), -1), made, self.shelf(shelf), numbers, image], 1))


class EncodesRequest(AllKinds):
    """The same in two steps, and with a product that takes one row of the request only."""

    def encode_request(self, *inputs: Tensor) -> Tensor:
        return self.request_of(*inputs)

    def score_candidates(self, request: Tensor, *inputs: Tensor) -> Tensor:
        return self.score_of(request, *inputs) + self.fields(inputs[0])[:, 0] @ request[:, :WIDTH].T


class TwoHeads(AllKinds):
    broadcasts = True
    heads = 2

    def forward(self, *inputs: Tensor) -> Tensor:
        score = super().forward(*inputs)
        return torch.cat([score, score**2], dim=1)


class BoughtBefore(nn.Module):
    """Only whether the history's last item is the candidate matters: a product of two look-ups in one table."""

    features = (history("bought", 3, ["mug", "lamp"]), sparse("item", ["item_id"], vocabularies=(("mug", "lamp"),)))
    fallback_field = "popularity"

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 4, padding_idx=0)
        with torch.no_grad():
            self.table.weight[1:] = torch.eye(4)[1:]

    def forward(self, bought: Tensor, item: Tensor) -> Tensor:
        return (self.table(bought[:, -1]) * self.table(item[:, 0])).sum(1, keepdim=True)


class PaddedBehind(nn.Module):
    """A history that a library numbers from 1 and pads behind, and a title of a byte-level BPE tokenizer."""

    features = (
        history("bought", 4, ["mug", "lamp"], oov_buckets=0, padding="behind"),
        tokens("title", "item", 8, field="title"),
    )

    def __init__(self, tokenizer_file: Path) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokenizer_file, self.padding_id = tokenizer_file, padding_id_of(tokenizer_file)
        self.items, self.words = nn.Embedding(3, WIDTH, padding_idx=0), nn.Embedding(self.padding_id + 1, WIDTH)

    def forward(self, bought: Tensor, title: Tensor) -> Tensor:
        words = self.words(title) * (title != self.padding_id).unsqueeze(-1)
        return (self.items(bought).sum(1) * words.sum(1)).sum(1, keepdim=True)


class Chooses(nn.Module):
    """The item's brand says which score of the request counts."""

    features = (sparse("when", ["weekday"], "context", vocabularies=(("Mon", "Tue"),)), FEATURES[4])

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.days = nn.Embedding(FEATURES[3].rows(), 4)

    def encode_request(self, when: Tensor) -> Tensor:
        return self.days(when)[:, 0].tanh()

    def score_candidates(self, request_vector: Tensor, made_by: Tensor) -> Tensor:
        return request_vector[0][made_by[:, :1].long()]


class OneHot(nn.Module):
    features = (sparse("made_by", ["brand"], vocabularies=(("acme",),)),)

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(3, 1)

    def forward(self, made_by: Tensor) -> Tensor:
        return self.output(nn.functional.one_hot(made_by[:, 0].long(), 3).float())


def assert_adds_up(explanation: Explanation) -> None:
    for item in explanation.items:
        size = sum(abs(value) for _, value in item.contributions)
        assert size > 0
        assert abs(item.completeness_error) <= CLOSE * size


def assert_scores_are(explanation: Explanation, ranker: Ranker, request: Request, products: Sequence[Product]) -> None:
    wanted = dict(zip([product.item_id for product in products], ranker.score(request, products), strict=True))
    assert {item.item_id: item.score for item in explanation.items} == pytest.approx(wanted, abs=EXACT)
    scores = [item.score for item in explanation.items]
    assert scores == sorted(scores, reverse=True)


# ---------------------------------------------------------------- text
@pytest.fixture(scope="module")
def cross_encoder() -> CrossEncoderRanker:
    return CrossEncoderRanker(CHECKPOINT)


@pytest.fixture(scope="module")
def two_tower() -> TwoTowerRanker:
    return TwoTowerRanker()


SHOES = [Product("1", "red trail shoe for men"), Product("2", "garden tent", brand="Acme")]


@pytest.mark.parametrize("name", ["cross_encoder", "two_tower"])
def test_tokens_of_the_real_text_rankers_add_up(name: str, request: pytest.FixtureRequest) -> None:
    ranker = request.getfixturevalue(name)
    explanation = explain(ranker, Request("red shoes"), SHOES)
    assert_scores_are(explanation, ranker, Request("red shoes"), SHOES)
    assert_adds_up(explanation)


def test_a_pairs_tokens_are_named_in_order_without_special_ones(cross_encoder: CrossEncoderRanker) -> None:
    explanation = explain_text(cross_encoder, Request("red shoes"), SHOES[1:])
    labels = [label for label, _ in explanation.items[0].contributions]
    assert labels == ["query: red", "query: shoes", "item: garden", "item: tent", "item: ac", "item: ##me"]


def test_words_that_match_add_most_to_a_cross_encoders_score(cross_encoder: CrossEncoderRanker) -> None:
    best = explain_text(cross_encoder, Request("red shoes"), SHOES).items[0]
    assert best.item_id == "1"
    assert best.score > best.baseline_score
    ours = {label: value for label, value in best.contributions if label.startswith("item")}
    assert max(ours, key=lambda label: ours[label]) in ("item: red", "item: shoe")


def test_two_towers_explain_by_the_queries_tokens(two_tower: TwoTowerRanker) -> None:
    for item in explain_text(two_tower, Request("red shoes"), SHOES).items:
        assert [label for label, _ in item.contributions] == ["query: red", "query: shoes"]


def test_a_backbone_without_token_types_adds_up(tmp_path: Path) -> None:
    products = list(chinese_queries().products.values())[:2]
    ranker = CrossEncoderRanker(None, write_backbone(tmp_path, [product.title for product in products]))
    request = Request("红色咖啡杯")
    explanation = explain(ranker, request, products)
    assert_scores_are(explanation, ranker, request, products)
    assert_adds_up(explanation)


# ---------------------------------------------------------------- declared features
@pytest.mark.parametrize("network", [AllKinds(), AllKinds("sum"), AllKinds("max"), EncodesRequest(), TwoHeads()])
def test_fields_of_every_kind_and_form_add_up(network: nn.Module) -> None:
    ranker = FeatureRanker("all_kinds", network)
    explanation = explain_features(ranker, REQUEST, PRODUCTS, titles=TITLES)
    assert_adds_up(explanation)
    if not isinstance(network, TwoHeads):
        assert_scores_are(explanation, ranker, REQUEST, PRODUCTS)


@pytest.mark.parametrize("network", FAMILIES, ids=lambda network: type(network).__name__)
def test_fields_of_the_kits_own_networks_add_up(network: nn.Module) -> None:
    ranker = fields.ranker_of(network)
    products = fields.products(2)
    explanation = explain_features(ranker, fields.REQUEST, products)
    assert_adds_up(explanation)
    assert explanation.kept == ()
    labels = {label for item in explanation.items for label, _ in item.contributions}
    assert {"history: item 3", "weekday=1", "item_id=item 0", "brand=acme", "words=red"} <= labels


BOUGHT, USER = history("history", 10, fields.ITEMS), sparse("user_id", ["user_id"], "user")
SAME = sparse("item_id", ["item_id"], vocabularies=(fields.ITEMS,))


@pytest.mark.parametrize(
    "network",
    [NCF((BOUGHT, USER, SAME)), DIN((BOUGHT, SAME)), SASRec((BOUGHT, SAME))],
    ids=lambda one: type(one).__name__,
)
def test_items_of_the_history_of_the_kits_own_networks_add_up(network: nn.Module) -> None:
    explanation = explain_features(fields.ranker_of(network), fields.REQUEST, fields.products(2))
    assert_adds_up(explanation)
    for item in explanation.items:
        assert {"history: item 3", "history: item 7", f"item_id={item.item_id}"} <= {
            label for label, value in item.contributions if value != 0
        }


@pytest.mark.parametrize("network", [BiLstm, TextCnn])
def test_tokens_of_the_kits_own_small_text_networks_add_up(network: type[TextMatcher]) -> None:
    matcher = network.untrained({}).eval()
    matcher.words.bake()
    explanation = explain_features(FeatureRanker(network.name, matcher), Request("red shoes"), SHOES)
    assert_adds_up(explanation)
    assert explanation.items[0].item_id == "1"
    assert {"query: red", "query: shoes", "title: red", "title: trail"} <= {
        label for label, _ in explanation.items[0].contributions
    }


def test_a_category_is_explained_by_the_querys_tokens() -> None:
    intent = Intent.untrained({}, intent_features(["Shoes", "Tents"])).eval()
    intent.words.bake()
    categories = [Product("1", "Shoes", category=("Shoes",)), Product("2", "Tents", category=("Tents",))]
    explanation = explain_features(FeatureRanker("intent", intent), Request("red shoes"), categories)
    assert_adds_up(explanation)
    assert [label for label, _ in explanation.items[0].contributions] == ["query: red", "query: shoes"]
    assert len(explanation.kept) == 1


def test_fields_are_named_by_their_raw_values() -> None:
    explanation = explain_features(FeatureRanker("all_kinds", AllKinds()), REQUEST, PRODUCTS, titles=TITLES)
    [mug] = [item for item in explanation.items if item.item_id == "mug"]
    assert {label for label, _ in mug.contributions} == WANTED_LABELS
    assert all(value != 0 for label, value in mug.contributions if label != "image (3 numbers)")


def test_padding_behind_and_a_token_at_id_0_are_named_by_what_they_are(tmp_path: Path) -> None:
    ranker = FeatureRanker("behind", PaddedBehind(write_byte_level_bpe(tmp_path)))
    asked = Request(history=("lamp", "unheard of", "mug"))
    explanation = explain_features(ranker, asked, [Product("shoe", "red shoe!")], titles=TITLES)
    [item] = explanation.items
    named = [label for label, _ in item.contributions]
    assert sorted(label for label in named if label.startswith("history")) == ["history: A lamp", "history: A red mug"]
    assert "title: !" in named
    assert_adds_up(explanation)


def test_heads_are_explained_by_their_weighted_sum() -> None:
    ranker = FeatureRanker("two_heads", TwoHeads())
    explanation = explain_features(ranker, REQUEST, PRODUCTS, head_weights=(1.0, 0.5))
    wanted = sorted((ranker.score(REQUEST, PRODUCTS) @ [1.0, 0.5]).tolist(), reverse=True)
    assert [item.score for item in explanation.items] == pytest.approx(wanted, abs=EXACT)
    assert_adds_up(explanation)


def test_what_a_network_does_not_read_adds_nothing() -> None:
    ranker = FeatureRanker("bought_before", BoughtBefore())
    [item] = explain_features(ranker, Request(history=("lamp", "mug")), PRODUCTS[:1]).items
    assert (item.score, item.baseline_score) == (1.0, 0.0)
    found = dict(item.contributions)
    assert found.get("history: lamp", 0.0) == 0.0
    assert found["history: mug"] == pytest.approx(0.5, abs=EXACT)  # of a product, each factor has half
    assert found["item_id=mug"] == pytest.approx(0.5, abs=EXACT)


def test_an_item_that_adds_nothing_in_common_has_no_contribution() -> None:
    ranker = FeatureRanker("bought_before", BoughtBefore())
    [item] = explain_features(ranker, Request(history=("mug",)), PRODUCTS[1:]).items
    assert item.score == 0
    assert all(value == pytest.approx(0, abs=EXACT) for _, value in item.contributions)


def test_ids_that_pass_no_embedding_stay_and_are_named() -> None:
    ranker = FeatureRanker("chooses", Chooses())
    request = Request(context={"weekday": "Tue"})
    explanation = explain_features(ranker, request, PRODUCTS)
    assert_scores_are(explanation, ranker, request, PRODUCTS)
    assert_adds_up(explanation)
    assert explanation.kept == ("made_by",)
    assert {label for item in explanation.items for label, _ in item.contributions} == {"weekday=Tue"}


def test_a_module_without_anything_to_integrate_over_is_refused() -> None:
    with pytest.raises(ExplainError, match=r"OneHot reads ids only and looks none up in an nn.Embedding"):
        explain_features(FeatureRanker("one_hot", OneHot()), Request("mug"), PRODUCTS)


def test_an_unknown_history_is_refused_since_popularity_ranks_it() -> None:
    with pytest.raises(ExplainError, match=r"1 items, none of them known to it, so that 'popularity' ranks"):
        explain_features(FeatureRanker("bought_before", BoughtBefore()), Request(history=("never",)), PRODUCTS)


def test_no_items_are_refused() -> None:
    with pytest.raises(ExplainError, match="no items to explain"):
        explain_features(FeatureRanker("all_kinds", AllKinds()), REQUEST, [])


# ---------------------------------------------------------------- shown
SHOWN = Explanation(
    "a_ranker",
    "query '<b>mug</b>'",
    (
        ItemExplanation(
            "1", "<script>alert(1)</script> & [red]mug[/red]", 3.0, 1.0, (("a", 1.5), ("b", -0.5), ("c", 1.0))
        ),
        ItemExplanation("2", "", 1.0, 1.5, (("a", -0.25), ("a", -0.25))),
    ),
)


def test_the_strongest_contributions_come_first_and_the_rest_is_summed() -> None:
    assert SHOWN.items[0].strongest(1) == [("a", 1.5), ("2 others", 0.5)]
    assert SHOWN.items[0].strongest(3) == [("a", 1.5), ("c", 1.0), ("b", -0.5)]


def test_completeness_error_is_what_the_contributions_miss() -> None:
    assert SHOWN.completeness_error == 0
    assert ItemExplanation("1", "", 3.0, 1.0, (("a", 1.75),)).completeness_error == -0.25


def test_a_table_shows_items_sums_and_contributions_as_they_are() -> None:
    console = Console(width=160, record=True)
    print_explanation(console, SHOWN)
    shown = console.export_text()
    for text in ("[red]mug", "3.000 = 1.000 +2.000", "+1.500 a", "-0.500 b", "query '<b>mug</b>'"):
        assert text in shown


def test_the_page_is_whole_in_itself_and_escapes_titles(tmp_path: Path) -> None:
    write_explanation_html(tmp_path / "page.html", SHOWN)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script src=" not in page and "<link" not in page
    assert "<script>alert(1)" not in page and "alert(1)" in page
    assert "2 others" not in page and "+1.500" in page


# ---------------------------------------------------------------- the command
def test_a_judged_query_is_explained_from_its_name_alone(tmp_path: Path) -> None:
    console = Console(width=160, record=True)
    explanation = run_explain("two_tower", console, out=tmp_path / "page.html")
    assert 1 <= len(explanation.items) <= 5
    assert_adds_up(explanation)
    assert (tmp_path / "page.html").is_file()
    assert explanation.items[0].item_id in console.export_text()


def test_an_item_outside_the_corpus_is_refused() -> None:
    with pytest.raises(ExplainError, match="items nowhere are not in the corpus"):
        run_explain("two_tower", Console(), query="mug", items=["nowhere"])


def test_an_unjudged_query_without_items_is_refused() -> None:
    with pytest.raises(ExplainError, match="name items of the corpus with --items"):
        run_explain("two_tower", Console(), query="no such query was ever judged")
