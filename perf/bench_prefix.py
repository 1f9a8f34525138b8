"""What it gains a causal reranker that what all prompts of a request start with is encoded once.

Both forms are ONNX files of the same random weights, run in this process by ONNX Runtime on 2 threads, in turn: the
figures are of speed only. 4 layers of 256 (8 heads), 80 tokens of prompt and query, 30 of each item.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from perf.bench_base import Bench, Figure, paired_ms
from perf.errors import PerfError
from perf.kit.data import USUAL_CANDIDATES, padded_length
from perf.kit.rankers import (
    CausalScorer,
    Graph,
    Sample,
    onnx_from_ranker,
    padded_sequences,
    prefix_graphs,
    run_onnx,
    split_sequences,
    whole_graph,
)

LAYERS, WIDTH, HEADS, WORDS = 4, 256, 8, 2000
PROMPT_TOKENS, ITEM_TOKENS = 80, 30
THREADS = 2
PAIRS = 40
GAIN_LIMIT = 2.0
SAME = 1e-3

Form = Sequence[tuple[onnxruntime.InferenceSession, Sample]]
"""Sessions in the order in which a request passes them, each with the tensors that no session before it gives."""


def bench_prefix(bench: Bench) -> list[Figure]:
    """The median gain over the form that computes every prompt whole."""
    spans_ms = prefix_spans_ms(bench.track(range(PAIRS), "prefix encoded once, and whole prompts"))
    gains = spans_ms[:, 1] / spans_ms[:, 0]
    once_ms, whole_ms = np.median(spans_ms, axis=0)
    low, high = np.percentile(gains, [5, 95])
    detail = f"{once_ms:.1f} ms once, {whole_ms:.1f} ms whole, 5 % to 95 % of pairs {low:.2f} to {high:.2f}"
    label = f"causal reranker: prefix encoded once over whole prompts, {USUAL_CANDIDATES} candidates"
    return [Figure(label, float(np.median(gains)), "x", GAIN_LIMIT, at_least=True, detail=detail)]


def prefix_spans_ms(pairs: Iterable[int]) -> np.ndarray:
    """float64 [pairs, 2]: milliseconds of a request with its prefix encoded once, and of whole prompts.

    Raises:
        PerfError: the two forms do not score alike.
    """
    with tempfile.TemporaryDirectory(prefix="tritonrank_perf_") as folder:
        shared, whole = forms(Path(folder))
        if not np.allclose(run(shared), run(whole), atol=SAME):
            raise PerfError("the two forms score otherwise; look at SuffixScorer")
        spans = [paired_ms(lambda: run(shared), lambda: run(whole), swap=bool(pair % 2)) for pair in pairs]
    return np.array(spans)


def forms(folder: Path) -> tuple[Form, Form]:
    """With the prefix encoded once, and whole."""
    scorer = random_scorer()
    rows = sequences()
    padding = padded_length, padded_length(PROMPT_TOKENS + ITEM_TOKENS), 0
    whole = whole_graph("whole", scorer, padding[1])
    once = prefix_graphs("once", scorer, padding[1])
    split = split_sequences(rows, *padding)
    prefix = torch.from_numpy(split["prefix_ids"])
    with torch.inference_mode():
        split["prefix_keys_values"] = once[0].module(prefix).numpy()
    padded = padded_sequences(rows, *padding)
    return [_opened(graph, split, folder) for graph in once], [_opened(whole, padded, folder)]


def random_scorer() -> CausalScorer:
    """Qwen3 of LAYERS x WIDTH, seeded."""
    from sentence_transformers.cross_encoder.modules import LogitScore

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, head_dim=WIDTH // HEADS, intermediate_size=4 * WIDTH,
        max_position_embeddings=512,
    )  # fmt: skip
    return CausalScorer(Qwen3ForCausalLM(config).eval(), LogitScore(1, 2), torch.nn.Identity()).eval()


def sequences() -> list[list[int]]:
    """USUAL_CANDIDATES prompts of one request, seeded."""
    draw = np.random.default_rng(0)
    prompt = draw.integers(3, WORDS, PROMPT_TOKENS).tolist()
    return [[*prompt, *draw.integers(3, WORDS, ITEM_TOKENS).tolist()] for _ in range(USUAL_CANDIDATES)]


def run(form: Form) -> np.ndarray:
    """FP32 [candidates, 1]."""
    outputs: Sample = {}
    for session, own in form:
        outputs = run_onnx(session, {**own, **outputs})
    return outputs["score"]


def _opened(graph: Graph, arrays: Sample, folder: Path) -> tuple[onnxruntime.InferenceSession, Sample]:
    sample = {tensor.name: arrays[tensor.name] for tensor in graph.contract.inputs}
    path = folder / f"{graph.name}.onnx"
    onnx_from_ranker(graph, sample, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]), sample
