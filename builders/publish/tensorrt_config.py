"""A graph and the optimization profiles of its plan => ``config.pbtxt`` for the ``tensorrt`` backend.

Read by the container's C++ backend and by ``backends/tensorrt``. Sources: Triton's model_config.proto
(ModelInstanceGroup, ModelOptimizationPolicy.Cuda.GraphSpec); ``InitializeGraphSpecs`` and ``SetCudaGraphShape`` in
src/instance_state.cc of https://github.com/triton-inference-server/tensorrt_backend. No GPU has run these
configurations yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tritonclient.grpc import model_config_pb2 as triton

from builders.core.contract import MAX_ROWS_PER_RUN, USUAL_CANDIDATES, ContractError
from builders.engines.profiles import Profile
from builders.publish.pbtxt import add_tensors, data_type
from builders.rankers.base import Graph

GRAPH_ROWS = (1, 8, 16, 32, USUAL_CANDIDATES, MAX_ROWS_PER_RUN)
"""Rows of captured CUDA graphs: few enough rows that launching a network's many small kernels costs more than running
them."""


def tensorrt_config(
    graph: Graph, name: str, profiles: Sequence[Profile], *, instances: int = 1, cuda_graphs: bool = True
) -> triton.ModelConfig:
    """A scorer (or query encoder) for the ``tensorrt`` backend.

    Every instance has every profile; the backend takes for each run the one whose best shape is nearest. Requests of
    equal length are joined up to the largest rows: memory for these is there in any case.

    Args:
        profiles: of the plan, in its order.
        instances: execution contexts on each GPU.
        cuda_graphs: captured at load, for every instance.

    Raises:
        ContractError: a request may bring more rows than the plan takes.
    """
    _check_rows(graph, name, profiles)
    config = triton.ModelConfig(name=name, backend="tensorrt", max_batch_size=graph.max_batch_size)
    add_tensors(config, graph.contract, skip_dims=1 if graph.batches else 0)
    config.instance_group.add(
        count=instances,
        kind=triton.ModelInstanceGroup.KIND_GPU,
        profile=[str(index) for index in range(len(profiles))],
    )
    if graph.batches:
        config.dynamic_batching.SetInParent()
    config.optimization.input_pinned_memory.enable = True
    config.optimization.output_pinned_memory.enable = True
    if cuda_graphs and graph.batches:
        _add_cuda_graphs(config, graph, profiles)
    for index, profile in enumerate(profiles):
        _add_warmup(config, graph, index, profile)
    return config


def _check_rows(graph: Graph, name: str, profiles: Sequence[Profile]) -> None:
    """The C++ backend refuses a request that no profile takes, so each must take all that the configuration allows."""
    rows = min((largest[0] for profile in profiles for _, _, largest in profile.shapes.values()), default=0)
    if graph.batches and rows < graph.max_batch_size:
        raise ContractError(
            f"{name}: its profiles take up to {rows} rows, a request may bring {graph.max_batch_size}; build the "
            f"engine with profiles up to {graph.max_batch_size} rows"
        )


def _add_cuda_graphs(config: triton.ModelConfig, graph: Graph, profiles: Sequence[Profile]) -> None:
    """Graphs of the fixed shapes; no other run uses one.

    A graph specification without shapes is captured at each profile's best shape, and used for just these rows: where
    lengths are free, the usual ones. Where they are fixed, a specification with a lower bound also serves fewer rows
    than it was captured with; what stands in the rows beyond reaches no other row, since rows are scored one by one.
    """
    config.optimization.cuda.graphs = True
    if not _only_rows_vary(profiles):
        for rows in (1, USUAL_CANDIDATES):
            config.optimization.cuda.graph_spec.add(batch_size=rows)
        return
    for fewer, rows in pairwise((0, *GRAPH_ROWS)):
        specification = config.optimization.cuda.graph_spec.add(batch_size=rows)
        specification.graph_lower_bound.batch_size = fewer + 1
        for tensor, (_, best, _) in profiles[0].shapes.items():
            for target in (specification.input[tensor], specification.graph_lower_bound.input[tensor]):
                target.dim.extend(best[1:])


def _only_rows_vary(profiles: Sequence[Profile]) -> bool:
    ranges = [shapes for profile in profiles for shapes in profile.shapes.values()]
    return len(profiles) == 1 and all(smallest[1:] == largest[1:] for smallest, _, largest in ranges)


def _add_warmup(config: triton.ModelConfig, graph: Graph, index: int, profile: Profile) -> None:
    """One run at a profile's best shape, so that no user's request is the first that a profile sees."""
    rows = next(iter(profile.shapes.values()))[1][0] if graph.batches else 1
    sample = config.model_warmup.add(name=f"profile_{index}", batch_size=rows)
    for tensor in graph.contract.inputs:
        sample.inputs[tensor.name].data_type = data_type(tensor)
        sample.inputs[tensor.name].dims.extend(profile.shapes[tensor.name][1][1 if graph.batches else 0 :])
        sample.inputs[tensor.name].zero_data = True
