"""The API that LitServe's workers run. They are spawned, so that it must lie at the top of a module: this one needs
litserve, and only :func:`perf.peers.litserve_onnx.main` imports it. Annotations are no strings: LitServe reads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import litserve


class Ranker(litserve.LitAPI):
    """A request's body => ``{"scores"}``."""

    def __init__(self, folder: Path, opens: Callable[[Path], Any]) -> None:
        super().__init__()
        self.folder, self.opens = folder, opens

    def setup(self, device: str) -> None:
        """In a worker."""
        self.scorer = self.opens(self.folder)

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """As it is."""
        return request

    def predict(self, body: dict[str, Any]) -> list[float]:
        """Scores in the candidates' order."""
        found: list[float] = self.scorer.answer(body)
        return found

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        """JSON."""
        return {"scores": output}
