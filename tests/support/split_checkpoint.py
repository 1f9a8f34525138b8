"""A cross-encoder checkpoint of a tiny BERT, split between its two layers: adapter and head of random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from builders.rankers.cross_encoder import CrossEncoder, save_head
from builders.rankers.split_cross_encoder import SPLIT_FILE, Split
from tests.support.tiny_bert import write_tiny_bert


def write_split_checkpoint(folder: Path, after: int = 1) -> tuple[Path, Path]:
    """The checkpoint's folder and its backbone's."""
    backbone, checkpoint = write_tiny_bert(folder / "backbone"), folder / "checkpoint"
    network = CrossEncoder.untrained(backbone)
    torch.manual_seed(1)
    adapted = get_peft_model(network.backbone, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(str(checkpoint))
    for parameter in network.head.parameters():
        torch.nn.init.normal_(parameter)
    save_head(network.head, checkpoint)
    (checkpoint / SPLIT_FILE).write_text(Split(after=after).model_dump_json(), encoding="utf-8")
    return checkpoint, backbone
