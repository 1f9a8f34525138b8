"""``builders init``: what it tells of a folder, the recipe that it writes, and what it refuses in one line."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from builders.__main__ import main
from builders.core.recipe import RecipeError, load_recipe
from builders.init_recipe import init_recipe
from builders.rankers.backbone import CheckpointError
from builders.rankers.imported.folder import look_at
from tests.support.library_checkpoints import write_classifier, write_cross_encoder, write_modular_cross_encoder


def test_the_recipe_is_read_back_and_says_what_was_found(tmp_path: Path) -> None:
    said: list[str] = []
    folder = write_modular_cross_encoder(tmp_path)
    target = init_recipe(folder, "ours", tmp_path / "ours.toml", False, said.append)
    recipe = load_recipe(target)
    assert (recipe.ranker, recipe.format, recipe.checkpoint) == ("ours", "cross_encoder", folder)
    assert recipe.text.max_length == 64
    assert "found modules.json: Transformer => Pooling => Dense => LayerNorm => Dense" in said
    assert f"written: {target}. Now: python -m builders build {target}" in said
    assert all(line.startswith("# ") for line in target.read_text().splitlines()[:5])


def test_two_labels_are_ranked_by_their_difference(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "two", "bert", num_labels=2)
    recipe = load_recipe(init_recipe(folder, None, tmp_path / "two.toml", False, lambda _: None))
    assert recipe.postprocess.head_weights == (-1.0, 1.0)


def test_a_prompt_stands_in_the_recipe(tmp_path: Path) -> None:
    folder = write_cross_encoder(tmp_path, prompts={"query": 'Goods: "'}, default_prompt_name="query")
    recipe = load_recipe(init_recipe(folder, "ours", tmp_path / "ours.toml", False, lambda _: None))
    assert recipe.text.query_prompt == 'Goods: "'


def test_a_recipe_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ours.toml").write_text("mine")
    with pytest.raises(RecipeError, match="is there already"):
        init_recipe(write_classifier(tmp_path / "bert", "bert"), "ours", tmp_path / "ours.toml", False)
    assert (tmp_path / "ours.toml").read_text() == "mine"


# ---------------------------------------------------------------- refused
def shards(folder: Path, *, missing: bool) -> Path:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    second = sorted(folder.glob("model-*.safetensors"))[1]
    if missing:
        second.unlink()
    else:
        second.write_bytes(second.read_bytes()[:-100])
    return folder


def pickled_object(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    torch.save({"model": Path("/")}, folder / "pytorch_model.bin")
    return folder


def old_pickle(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"run": print}))
    return folder


def changed_config(folder: Path, name: str = "config.json", **changes: object) -> Path:
    content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    (folder / name).write_text(json.dumps({**content, **changes}))
    return folder


def adapter(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "config.json").unlink()
    return folder


def modules(folder: Path, *kinds: str) -> Path:
    listed = [{"idx": number, "name": str(number), "path": "", "type": kind} for number, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def torchscript(folder: Path) -> Path:
    torch.jit.script(torch.nn.Linear(2, 1)).save(str(folder / "model.pt"))
    return folder / "model.pt"


def broken(folder: Path, name: str) -> Path:
    (folder / name).write_text("{")
    return folder


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (lambda folder: folder / "absent", "no such folder or file"),
    "a missing shard": (lambda folder: shards(folder, missing=True), "named by the index beside it, but not there"),
    "half a shard": (lambda folder: shards(folder, missing=False), "not whole safetensors"),
    "a pickle with an object": (pickled_object, "not whole weights"),
    "a pickle with a function": (old_pickle, "not whole weights"),
    "no weights": (lambda folder: [(folder / "model.safetensors").unlink(), folder][1], "no weights"),
    "an adapter": (adapter, "merge_and_unload"),
    "broken JSON": (lambda folder: broken(folder, "config.json"), "not JSON"),
    "a masked language model": (
        lambda folder: changed_config(folder, architectures=["BertForMaskedLM"]), "which has no trained head",
    ),
    "code of its own": (lambda folder: modules(folder, "custom.Head"), "custom.Head is code of the folder's own"),
    "a sparse encoder": (
        lambda folder: modules(
            changed_config(folder, "config_sentence_transformers.json", model_type="SparseEncoder"),
            "sentence_transformers.base.modules.transformer.Transformer",
        ),
        "a sparse encoder",
    ),
    "TorchScript": (torchscript, "torch.export"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    spoil, message = REFUSED[name]
    folder = spoil(write_classifier(tmp_path, "bert"))
    with pytest.raises(CheckpointError, match=message):
        look_at(folder)


def test_the_command_says_it_in_one_line_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ours.toml"
    monkeypatch.setattr("sys.argv", ["builders", "init", str(tmp_path / "absent"), "--out", str(out)])
    with pytest.raises(SystemExit, match="1"):
        main()
    told = capsys.readouterr().err.strip()
    assert told == f"error: {tmp_path}/absent: no such folder or file; wanted the folder that the training wrote"
    assert not out.exists()
