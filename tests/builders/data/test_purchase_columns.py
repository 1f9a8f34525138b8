"""A shop's own table: other names, other types, nothing but what is needed; and impressions that were not taken."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.data.beir import DatasetError
from builders.data.find import find_data
from builders.data.purchase_columns import COLUMNS_FILE
from builders.data.purchase_fields import ITEM_NUMBERS, USER_NUMBERS
from builders.data.purchase_log import PurchaseLog, evaluation_lists, purchase_log, training_examples
from builders.data.purchases import PURCHASES, load_purchases, read_purchases
from builders.features import FeatureEncoder, dense
from builders.features.vocabularies import item_normalization

CUT = datetime.datetime(2026, 3, 1)
NAMES = 'customer_id = "user_id"\nstock_code = "item_id"\ninvoice_date = "timestamp"\ninvoice = "order_id"\n'


def times(*days: str) -> list[datetime.datetime]:
    return [datetime.datetime.fromisoformat(day) for day in days]


SHOP: dict[str, Any] = {
    "user_id": [1, 1, 1, 2, 2, 3],
    "item_id": ["a", "b", "c", "a", "c", "b"],
    "timestamp": times("2026-01-01", "2026-01-01", "2026-02-01", "2026-02-02", "2026-03-02", "2026-03-03"),
    "order_id": [7, 7, 8, 9, 10, 11],
}


def write(folder: Path, columns: Mapping[str, Any], toml: str | None = f"[columns]\n{NAMES}") -> Path:
    """``purchases.parquet`` and ``columns.toml``; returns the folder."""
    pq.write_table(pa.table(dict(columns)), folder / PURCHASES)
    if toml is not None:
        (folder / COLUMNS_FILE).write_text(toml, encoding="utf-8")
    return folder


def told(folder: Path) -> str:
    with pytest.raises(DatasetError) as refusal:
        load_purchases(folder)
    return str(refusal.value)


def test_a_table_without_prices_under_its_own_names_is_a_purchase_log(tmp_path: Path) -> None:
    log = purchase_log(write(tmp_path, SHOP), CUT)
    assert log.histories == {"1": ("a", "b", "c"), "2": ("a",)}
    assert log.positives == {"2": ("c",), "3": ("b",)}
    assert log.items["a"].title == "a" and log.items["a"].price is None
    assert log.notes == (
        "purchases.parquet: no description: an item's id is its title",
        "purchases.parquet: no quantity: each line is one unit",
        "purchases.parquet: no price: no item has a price",
        "purchases.parquet: no country: no customer has a country",
    )


def test_what_is_not_known_for_lack_of_a_column_is_none_and_never_nan(tmp_path: Path) -> None:
    log = purchase_log(write(tmp_path, SHOP), CUT)
    numbers = [log.items["a"].raw_fields[name] for name in ITEM_NUMBERS]
    numbers += [log.users["1"][name] for name in USER_NUMBERS]
    assert None in numbers and not any(value is not None and np.isnan(value) for value in numbers)
    priced = dense("numbers", ["price", "popularity"], **item_normalization(log, ["price", "popularity"]))
    assert np.isfinite(np.frombuffer(FeatureEncoder([priced]).item_record(log.items["a"].raw_fields), "<f4")).all()


def test_without_orders_what_is_taken_at_one_moment_is_one_basket(tmp_path: Path) -> None:
    names = NAMES.replace('invoice = "order_id"\n', "")
    columns = {name: column for name, column in SHOP.items() if name != "order_id"}
    log = purchase_log(write(tmp_path, columns, f"[columns]\n{names}"), CUT)
    assert [basket.item_ids for basket in log.baskets["1"]] == [("a", "b"), ("c",)]


@pytest.mark.parametrize(
    ("replaced", "toml"),
    [
        ({"user_id": [1.0, 1.0, 1.0, 2.0, 2.0, 3.0]}, ""),
        ({"user_id": list("111223")}, ""),
        ({"user_id": pa.array(list("111223")).dictionary_encode()}, ""),
        ({"timestamp": [f"{time:%Y-%m-%dT%H:%M:%S}" for time in SHOP["timestamp"]]}, ""),
        ({"timestamp": [time.date() for time in SHOP["timestamp"]]}, ""),
        ({"timestamp": pa.array(SHOP["timestamp"], pa.timestamp("ms", "UTC"))}, ""),
        ({"timestamp": [time.replace(tzinfo=datetime.UTC).timestamp() for time in SHOP["timestamp"]]}, "s"),
        (
            {"timestamp": [int(time.replace(tzinfo=datetime.UTC).timestamp()) * 1000 for time in SHOP["timestamp"]]},
            "ms",
        ),
    ],
)
def test_other_types_say_the_same(tmp_path: Path, replaced: Mapping[str, Any], toml: str) -> None:
    unit = f'time_unit = "{toml}"\n' if toml else ""
    log = purchase_log(write(tmp_path, {**SHOP, **replaced}, f"{unit}[columns]\n{NAMES}"), CUT)
    assert log.histories == {"1": ("a", "b", "c"), "2": ("a",)} and log.positives == {"2": ("c",), "3": ("b",)}
    assert log.baskets["1"][0].time == datetime.datetime(2026, 1, 1)


def test_lines_without_a_customer_are_left_out_with_their_number(tmp_path: Path) -> None:
    found = read_purchases(write(tmp_path, {**SHOP, "user_id": [1, None, 1, 2, 2, None]}))
    assert found.lines.num_rows == 4
    assert found.notes[-1] == "2 of 6 lines without customer_id are left out"


# ---------------------------------------------------------------- refusals
def test_missing_columns_are_one_error_that_lists_what_was_found(tmp_path: Path) -> None:
    write(tmp_path, SHOP, None)
    assert told(tmp_path) == (
        f"{tmp_path / PURCHASES}: no column 'customer_id', 'stock_code', 'invoice_date'; "
        "found 'user_id', 'item_id', 'timestamp', 'order_id'; "
        f"say in [columns] of {tmp_path / COLUMNS_FILE} what yours are called"
    )


def test_a_named_column_that_is_not_there_is_named_with_what_it_is_for(tmp_path: Path) -> None:
    write(tmp_path, SHOP, f'[columns]\n{NAMES}price = "cost"\n')
    assert "no column 'cost' for price; found 'user_id', 'item_id'" in told(tmp_path)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('[columns]\ncustomer = "user_id"', "columns.customer: unknown column; did you mean 'customer_id'?"),
        ('[column]\nprice = "p"', "column: unknown field; did you mean 'columns'?"),
        ("[columns]\nprice = 3", "columns.price is 3, wanted a column's name"),
        ('columns = "user_id"', "columns is 'user_id', wanted a table"),
        ('time_unit = "h"', "time_unit is 'h', wanted one of s, ms, us"),
        ("[columns", "not TOML"),
    ],
)
def test_a_wrong_columns_file_is_refused(tmp_path: Path, toml: str, message: str) -> None:
    write(tmp_path, SHOP, toml)
    assert message in told(tmp_path)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        (
            {"timestamp": [1, 2, 3, 4, 5, 6]},
            "column 'timestamp' is int64, wanted a time; for seconds since 1970 say time",
        ),
        ({"timestamp": list("abcdef")}, "column 'timestamp' is string, wanted times such as 2026-01-31T09:30:00"),
        ({"user_id": [1.5, 1, 1, 2, 2, 3]}, "column 'user_id' is double with numbers that are not whole"),
        ({"user_id": [True] * 6}, "column 'user_id' is bool, wanted string or int64"),
        ({"price": list("123456")}, "column 'price' is string, wanted double"),
        ({"label": [1, 0, 3, 1, 1, 1]}, "column 'label' is int64 and holds 3, wanted 1 for taken and 0 for shown and"),
        ({"label": [1, None, 1, 1, 1, 1]}, "and holds None, wanted 1"),
    ],
)
def test_a_column_that_does_not_do_is_refused(tmp_path: Path, replaced: Mapping[str, Any], message: str) -> None:
    assert message in told(write(tmp_path, {**SHOP, **replaced}))


# ---------------------------------------------------------------- impressions
SHOWN: dict[str, Any] = {
    "user_id": [1, 1, 1, 1, 1, 2, 2, 2, 3, 3],
    "item_id": ["a", "x", "b", "y", "a", "a", "c", "only shown", "a", "b"],
    "timestamp": times(
        *("2026-01-01", "2026-01-01", "2026-02-01", "2026-02-01", "2026-02-01"),
        *("2026-02-02", "2026-03-02", "2026-03-02", "2026-03-03", "2026-03-04"),
    ),
    "order_id": [7, 7, 8, 8, 8, 9, 10, 10, 11, 12],
    "clicked": [True, False, True, False, False, True, True, False, True, True],
}


@pytest.fixture
def shown(tmp_path: Path) -> PurchaseLog:
    return purchase_log(write(tmp_path, SHOWN, f'[columns]\n{NAMES}label = "clicked"\n'), CUT)


def test_what_was_shown_and_not_taken_is_no_purchase(shown: PurchaseLog) -> None:
    assert shown.histories == {"1": ("a", "b"), "2": ("a",)} and shown.positives == {"2": ("c",), "3": ("a", "b")}
    assert shown.known_items == ("a", "b") and shown.items["only shown"].fields["popularity"] == 0


def test_given_negatives_judge_and_customers_without_any_are_left_out_with_their_number(shown: PurchaseLog) -> None:
    lists = evaluation_lists(shown)
    assert lists.judgements == {"u2": {"c": 3, "only shown": 0}}
    assert lists.notes[-1] == (
        "negatives given, shown and not taken: 1 a list at the median, 1 in 1 lists; "
        "1 customers without any are left out"
    )


def test_an_example_knows_what_was_shown_since_the_basket_before(shown: PurchaseLog) -> None:
    first, second = training_examples(shown, with_empty_history=True)[:2]
    assert (first.positives, first.shown) == (("a",), ("x",))
    assert (second.positives, second.shown) == (("b",), ("y",))  # "a" was shown again, but bought before


def test_sampled_negatives_are_told_with_their_number(tmp_path: Path) -> None:
    lists = evaluation_lists(purchase_log(write(tmp_path, SHOP), CUT))
    assert lists.notes[-1] == (
        "negatives sampled among the items that the customer never bought: 1.5 a list at the median, 3 in 2 lists"
    )


def test_labels_that_say_nothing_after_the_cut_leave_negatives_to_be_sampled(tmp_path: Path) -> None:
    lists = evaluation_lists(purchase_log(write(tmp_path, {**SHOP, "label": [1] * 6}), CUT))
    assert "never bought (label is 0 for no judged customer): 1.5 a list" in lists.notes[-1]


def test_a_log_in_which_nothing_was_taken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="label is 0 in all 6 lines, wanted some with 1"):
        purchase_log(write(tmp_path, {**SHOP, "label": [0] * 6}), CUT)


def test_a_named_folder_may_hold_purchases_alone(tmp_path: Path) -> None:
    assert find_data(write(tmp_path, SHOP)).folder == tmp_path.resolve()
