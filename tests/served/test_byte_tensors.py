"""BYTES tensors are decoded and encoded as Triton's own client does it."""

from __future__ import annotations

import runpy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from builders.core.workspace import SHARED_CODE

[_FILE] = [path for path in SHARED_CODE if path.stem == "byte_tensors"]
_CODE = runpy.run_path(str(_FILE))  # not imported: `served` is a package here, and a module where Triton runs it
decoded, encoded = _CODE["decoded"], _CODE["encoded"]

OF_ONE_LENGTH = some.integers(0, 9).flatmap(lambda length: some.lists(some.binary(min_size=length, max_size=length)))
STRINGS = some.one_of(OF_ONE_LENGTH, some.lists(some.binary(max_size=9)))


@given(STRINGS)
def test_strings_are_those_of_tritons_client(strings: list[bytes]) -> None:
    array = np.array(strings, dtype=object)
    own = serialize_byte_tensor(array)
    wire = own.item() if own.size else b""
    assert b"".join([encoded(array) or b""]) == wire
    found = decoded(np.frombuffer(wire, dtype=np.uint8))
    assert found.dtype == object and found.shape == (len(strings),)
    assert found.tolist() == deserialize_bytes_tensor(wire).tolist() == strings


def test_lengths_that_only_look_alike_are_read_one_by_one() -> None:
    strings = [b"abcd", b"ef", b"ghijkl"]  # three times eight bytes with their lengths
    wire = encoded(np.array(strings, dtype=object))
    assert decoded(np.frombuffer(bytes(wire), dtype=np.uint8)).tolist() == strings


def test_texts_are_encoded_as_utf8_and_in_c_order() -> None:
    square = np.array([["é", b"b"], ["c", "d"]], dtype=object)
    assert decoded(np.frombuffer(bytes(encoded(square.T)), dtype=np.uint8)).tolist() == [
        "é".encode(), b"c", b"b", b"d"
    ]  # fmt: skip


@pytest.mark.parametrize("missing", [1, 5])
def test_a_string_that_is_cut_off_is_refused(missing: int) -> None:
    wire = bytes(encoded(np.array([b"abc", b"de"], dtype=object)))
    with pytest.raises(ValueError, match="wanted each as long as it says"):
        decoded(np.frombuffer(wire[:-missing], dtype=np.uint8))
