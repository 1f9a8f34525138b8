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
from builders.data.purchases import PURCHASES, PURCHASES_CSV, load_purchases, read_purchases
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


def test_guests_count_for_their_items_alone_and_are_told_with_their_number(tmp_path: Path) -> None:
    log = purchase_log(write(tmp_path, {**SHOP, "user_id": [1, None, 1, 2, 2, None], "price": [1.0, 7.0] * 3}), CUT)
    assert log.notes[-1] == "2 of 6 lines without customer_id: guests, who count for their items alone"
    assert log.histories == {"1": ("a", "c"), "2": ("a",)} and log.positives == {"2": ("c",)}
    bought_by_a_guest = log.items["b"]
    assert (bought_by_a_guest.price, bought_by_a_guest.fields["units_sold"]) == (7.0, 1)
    assert bought_by_a_guest.fields["popularity"] == 0 and None not in log.users


@pytest.mark.parametrize(
    "ids",
    [
        ["007", "1e5", "12345678901234567890", "1.0", "-", "NA"],
        pa.array([7, 100000, 2**63 - 1, 1, 0, -1], pa.int64()),
        [None, 7.0, float("nan"), 100000.0, 1.0, 0.0],  # as pandas keeps whole numbers beside missing ones
    ],
)
def test_an_id_stays_what_the_file_holds(tmp_path: Path, ids: Any) -> None:
    found = read_purchases(write(tmp_path, {**SHOP, "user_id": ids})).lines["customer_id"].to_pylist()
    given = ids if isinstance(ids, list) else ids.to_pylist()
    as_text = [
        None if one is None or one != one else str(int(one)) if isinstance(one, float) else str(one) for one in given
    ]
    assert found == as_text


def test_ids_that_look_like_floats_written_as_text_are_told_with_their_number(tmp_path: Path) -> None:
    found = read_purchases(write(tmp_path, {**SHOP, "user_id": ["1.0", "2.0", "1.0", "x", "2.0", None]}))
    assert "4 of 6 values of user_id are texts such as '12.0', kept as they are" in "; ".join(found.notes)


def test_a_csv_file_says_the_same_as_parquet(tmp_path: Path) -> None:
    rows = [
        f"{user},{item},{time:%Y-%m-%dT%H:%M:%S},{order}"
        for user, item, time, order in zip(*SHOP.values(), strict=True)
    ]
    lines = ["\ufeffuser_id,item_id,timestamp,order_id", *rows, "", ""]  # a byte order mark, blank lines at the end
    (tmp_path / PURCHASES_CSV).write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / COLUMNS_FILE).write_text(f"[columns]\n{NAMES}", encoding="utf-8")
    log = purchase_log(tmp_path, CUT)
    assert log.histories == {"1": ("a", "b", "c"), "2": ("a",)} and log.positives == {"2": ("c",), "3": ("b",)}


def test_a_csv_file_keeps_leading_zeros_and_reads_labels_and_numbers(tmp_path: Path) -> None:
    (tmp_path / PURCHASES_CSV).write_text(
        "customer_id,stock_code,invoice_date,quantity,price,label\n007,1e5,1970-01-01,2,2.50,1\n007,0012,1970-01-01,,,false\n"
    )
    found = read_purchases(tmp_path).lines.to_pylist()
    assert [(one["customer_id"], one["stock_code"]) for one in found] == [("007", "1e5"), ("007", "0012")]
    assert [(one["quantity"], one["price"], one["label"]) for one in found] == [(2, 2.5, True), (1, None, False)]


def test_a_broken_csv_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / PURCHASES_CSV).write_text("customer_id,stock_code,invoice_date\n1,a,2026-01-01\n1,b\n")
    assert "not a CSV file (CSV parse error: Expected 3 columns, got 2" in told(tmp_path)


def test_a_second_file_that_is_not_read_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path, SHOP)
    (folder / PURCHASES_CSV).write_text("x\n1\n")
    assert read_purchases(folder).notes[0] == f"{folder / PURCHASES_CSV}: not read, {folder / PURCHASES} is"


@pytest.mark.parametrize(("name", "lack"), [("price", "no item has a price"), ("label", "row 1, column 'label': None")])
def test_a_column_that_is_all_null_counts_as_absent_but_for_the_label(tmp_path: Path, name: str, lack: str) -> None:
    folder = write(tmp_path, {**SHOP, name: pa.nulls(6)})
    if name == "label":
        assert lack in told(folder)
    else:
        assert f"{PURCHASES}: {name} is empty in all rows: {lack}" in read_purchases(folder).notes


@pytest.mark.parametrize("nothing", [pa.nulls(6), pa.nulls(6, pa.float64()), [float("nan")] * 6, ["", " "] * 3])
def test_a_needed_column_without_a_value_is_refused(tmp_path: Path, nothing: Any) -> None:
    folder = write(tmp_path, {**SHOP, "user_id": nothing})
    assert "column 'user_id' is empty in all 6 rows, wanted a value for customer_id" in told(folder)


def test_what_some_lines_lack_is_told_with_its_number_and_what_follows(tmp_path: Path) -> None:
    lacking = {"description": ["A", None, " ", "A", None, None], "quantity": [1, None, 1, 1, 1, 1]}
    log = purchase_log(write(tmp_path, {**SHOP, **lacking}), CUT)
    assert "4 of 6 lines without description: their item is named by its other lines, or by its id" in log.notes
    assert "1 of 6 lines without quantity: one unit each" in log.notes
    assert {item_id: product.title for item_id, product in log.items.items()} == {"a": "A", "b": "b", "c": "c"}
    assert set(evaluation_lists(log).judgements["u3"]) <= set(log.items)


def test_faults_of_cells_are_one_error_with_the_first_rows_and_their_number(tmp_path: Path) -> None:
    price = ["1", "£2.55", "3,5", "4", "-", "free"]
    folder = write(tmp_path, {**SHOP, "price": price, "quantity": [1.0, 2.5, 0.5, 1e300, 1.0, float("inf")]})
    wanted = "wanted a number such as 2.55, without currency"
    message = told(folder)
    assert message.startswith(
        f"{folder / PURCHASES}: row 2, column 'price': '£2.55', {wanted}; row 2, column 'quantity'"
    )
    assert message.count("row ") == 5 and message.endswith("and 3 more cells")


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
        ({"timestamp": list("abcdef")}, "row 1, column 'timestamp': 'a', wanted a time such as 2026-01-31T09:30:00"),
        (
            {"timestamp": ["2026-01-01T09:00:00Z"] * 5 + ["2026-01-01T09:00:00"]},
            "row 6, column 'timestamp': '2026-01-01T09:00:00', wanted a time zone in all 6 times or in none, 5 have",
        ),
        ({"user_id": [1.5, 1, 1, 2, 2, 3]}, "row 1, column 'user_id': 1.5, wanted a whole number below 2**53, or text"),
        (
            {"user_id": [2.0**60, 1, 1, 2, 2, 3]},
            "row 1, column 'user_id': 1.152921504606847e+18, wanted a whole number",
        ),
        ({"user_id": ["1", "nan", "1", "2", "2", "3"]}, "row 2, column 'user_id': 'nan', wanted an id, or nothing"),
        ({"price": [1, 2, float("inf"), 4, 5, 6]}, "row 3, column 'price': inf, wanted a finite price"),
        ({"quantity": [1, 1, 1, 1, 1, 10**12]}, "row 6, column 'quantity': 1000000000000, wanted a whole number of"),
        ({"user_id": [True] * 6}, "column 'user_id' is bool, wanted string or int64"),
        ({"price": [True] * 6}, "column 'price' is bool, wanted double"),
        ({"label": [1, 0, 3, 1, 1, 1]}, "row 3, column 'label': 3, wanted 1 for taken and 0 for shown and not taken"),
        ({"label": [1, None, 1, 1, 1, 1]}, "row 2, column 'label': None, wanted 1"),
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


def test_numbers_of_a_time_that_no_calendar_holds_are_refused_by_row(tmp_path: Path) -> None:
    folder = write(tmp_path, {**SHOP, "timestamp": [1.0, 2.0, 3.0, 4.0, 1e15, float("inf")]},
                   f'time_unit = "s"\n[columns]\n{NAMES}')  # fmt: skip
    assert "row 5, column 'timestamp': 1000000000000000.0, wanted a time in s since 1970" in told(folder)
