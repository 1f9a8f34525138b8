"""The fields of a shop's purchase log that the kit's networks of many fields read: item, user, time and history.

Knows nothing of any network.
"""

from __future__ import annotations

from builders.data.purchase_fields import ITEM_NUMBERS, ITEM_VALUES, USER_NUMBERS, USER_VALUES
from builders.data.purchase_log import HISTORY_LIMIT, PurchaseLog
from builders.features import encoder as declare
from builders.features.encoder import Feature
from builders.features.vocabularies import (
    context_vocabularies,
    item_normalization,
    item_vocabularies,
    purchase_vectors,
    user_normalization,
    user_vocabularies,
)
from builders.rankers.layers.field_embeddings import FieldEmbeddings

HISTORY, ITEM = "history", "item"
OF_THE_CUT = ("days_on_sale", "days_since_sale", "first_month", "peak_month")
"""Item fields that tell, of an older basket, what happened after it: left out."""
ITEM_FIELDS = ("item_id", *(field for field in ITEM_VALUES if field not in OF_THE_CUT))
ITEM_FIGURES = tuple(field for field in ITEM_NUMBERS if field not in OF_THE_CUT)
CONTEXT_FIELDS = ("weekday", "hour", "part_of_day")
"""Not the month: the one that a ranker is asked in comes after those that it has learned from."""
START_RMS = 0.1


def shop_fields(log: PurchaseLog) -> tuple[Feature, ...]:
    """Declared over what lies before the log's cut."""
    return (
        declare.history(HISTORY, HISTORY_LIMIT, log.known_items),
        declare.sparse("user", USER_VALUES, "user", vocabularies=user_vocabularies(log, USER_VALUES, at_least=1)),
        declare.dense("user_numbers", USER_NUMBERS, "user", **user_normalization(log)),
        declare.sparse("moment", CONTEXT_FIELDS, "context", vocabularies=context_vocabularies(log, CONTEXT_FIELDS)),
        declare.sparse(ITEM, ITEM_FIELDS, vocabularies=(log.known_items, *item_vocabularies(log, ITEM_FIELDS[1:]))),
        declare.dense("item_numbers", ITEM_FIGURES, **item_normalization(log, ITEM_FIGURES)),
    )


def start_from_purchases(embeddings: FieldEmbeddings, log: PurchaseLog) -> None:
    """Let the embeddings of items, as candidates and in the history, start from who bought what before the cut."""
    vectors = START_RMS * purchase_vectors(log, embeddings.width)
    embeddings.start_from(HISTORY, vectors)
    embeddings.start_from(ITEM, vectors)
