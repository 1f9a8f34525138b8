"""ONNX files and torch.export programs: the file's own scores, and one line where it cannot be served as it is."""

from __future__ import annotations

import io
import typing
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from builders.core.contract import RECOMMEND, ContractError
from builders.core.recipe import FeatureTable, RecipeError, load_recipe
from builders.data.beir import Product, Request
from builders.export.onnx import check_onnx, onnx_from_ranker
from builders.features.encoder import Feature, Kind, Source
from builders.init_recipe import init_recipe
from builders.rankers.backbone import CheckpointError
from builders.rankers.base import Ranker
from builders.rankers.load import load_ranker
from tests.support import network_files as files
from tests.support.network_files import NUMBERS, SPARSE, TAKEN
from tests.support.tiny_bert import write_tiny_bert

BY_HAND = NUMBERS + 'input = "Float_Input"\n'
HISTORY = ("i1", "i7", "i39")
HEADS = "[postprocess]\nhead_weights = [0.0, 1.0]\n"


def ranker_of(folder: Path, file: Path, *features: str, top: str = "", more: str = "") -> Ranker:
    return load_ranker(load_recipe(files.write_recipe(folder, "own", file, features, top=top, more=more)))


def by_onnxruntime(path: Path, output: str, **inputs: np.ndarray) -> np.ndarray:
    [scores] = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run([output], inputs)
    return np.asarray(scores, dtype=np.float32)


def exported(ranker: Ranker, folder: Path, some: list[Product]) -> tuple[Path, float]:
    """What would be published, and its largest difference from the user's file."""
    [graph] = ranker.graphs
    sample = ranker.sample(Request(history=HISTORY), some)[graph.name]
    onnx_from_ranker(graph, sample, folder / "served.onnx")
    samples = [ranker.sample(Request(history=HISTORY), some[:rows])[graph.name] for rows in (1, 2, len(some))]
    reports = check_onnx(graph, folder / "served.onnx", samples)
    return folder / "served.onnx", max(max(report.max_abs_difference.values()) for report in reports)


# ---------------------------------------------------------------- scores
@pytest.mark.parametrize("rows", [1, 40])
def test_a_file_of_torchs_exporter_scores_as_onnxruntime_does(tmp_path: Path, rows: int) -> None:
    path = files.write_by_dynamo(tmp_path / "m.onnx")
    ranker = ranker_of(tmp_path, path, TAKEN, SPARSE, NUMBERS)  # in any order
    some = files.products(rows)
    wanted = by_onnxruntime(
        path,
        "score",
        category=files.category_ids(some),
        numbers=files.numbers(some),
        taken=files.taken(HISTORY, rows),
    )
    assert ranker.score(Request(history=HISTORY), some) == pytest.approx(wanted[:, 0], abs=1e-6)
    assert ranker.endpoint == RECOMMEND
    if rows > 1:
        assert wanted.std() > 1e-3
        served, difference = exported(ranker, tmp_path, some)
        assert difference < 1e-6
        assert [one.name for one in onnx.load(served).graph.input] == ["category", "numbers", "taken"]


def test_flat_int64_ids_of_the_older_exporter_are_cast_and_reshaped_in_the_graph(tmp_path: Path) -> None:
    path = files.write_by_older_exporter(tmp_path / "m.onnx")
    ranker = ranker_of(tmp_path, path, SPARSE, NUMBERS)
    some = files.products()
    wanted = by_onnxruntime(path, "logits", category=files.category_ids(some)[:, 0], numbers=files.numbers(some))
    assert wanted.shape == (40,)
    assert ranker.score(Request("red"), some) == pytest.approx(wanted, abs=1e-6)
    served, difference = exported(ranker, tmp_path, some)
    assert difference < 1e-6
    assert [one.type.tensor_type.elem_type for one in onnx.load(served).graph.input] == [
        onnx.TensorProto.INT32,
        onnx.TensorProto.FLOAT,
    ]


def test_a_hand_made_graph_of_doubles_with_two_outputs_and_a_branch(tmp_path: Path) -> None:
    path = files.write_by_hand(tmp_path / "m.onnx")
    ranker = ranker_of(tmp_path, path, BY_HAND, top='score = "probabilities"', more=HEADS)
    some = files.products()
    wanted = by_onnxruntime(path, "probabilities", Float_Input=files.numbers(some).astype(np.float64))
    assert ranker.score(Request("red"), some) == pytest.approx(wanted, abs=1e-6)
    _, difference = exported(ranker, tmp_path, some)
    assert difference < 1e-6


def test_the_users_own_nodes_stay_what_they_are(tmp_path: Path) -> None:
    path = files.write_by_dynamo(tmp_path / "m.onnx")
    served, _ = exported(ranker_of(tmp_path, path, SPARSE, NUMBERS, TAKEN), tmp_path, files.products())
    own = [node.op_type for node in onnx.load(path).graph.node]
    found = [node.op_type for node in onnx.load(served).graph.node]
    start = next(place for place in range(len(found)) if found[place : place + len(own)] == own)
    assert set(found[:start]) <= {"Cast", "Shape", "Gather", "Concat", "Expand", "Reshape", "Identity"}
    assert found[start + len(own) :] == ["Identity", "Cast"]


def test_weights_that_lie_beside_the_file_are_served_and_count_as_the_checkpoint(tmp_path: Path) -> None:
    model = onnx.load(files.write_by_dynamo(tmp_path / "whole.onnx"))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.weights", size_threshold=64)
    ranker = ranker_of(tmp_path, path, SPARSE, NUMBERS, TAKEN)
    assert tmp_path / "m.weights" in ranker.checkpoint_files
    assert exported(ranker, tmp_path, files.products())[1] < 1e-6
    (tmp_path / "m.weights").unlink()
    with pytest.raises(CheckpointError, match=r"m\.onnx: cannot be read as ONNX .*external data beside it"):
        ranker_of(tmp_path, path, SPARSE, NUMBERS, TAKEN)


@pytest.mark.parametrize("rows", [1, 40])
def test_a_program_scores_as_torch_does(tmp_path: Path, rows: int) -> None:
    ranker = ranker_of(tmp_path, files.write_program(tmp_path / "m.pt2"), NUMBERS, SPARSE, TAKEN)
    some = files.products(rows)
    arrays = (files.category_ids(some), files.numbers(some), files.taken(HISTORY, rows))
    with torch.inference_mode():
        wanted = files.TwoTables().eval()(*map(torch.from_numpy, arrays)).numpy()[:, 0]
    assert ranker.score(Request(history=HISTORY), some) == pytest.approx(wanted, abs=1e-6)
    if rows > 1:
        assert exported(ranker, tmp_path, some)[1] < 1e-5


# ---------------------------------------------------------------- refusals
def _write(name: str, content: bytes) -> files.Write:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _torchscript(folder: Path) -> Path:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 1), torch.rand(1, 2)), folder / "m.pt2")
    return folder / "m.pt2"


def _pickle(folder: Path) -> Path:
    torch.save(nn.Linear(2, 1), folder / "m.pt2")
    return folder / "m.pt2"


def _torchscript_as_onnx(folder: Path) -> Path:
    return _torchscript(folder).rename(folder / "m.onnx")


def _fixed_rows(folder: Path) -> Path:
    model = onnx.load(files.write_by_dynamo(folder / "m.onnx"))
    for one in model.graph.input:
        one.type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


class Trains(files.TwoTables):
    """Exported while it drops."""

    def forward(self, category: torch.Tensor, numbers: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(category, numbers, taken), 0.5, training=True)


ALL = (SPARSE, NUMBERS, TAKEN)
REFUSED: dict[str, tuple[Callable[[Path], Path], tuple[str, ...], str]] = {
    "TorchScript in a .pt2": (
        _torchscript,
        ALL,
        r"m\.pt2: TorchScript inside, wanted a program of torch\.export\.save",
    ),
    "a pickle in a .pt2": (_pickle, ALL, r"m\.pt2: a pickle of torch\.save inside, wanted a program"),
    "no archive as a .pt2": (_write("m.pt2", b"no zip"), ALL, r"m\.pt2: no zip archive inside, wanted a program"),
    "TorchScript in an .onnx": (_torchscript_as_onnx, ALL, r"m\.onnx: TorchScript inside, wanted an ONNX model"),
    "text in an .onnx": (_write("m.onnx", b"no protobuf"), ALL, r"m\.onnx: cannot be read as ONNX \(DecodeError"),
    "an empty .onnx": (_write("m.onnx", b""), ALL, r"m\.onnx: not an ONNX model, it has no nodes"),
    "fixed rows": (_fixed_rows, ALL, r"input 'category' has a fixed number of rows \(3\), wanted a free one: export"),
    "an input without a feature": (
        lambda folder: files.write_by_dynamo(folder / "m.onnx"),
        (SPARSE, NUMBERS),
        r"input 'taken' has no \[\[features\]\]\. The file's inputs: category: INT64 \[\w+, 1\]; .*"
        r"The recipe's features: category: sparse INT32 \[candidates, 1\]; numbers: dense FP32 \[candidates, 2\]",
    ),
    "a feature that is no input": (
        lambda folder: files.write_by_older_exporter(folder / "m.onnx"),
        ALL,
        r"feature 'taken' is no input of the file",
    ),
    "another width": (
        lambda folder: files.write_by_dynamo(folder / "m.onnx"),
        (SPARSE, NUMBERS.replace('"rating"]', '"rating", "rating_count"]'), TAKEN),
        r"input 'numbers' has width 2, and the feature makes \[candidates, 3\]",
    ),
    "ids for numbers": (
        lambda folder: files.write_by_dynamo(folder / "m.onnx"),
        (SPARSE, NUMBERS.replace('"dense"', '"sparse"'), TAKEN),
        r"input 'numbers' is FP32, and kind 'sparse' makes ids; wanted kind dense or vector",
    ),
    "several outputs and no score": (
        lambda folder: files.write_by_hand(folder / "m.onnx"),
        (BY_HAND,),
        r"2 outputs; set score in the recipe to the output that is the score, of: label: INT64 .*probabilities: FP64",
    ),
    "rows from 4 on": (
        lambda folder: files.write_program(folder / "m.pt2", lowest=4),
        ALL,
        r"dimension \w+ is of 4 to \w+ rows, wanted 1 to 1,024",
    ),
    "a program that trains": (
        lambda folder: files.write_program(folder / "m.pt2", Trains()),
        ALL,
        r"exported while it trains \(dropout\)",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_served_as_it_is_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    write, features, message = REFUSED[fault]
    with pytest.raises(CheckpointError, match=message) as error:
        ranker_of(tmp_path, write(tmp_path), *features)
    assert "\n" not in str(error.value)


class Runs:
    """What its pickle says is run when it is loaded: a file is made."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


def test_no_pickle_of_a_program_is_run(tmp_path: Path) -> None:
    whole, harmful = files.write_program(tmp_path / "whole.pt2"), tmp_path / "m.pt2"
    pickled = io.BytesIO()
    torch.save(Runs(tmp_path / "mark"), pickled)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(harmful, "w") as target:
        for name in source.namelist():
            is_sample = "/sample_inputs/" in name
            target.writestr(name, pickled.getvalue() if is_sample else source.read(name))
    with pytest.raises(
        CheckpointError, match=r"m\.pt2: \w+/data/sample_inputs/model\.pt is no pickle of tensors alone"
    ):
        ranker_of(tmp_path, harmful, *ALL)
    assert not (tmp_path / "mark").exists()
    torch.load(io.BytesIO(pickled.getvalue()), weights_only=False)
    assert (tmp_path / "mark").exists()  # it would have run


@pytest.mark.parametrize("suffix", [".pt", ".pkl", ""])
def test_other_files_are_refused_with_what_to_do(tmp_path: Path, suffix: str) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 1), torch.rand(1, 2)), tmp_path / f"m{suffix}")
    with pytest.raises(CheckpointError, match=r"TorchScript, wanted a folder, a \.onnx or a \.pt2 file.*save torch"):
        init_recipe(tmp_path / f"m{suffix}", "own", tmp_path / "own.toml", False, lambda _: None)


def test_a_label_is_no_score(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"output label: INT64 \[\w+\] is no score, .*'zipmap': False"):
        ranker_of(tmp_path, files.write_by_hand(tmp_path / "m.onnx"), BY_HAND, top='score = "label"')


def test_a_table_that_is_too_small_for_the_vocabulary_is_found_when_it_is_loaded(tmp_path: Path) -> None:
    many = SPARSE.replace("vocabularies = [[", 'vocabularies = [["one more", ')
    with pytest.raises(ContractError, match=r"cannot take 'category' at its highest ids \[6\]"):
        ranker_of(tmp_path, files.write_by_dynamo(tmp_path / "m.onnx"), many, NUMBERS, TAKEN)


def test_steps_that_need_a_torch_network_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    more = '[[variants]]\nname = "int8_onnx"\nsteps = [{ step = "int8_network" }]\n'
    with pytest.raises(
        RecipeError, match=r"an ONNX file has not \(int8_onnx: int8_network\); wanted steps on the graph"
    ):
        ranker_of(tmp_path, files.write_by_dynamo(tmp_path / "m.onnx"), *ALL, more=more)


def test_a_text_feature_reads_the_tokenizer_of_the_backbone(tmp_path: Path) -> None:
    titles = '[[features]]\nname = "taken"\nkind = "tokens"\nfields = ["title"]\nsize = 8\n'
    top = f'backbone = "{write_tiny_bert(tmp_path / "backbone")}"'
    network = onnx.load(files.write_by_dynamo(tmp_path / "m.onnx"))
    network.graph.input[2].type.tensor_type.shape.dim[1].dim_param = "length"
    onnx.save(network, tmp_path / "m.onnx")
    ranker = ranker_of(tmp_path, tmp_path / "m.onnx", SPARSE, NUMBERS, titles, top=top)
    assert "tokenizer.json" in ranker.preprocess_files
    with pytest.raises(RecipeError, match="backbone, but no feature of kind 'tokens'"):
        ranker_of(tmp_path, tmp_path / "m.onnx", SPARSE, NUMBERS, TAKEN, top=top)


def test_gradients_of_an_onnx_file_are_refused(tmp_path: Path) -> None:
    ranker = ranker_of(tmp_path, files.write_by_older_exporter(tmp_path / "m.onnx"), SPARSE, NUMBERS)
    numbers = torch.zeros(3, 2, requires_grad=True)
    with pytest.raises(CheckpointError, match="an ONNX file has no gradients"):
        ranker.network(torch.zeros(3, 1, dtype=torch.int32), numbers)


def test_features_belong_to_a_file(tmp_path: Path) -> None:
    path = files.write_recipe(tmp_path, "own", Path("m.onnx"), ALL)
    own = path.read_text(encoding="utf-8").replace('format = "onnx"\ncheckpoint = "m.onnx"', 'module = "a.py:A"')
    path.write_text(own, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"\[\[features\]\] or score without a format of onnx or torch_export"):
        load_recipe(path)


def test_a_recipes_table_has_what_a_feature_has() -> None:
    fields = FeatureTable.model_fields
    assert {*Feature.__dataclass_fields__} == {*fields} - {"input", "vocabulary_files"}
    assert typing.get_args(fields["kind"].annotation) == typing.get_args(Kind)
    assert typing.get_args(fields["source"].annotation) == typing.get_args(Source)


def test_a_vocabulary_may_lie_in_a_file(tmp_path: Path) -> None:
    path = files.write_by_older_exporter(tmp_path / "m.onnx")
    (tmp_path / "categories.txt").write_text("\n".join(files.CATEGORIES) + "\n", encoding="utf-8")
    beside = '[[features]]\nname = "category"\nkind = "sparse"\nvocabulary_files = ["categories.txt"]\n'
    some = files.products()
    found = ranker_of(tmp_path, path, beside, NUMBERS).score(Request("red"), some)
    assert found.tolist() == ranker_of(tmp_path, path, SPARSE, NUMBERS).score(Request("red"), some).tolist()
    (tmp_path / "categories.txt").unlink()
    with pytest.raises(CheckpointError, match=r"categories\.txt: cannot be read"):
        ranker_of(tmp_path, path, beside, NUMBERS)


# ---------------------------------------------------------------- init
INITIALLY: dict[str, tuple[files.Write, int]] = {
    "dynamo.onnx": (files.write_by_dynamo, 3),
    "older.onnx": (files.write_by_older_exporter, 2),
    "by_hand.onnx": (files.write_by_hand, 1),
    "program.pt2": (files.write_program, 3),
}


@pytest.mark.parametrize("name", INITIALLY)
def test_init_writes_a_feature_for_each_input_and_says_that_they_are_guesses(tmp_path: Path, name: str) -> None:
    write, count = INITIALLY[name]
    said: list[str] = []
    target = init_recipe(write(tmp_path / name), "own", tmp_path / "own.toml", False, said.append)
    recipe = load_recipe(target)
    assert len(recipe.features) == count
    assert f"Its {count} [[features]] are guesses" in said[-1]
    assert sum(line.startswith("found input ") for line in said) == count


def test_what_init_guesses_of_the_older_exporters_file_is_served_once_the_fields_are_told(tmp_path: Path) -> None:
    path = files.write_by_older_exporter(tmp_path / "m.onnx")
    target = init_recipe(path, "own", tmp_path / "own.toml", False, lambda _: None)
    text = target.read_text(encoding="utf-8")
    text = text.replace(
        'kind = "vector"\nsize = 2\nfields = ["numbers"]', 'kind = "dense"\nfields = ["price", "rating"]'
    )
    text = text.replace('kind = "sparse"\n', f'kind = "sparse"\nvocabularies = [{list(files.CATEGORIES)}]\n')
    target.write_text(text, encoding="utf-8")
    some = files.products()
    wanted = ranker_of(tmp_path / "..", path, SPARSE, NUMBERS).score(Request("red"), some)
    assert load_ranker(load_recipe(target)).score(Request("red"), some).tolist() == wanted.tolist()
