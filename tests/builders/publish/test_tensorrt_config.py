"""Configurations for plans, parsed back with Triton's own protobuf."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from torch import nn
from tritonclient.grpc import model_config_pb2 as triton

from builders.core.contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    MAX_CANDIDATES,
    SCORE,
    USUAL_CANDIDATES,
    Contract,
    ContractError,
    Tensor,
    item_vectors,
    query_vector,
)
from builders.engines.profiles import Profile
from builders.publish import model_config, pbtxt
from builders.publish.tensorrt_config import GRAPH_ROWS, tensorrt_config
from builders.rankers.base import Graph

LENGTHS = (16, 32, 64)
ENCODER = Graph(
    "scorer",
    nn.Identity(),
    Contract("scorer", (INPUT_IDS, ATTENTION_MASK), (SCORE,)),
    batches=True,
    max_batch_size=MAX_CANDIDATES,
    lengths=LENGTHS,
)
FEATURES = Tensor("features", "FP32", ("rows", 48), "raw", "per_candidate")
FIXED = Graph("dcn", nn.Identity(), Contract("dcn", (FEATURES,), (SCORE,)), batches=True, max_batch_size=MAX_CANDIDATES)
HEAD = Graph("head", nn.Identity(), Contract("head", (query_vector(384), item_vectors(384)), (SCORE,)), batches=False)

ENCODER_PROFILES = [
    Profile(dict.fromkeys(("input_ids", "attention_mask"), ((1, length), (40, length), (MAX_CANDIDATES, length))))
    for length in LENGTHS
]
FIXED_PROFILE = Profile({"features": ((1, 48), (40, 48), (MAX_CANDIDATES, 48))})
HEAD_PROFILE = Profile(
    {
        "query_vector": ((384,), (384,), (384,)),
        "item_vectors": ((1, 384), (40, 384), (MAX_CANDIDATES, 384)),
    }
)


def reparsed(config: triton.ModelConfig) -> triton.ModelConfig:
    """What Triton reads of the file."""
    return text_format.Parse(pbtxt.render(config), triton.ModelConfig())


def encoder(**further: object) -> triton.ModelConfig:
    return reparsed(tensorrt_config(ENCODER, "scorer_fp16_trt", ENCODER_PROFILES, **further))


def test_what_is_rendered_parses_back_to_the_same() -> None:
    assert encoder() == tensorrt_config(ENCODER, "scorer_fp16_trt", ENCODER_PROFILES)


def test_has_the_tensors_of_the_onnx_variant_which_may_take_its_place() -> None:
    from builders.core.recipe import Serving

    onnx = model_config.runtime_config(ENCODER, "scorer_fp32_onnx", Serving())
    assert (encoder().backend, encoder().max_batch_size) == ("tensorrt", onnx.max_batch_size)
    assert list(encoder().input) == list(onnx.input)
    assert list(encoder().output) == list(onnx.output)


def test_every_instance_is_on_a_gpu_with_every_profile() -> None:
    [group] = encoder(instances=2).instance_group
    assert (group.kind, group.count, list(group.profile)) == (triton.ModelInstanceGroup.KIND_GPU, 2, ["0", "1", "2"])


def test_requests_are_joined_only_where_the_graph_batches() -> None:
    assert encoder().HasField("dynamic_batching")
    head = reparsed(tensorrt_config(HEAD, "head_fp16_trt", [HEAD_PROFILE]))
    assert not head.HasField("dynamic_batching")
    assert (head.max_batch_size, head.optimization.cuda.graphs) == (0, False)


def test_results_leave_through_pinned_memory() -> None:
    assert encoder().optimization.output_pinned_memory.enable
    assert encoder().optimization.input_pinned_memory.enable


def test_each_profile_is_warmed_up_at_its_best_shape() -> None:
    samples = encoder().model_warmup
    assert [(sample.name, sample.batch_size) for sample in samples] == [(f"profile_{i}", 40) for i in range(3)]
    assert [list(sample.inputs["input_ids"].dims) for sample in samples] == [[16], [32], [64]]
    [head] = reparsed(tensorrt_config(HEAD, "head_fp16_trt", [HEAD_PROFILE])).model_warmup
    assert (head.batch_size, list(head.inputs["item_vectors"].dims)) == (1, [40, 384])


def test_free_lengths_get_cuda_graphs_at_each_profiles_best_length_without_padding() -> None:
    specifications = encoder().optimization.cuda.graph_spec
    assert [one.batch_size for one in specifications] == [1, USUAL_CANDIDATES]
    assert not any(one.input or one.HasField("graph_lower_bound") for one in specifications)


def test_fixed_shapes_get_cuda_graphs_that_serve_every_number_of_rows_up_to_the_largest() -> None:
    specifications = reparsed(tensorrt_config(FIXED, "dcn_fp16_trt", [FIXED_PROFILE])).optimization.cuda.graph_spec
    served = [
        rows
        for one in specifications
        for rows in range(one.graph_lower_bound.batch_size, one.batch_size + 1)
        if list(one.input["features"].dim) == list(one.graph_lower_bound.input["features"].dim) == [48]
    ]
    assert served == list(range(1, GRAPH_ROWS[-1] + 1))


def test_cuda_graphs_can_be_left_out() -> None:
    assert not encoder(cuda_graphs=False).optimization.HasField("cuda")


def test_refuses_a_plan_that_takes_fewer_rows_than_a_request_may_bring() -> None:
    small = Profile({"features": ((1, 48), (40, 48), (512, 48))})
    with pytest.raises(ContractError, match="dcn_fp16_trt: its profiles take up to 512 rows, a request may bring 1024"):
        tensorrt_config(FIXED, "dcn_fp16_trt", [small])
