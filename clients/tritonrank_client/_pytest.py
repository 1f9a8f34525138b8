"""The package's pytest plugin: the fixture `rank_client`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import MockTransport, RankClient
from .testing import reverse_first_stage_order


@pytest.fixture
def rank_client() -> Iterator[RankClient]:
    """A client of a server that turns each first-stage order round. Give it other answers by
    `RankClient("mock", transport=MockTransport(handler))`."""
    with RankClient("mock", transport=MockTransport(reverse_first_stage_order)) as client:
        yield client
