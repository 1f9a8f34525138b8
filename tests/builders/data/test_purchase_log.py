"""A purchase log is parted in time, and nothing known to a ranker is from after the cut."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from builders.data.beir import DatasetError
from builders.data.purchase_fields import ITEM_NUMBERS, ITEM_VALUES, USER_NUMBERS, USER_VALUES, Basket, title_fields
from builders.data.purchase_log import (
    HISTORY_LIMIT,
    Impression,
    PurchaseLog,
    evaluation_lists,
    purchase_log,
    training_examples,
    validation_log,
)
from builders.features.vocabularies import item_normalization, item_vocabularies, purchase_vectors
from tests.support.purchase_lines import CUT, generated_folder, generated_log, line, write_lines

LINES = [
    line(1, "a", "2010-01-01T09:00", "10A", quantity=3, price=2.0),
    line(1, "a", "2010-01-01T09:00", "20B", quantity=24, price=4.0),
    line(1, "b", "2010-02-01T10:00", "30", quantity=1),
    line(1, "b", "2010-02-01T10:00", "10A", quantity=1, price=6.0),
    line(2, "c", "2010-05-20T15:00", "10A", price=3.0, country="Chile"),
    line(1, "d", "2010-06-01T00:00", "20B", quantity=500, price=900.0),  # at the cut: after it; bought before
    line(1, "d", "2010-06-01T00:00", "40", title="GREEN GLASS JUG"),  # never sold before
    line(3, "e", "2010-06-05T12:00", "10A"),  # a cold customer
    line(3, "e", "2010-06-05T12:00", "30"),
    line(3, "f", "2010-06-09T12:00", "30"),
]


@pytest.fixture
def log(tmp_path: Path) -> PurchaseLog:
    return purchase_log(write_lines(tmp_path, LINES), CUT)


def test_a_history_holds_distinct_items_in_the_order_of_their_latest_purchase(log: PurchaseLog) -> None:
    assert log.histories == {"1": ("20B", "30", "10A"), "2": ("10A",)}


def test_positives_are_items_not_bought_before_the_cut_each_once(log: PurchaseLog) -> None:
    assert log.positives == {"1": ("40",), "3": ("10A", "30")}
    assert log.is_warm("1") and not log.is_warm("3")


def test_statistics_are_of_purchases_before_the_cut_alone(log: PurchaseLog) -> None:
    lamp, sold_later = log.items["20B"], log.items["40"]
    assert (lamp.price, lamp.fields["popularity"], lamp.fields["units_sold"]) == (4.0, 1, 24)
    assert (sold_later.price, sold_later.fields["popularity"], sold_later.title) == (None, 0, "GREEN GLASS JUG")
    assert log.known_items == ("10A", "20B", "30")


def test_popularity_counts_customers_and_price_is_the_median(log: PurchaseLog) -> None:
    lamp = log.items["10A"]
    assert (lamp.fields["popularity"], lamp.fields["recent_popularity"], lamp.price) == (2, 1, 3.0)
    assert lamp.fields["repeat_share"] == 0.5  # one of its two customers bought it again
    assert lamp.fields["bulk_share"] == 0 and log.items["20B"].fields["bulk_share"] == 1


def test_a_customer_is_described_as_of_the_cut(log: PurchaseLog) -> None:
    user = log.users["1"]
    assert (user["invoices"], user["distinct_items"], user["mean_basket"]) == (2, 3, 2.0)
    assert user["recency_days"] == pytest.approx((CUT - datetime.datetime(2010, 2, 1, 10)).total_seconds() / 86400)
    assert log.users["2"]["country"] == "Chile" and "3" not in log.users


def test_an_example_knows_only_what_came_before_its_basket(log: PurchaseLog) -> None:
    [example] = training_examples(log)
    assert (example.history, example.positives, example.quantities) == (("10A", "20B"), ("30",), (1,))
    assert (example.user["invoices"], example.context["month"]) == (1, "2")
    first = training_examples(log, with_empty_history=True)[0]
    assert first.history == () and first.positives == ("10A", "20B") and "invoices" not in first.user


def test_purchases_from_until_on_are_left_out(tmp_path: Path) -> None:
    log = purchase_log(write_lines(tmp_path, LINES), datetime.datetime(2010, 5, 1), until=CUT)
    assert log.positives == {"2": ("10A",)} and "40" not in log.items


def test_the_validation_log_ends_where_the_test_begins() -> None:
    log, validation = generated_log(), validation_log(generated_folder())
    assert validation.cut < log.cut
    assert max(validation.test_times.values()) < log.cut


def test_a_log_that_does_not_reach_over_the_cut_is_cut_at_nine_invoices_of_ten() -> None:
    log = generated_log()
    times = [basket.time for baskets in log.baskets.values() for basket in baskets]
    assert "do not reach over 2010-11-01" in log.notes[0] and max(times) < log.cut
    assert 0.85 < len(times) / 600 <= 0.9


def test_a_log_of_one_moment_is_refused(tmp_path: Path) -> None:
    lines = [line(1, "a", "2010-01-01T09:00", "10A"), line(2, "b", "2010-01-01T09:00", "10A")]
    with pytest.raises(DatasetError, match="all 2 invoices are of 2010-01-01 09:00:00, wanted some before"):
        purchase_log(write_lines(tmp_path, lines), CUT)


def test_every_declared_raw_field_is_there() -> None:
    log = generated_log()
    item, user = log.items[log.known_items[0]].raw_fields, next(iter(log.users.values()))
    assert set(ITEM_NUMBERS + ITEM_VALUES) <= set(item) and set(USER_NUMBERS + USER_VALUES) <= set(user)
    assert all(isinstance(item[name], (int, float)) for name in ITEM_NUMBERS)
    assert all(item[name] is None or isinstance(item[name], str) for name in ITEM_VALUES)


def test_a_title_gives_its_words_and_a_code_its_parts() -> None:
    fields = title_fields("84029E", "RED WOOLLY HOTTIE, WHITE HEART")
    assert (fields["code_prefix"], fields["code_family"], fields["code_suffix"]) == ("84", "840", "E")
    assert (fields["colour_word"], fields["material_word"], fields["motif_word"]) == ("RED", "WOOLLY", "HEART")
    assert (fields["first_word"], fields["third_word"], fields["last_word"]) == ("RED", "HOTTIE", "HEART")
    assert title_fields("?", "")["first_word"] is None


def test_lists_hold_one_positive_among_items_never_bought_by_popularity() -> None:
    log = generated_log()
    lists = evaluation_lists(log, customers=20, negatives=30)
    popularity = [product.fields["popularity"] for product in log.items.values()]
    assert popularity == sorted(popularity, reverse=True) and len(lists.queries) == 20
    for query_id, grades in lists.judgements.items():
        user_id = lists.request(query_id).user_id
        [positive] = [item_id for item_id, grade in grades.items() if grade]
        assert positive in log.positives[user_id] and grades[positive] == 3 and len(grades) == 31
        assert not set(log.positives[user_id]) & (set(grades) - {positive})
        assert not set(log.histories.get(user_id, ())) & set(grades)
        assert list(grades) == [item_id for item_id in log.items if item_id in grades]


def test_lists_are_the_same_on_every_call() -> None:
    assert evaluation_lists(generated_log(), 9).judgements == evaluation_lists(generated_log(), 9).judgements


def test_a_request_carries_the_latest_items_and_a_cold_customer_none(tmp_path: Path) -> None:
    many = [line(1, f"{n:03d}", f"2010-01-01T{n // 60:02d}:{n % 60:02d}", f"{n:03d}") for n in range(HISTORY_LIMIT + 5)]
    log = purchase_log(write_lines(tmp_path, [*many, *LINES[5:]]), CUT)
    requests = evaluation_lists(log).requests
    assert requests["u1"].history == tuple(f"{n:03d}" for n in range(5, HISTORY_LIMIT + 5))
    assert requests["u3"].history == () and requests["u3"].user is None and requests["u1"].user is not None


def test_vocabularies_and_normalisation_leave_out_items_sold_later(log: PurchaseLog) -> None:
    [words] = item_vocabularies(log, ["colour_word"], at_least=1)
    assert words == ("RED",)
    normal = item_normalization(log, ["popularity"], log1p=False)
    assert normal["mean"] == (pytest.approx(4 / 3),) and normal["std"] == (pytest.approx(np.std([2, 1, 1])),)


def test_items_of_the_same_customers_have_like_vectors() -> None:
    log = generated_log()
    vectors = purchase_vectors(log, 8)
    assert vectors.shape == (len(log.known_items), 8) and np.sqrt((vectors**2).mean()) == pytest.approx(1, rel=1e-3)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    category = np.array([item_id[:3] for item_id in log.known_items])
    same = category[:, None] == category
    assert cosines[same].mean() > cosines[~same].mean() + 0.1


# ---------------------------------------------------------------- returns, gifts, guests
def _told(log: PurchaseLog, start: str) -> str:
    [note] = [note for note in log.notes if note.startswith(start)]
    return note


def test_a_return_takes_back_the_latest_units_and_one_without_a_purchase_is_dropped(tmp_path: Path) -> None:
    lines = [
        *LINES,
        line(1, "Ca", "2010-01-03T09:00", "20B", quantity=-24),  # all of it: no purchase is left
        line(1, "Cb", "2010-03-01T09:00", "10A", quantity=-2),  # the one of February, then one of January's three
        line(2, "Cc", "2010-05-21T09:00", "30", quantity=-1),  # bought before the log
        line(1, "Cd", "2010-06-02T09:00", "10A", quantity=-1),  # bought before the cut: what was known then stays
        line(3, "Ce", "2010-06-06T09:00", "30", quantity=-1),  # bought again later
    ]
    log = purchase_log(write_lines(tmp_path, lines), CUT)
    assert [(basket.item_ids, basket.quantities) for basket in log.baskets["1"]] == [(("10A",), (2,)), (("30",), (1,))]
    assert log.histories["1"] == ("10A", "30") and log.positives == {"1": ("20B", "40"), "3": ("10A", "30")}
    assert log.items["10A"].fields["units_sold"] == 3 and log.items["20B"].fields["popularity"] == 0
    assert _told(log, "5 returns") == (
        "5 returns are netted: 3 purchases taken back whole are left out, 1 taken back in part are lessened; 2 returns "
        "of more than the customer had bought on their side of the cut are dropped"
    )


def test_what_is_no_purchase_is_left_out_with_its_number_and_a_repeated_line_is_added(tmp_path: Path) -> None:
    again = line(2, "c", "2010-05-20T15:00", "10A", price=3.0, country="Chile")
    lines = [
        *LINES,
        again,
        line(2, "c", "2010-05-20T15:00", "x", quantity=0),
        line(2, "c", "2010-05-20", "y", price=-9.0),
    ]
    log = purchase_log(write_lines(tmp_path, lines), CUT)
    assert log.baskets["2"][0].quantities == (2,) and not {"x", "y"} & set(log.items)
    assert _told(log, "1 of 13 lines with quantity 0") and _told(log, "1 of 13 lines with a negative price")
    assert _told(log, "1 of 13 lines repeat another one in every column: their units are added")


@pytest.mark.parametrize("price", [0.0, None])
def test_an_item_that_was_given_away_has_finite_fields(tmp_path: Path, price: float | None) -> None:
    gift = [line(1, "a", "2010-01-01T09:00", "10A"), line(1, "b", "2010-02-01T09:00", "gift")]
    lines = [*LINES, *((*one[:6], price, one[7]) for one in gift)]
    log = purchase_log(write_lines(tmp_path, lines), CUT)
    numbers = [
        product.raw_fields[name]
        for product in log.items.values()
        for name in ITEM_NUMBERS
        if name in product.raw_fields
    ]
    numbers += [log.users["1"][name] for name in USER_NUMBERS]
    assert all(value is None or np.isfinite(value) for value in numbers)
    assert log.items["gift"].price == price and log.users["1"]["mean_price"] > 0


def test_a_log_whose_purchases_were_all_returned_is_refused(tmp_path: Path) -> None:
    lines = [
        line(1, "a", "2010-01-01", "10A"),
        line(1, "C", "2010-01-02", "10A", quantity=-1),
        line(1, "b", "2010-07-01", "x"),
    ]
    with pytest.raises(DatasetError, match=r"0 purchases of customers before 2010-06-01 .* and 1 from then on, wanted"):
        purchase_log(write_lines(tmp_path, lines), CUT)


def test_a_log_without_a_first_time_purchase_after_the_cut_has_nothing_to_judge_by(tmp_path: Path) -> None:
    lines = [line(1, "a", "2010-01-01", "10A"), line(1, "b", "2010-07-01", "10A")]
    log = purchase_log(write_lines(tmp_path, lines), CUT)
    with pytest.raises(DatasetError, match="no customer bought anything for the first time from 2010-06-01"):
        evaluation_lists(log)


# ---------------------------------------------------------------- one pass, whatever the distribution
class _Read(tuple[int, ...]):
    """Quantities that count how often they are read."""

    reads = 0

    def __iter__(self) -> Iterator[int]:
        _Read.reads += len(self)
        return super().__iter__()


def test_each_line_of_an_account_with_many_invoices_is_read_a_fixed_number_of_times() -> None:
    start, count = datetime.datetime(2010, 1, 1), 300
    baskets = tuple(
        Basket("1", start + datetime.timedelta(hours=n), (f"{n}",), _Read((1,)), (1.0,), (True,)) for n in range(count)
    )
    users = {"1": {"country": "Norway"}}
    log = PurchaseLog(CUT, {}, users, {"1": baskets}, {}, {}, {})
    _Read.reads = 0
    examples = training_examples(log, with_empty_history=True)
    assert len(examples) == count and _Read.reads <= 5 * count  # reading all baskets before each one: count * count / 2
    assert examples[-1].user["invoices"] == count - 1 and examples[-1].history == tuple(map(str, range(199, 299)))


def test_each_item_of_an_invoice_with_many_lines_is_looked_up_a_fixed_number_of_times() -> None:
    class Id(str):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Id.compared += 1
            return str.__eq__(self, str(other))

        __hash__ = str.__hash__

    count, time = 300, datetime.datetime(2010, 1, 1)
    ids = tuple(Id(n) for n in range(count))
    basket = Basket("1", time, ids, (1,) * count, (1.0,) * count, (True,) * count)
    shown = {"1": tuple(Impression(time, Id(n)) for n in range(count, 2 * count))}
    log = PurchaseLog(CUT, {}, {"1": {"country": "Norway"}}, {"1": (basket,)}, {}, {}, {}, shown)
    [example] = training_examples(log, with_empty_history=True)
    assert len(example.shown) == count and Id.compared < 10 * count
