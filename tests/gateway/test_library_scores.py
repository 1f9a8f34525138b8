"""Scores over HTTP are those that the checkpoint's own library gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import CrossEncoder

from server import TritonServer
from tests.gateway.test_rerank import INTERFACES
from tests.support.gateways import gateway
from tests.support.library_checkpoints import shop, write_cross_encoder
from tests.support.raw_endpoints import ANY_PORTS
from tests.support.served_checkpoints import published

pytestmark = pytest.mark.server
ITEM = "{title}. {brand}. {text}"


@pytest.mark.parametrize(
    ("activation", "lowest"), [(torch.nn.Sigmoid(), 0.0), (torch.nn.Identity(), None)], ids=["sigmoid", "identity"]
)
def test_every_interface_gives_what_cross_encoder_predict_gives(
    tmp_path: Path, activation: torch.nn.Module, lowest: float | None
) -> None:
    judged = shop()
    workspace = published(
        {"saved": lambda place: write_cross_encoder(place, activation_fn=activation)}, judged, ITEM, tmp_path
    )
    texts = [product.title for product in list(judged.products.values())[:12]]
    library = CrossEncoder(str(tmp_path / "checkpoints" / "saved" / "saved"), device="cpu")
    wanted = library.predict([("red running shoe", text) for text in texts])
    name = "rank_saved_fp32_onnx"
    with (
        TritonServer(workspace.repository, [name], store=workspace.item_store, **ANY_PORTS) as triton,
        gateway(triton.grpc_url, models={"saved": name}) as client,
    ):
        for interface in INTERFACES:
            pairs = interface.pairs(interface.post(client, "red running shoe", texts).json())
            assert [score for _, score in sorted(pairs)] == pytest.approx(wanted.tolist(), abs=1e-4)
    assert lowest is None or wanted.min() >= lowest
    assert wanted.max() - wanted.min() > 0.01
