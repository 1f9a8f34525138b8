"""User ids that leave as keyed hashes."""

from __future__ import annotations

import hashlib
import hmac

from ._errors import InvalidRequest

MIN_KEY_BYTES = 16
"""Of a shorter key all could be tried."""


def check_key(key: bytes) -> None:
    """Raise InvalidRequest unless `key` is bytes enough."""
    if not isinstance(key, bytes):
        raise InvalidRequest(f"id_key: found {type(key).__name__}, wanted bytes", "id_key")
    if len(key) < MIN_KEY_BYTES:
        raise InvalidRequest(f"id_key: found {len(key)} bytes, wanted at least {MIN_KEY_BYTES} secret ones", "id_key")


def hashed_id(user_id: str, key: bytes) -> str:
    """HMAC-SHA256 of the id, 64 hexadecimal digits: the same for the same key, not to be traced back without it.

    What `RankClient(..., id_key=key)` sends in place of `user_id`. Use it on the user ids of whatever the ranker is
    trained on and the item store is filled from, so that both know the users by their hashes.

    Raises: InvalidRequest for an empty id, or a key that is not at least 16 bytes.
    """
    check_key(key)
    if not isinstance(user_id, str) or not user_id:
        raise InvalidRequest("user_id: found no text, wanted text that is not empty", "user_id")
    return hmac.new(key, user_id.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
