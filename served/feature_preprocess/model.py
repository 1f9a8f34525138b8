"""Endpoint's inputs => the tensors of declared features, for every ranker that is a module with ``features``.

Published as ``<ranker>_preprocess``, with ``features.json`` (the declarations) and ``features.py`` (the code that made
the stored records too) beside it. What an item has comes from the store, or from ``item_fields`` in the request; what
a user has from the store by ``user_id``; the rest from the request.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from features import FeatureEncoder, FeatureError
from served import (
    Counter,
    InvalidArgument,
    StoreModel,
    check_ids,
    history,
    item_ids,
    json_object,
    known_mask,
    load_tokenizer,
    optional_text,
    query_text,
    version_folder,
)


class TritonPythonModel(StoreModel):
    """inputs: those of the contract beside this file, all BYTES; outputs: as it declares."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load declarations, tokenizer and store. Raises: RuntimeError when the store belongs to another model."""
        super().initialize(args)
        folder = version_folder(args)
        tokenizer = load_tokenizer(args) if (folder / "tokenizer.json").is_file() else None
        self.encoder = FeatureEncoder.from_json((folder / "features.json").read_text(encoding="utf-8"), tokenizer)
        users = self.parameters["user_features"]
        self.users = self.store.table(users, self.parameters["item_features_version"]) if users else None
        self.reads_history = bool(self.encoder.of("history"))
        self.truncated = Counter(
            "tritonrank_truncated_histories_total",
            "Histories of which only the latest events are read",
            args["model_name"],
        )

    def answer(self, request: Any) -> dict[str, np.ndarray]:
        """Every feature's tensor, ``known`` BOOL [candidates], ``fallback`` FP32 [candidates]."""
        try:
            return self._tensors(request)
        except FeatureError as error:
            raise InvalidArgument(str(error)) from error

    def _tensors(self, request: Any) -> dict[str, np.ndarray]:
        ids = item_ids(request, self.parameters)
        records = self._with_request_fields(request, ids, self.items.read(ids))
        events = self._history(request)
        known = known_mask(records)
        self.unknown.add(int((~known).sum()))
        of_request = self.encoder.request_tensors(
            query=query_text(request, self.parameters) if self._is_asked(request, "query") else "",
            history=events,
            user=self._user(request),
            context=self._context(request),
        )
        return {
            **of_request,
            **self.encoder.candidate_tensors(records),
            "known": known,
            "fallback": self.encoder.fallback_scores(records, events),
        }

    def _history(self, request: Any) -> list[str]:
        """The latest events, as many as the network reads: only they are decoded and looked up."""
        events = history(request, self.parameters)
        read = self.encoder.events_read(events)
        if self.reads_history:
            self.truncated.add(int(len(read) < len(events)))
        return read

    @staticmethod
    def _is_asked(request: Any, name: str) -> bool:
        return pb_utils.get_input_tensor_by_name(request, name) is not None

    def _with_request_fields(self, request: Any, ids: list[bytes], records: list[bytes | None]) -> list[bytes | None]:
        tensor = pb_utils.get_input_tensor_by_name(request, "item_fields")
        if tensor is None:
            return records
        given = tensor.as_numpy().reshape(-1).tolist()
        if len(given) != len(ids):
            raise InvalidArgument(f"item_fields: {len(given)} objects, wanted one for each of {len(ids)} items")
        return [
            self._record(raw, ids[row], f"item_fields[{row}]") if raw else record
            for row, (raw, record) in enumerate(zip(given, records, strict=True))
        ]

    def _record(self, raw: bytes, item_id: bytes, what: str) -> bytes:
        if len(raw) > self.parameters["max_context_bytes"]:
            raise InvalidArgument(f"{what}: {len(raw)} bytes, wanted at most {self.parameters['max_context_bytes']}")
        check_ids([raw], what, self.parameters["max_context_bytes"])
        try:
            return self.encoder.item_record({"item_id": item_id.decode(), **json_object(raw.decode(), what)})
        except FeatureError as error:
            raise InvalidArgument(f"{what}: {error}") from error

    def _user(self, request: Any) -> bytes | None:
        user_id = optional_text(request, "user_id", self.parameters["max_item_id_bytes"])
        return self.users.read([user_id.encode()])[0] if self.users and user_id else None

    def _context(self, request: Any) -> dict[str, Any]:
        text = optional_text(request, "context", self.parameters["max_context_bytes"])
        return json_object(text, "context") if text else {}
