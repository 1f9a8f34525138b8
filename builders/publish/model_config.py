"""Contracts => Triton's model configurations, as its own protobuf messages.

Every configuration here is portable: instance counts and threads are explicit, nothing is taken from the machine.
Reference: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as triton

from builders.core.contract import (
    ANSWER,
    ANY_LIST,
    LENGTH_BUCKET,
    MAX_REQUESTS_PER_RUN,
    MAX_ROWS_PER_RUN,
    USUAL_CANDIDATES,
    Contract,
    ContractError,
    rows_per_run,
)
from builders.core.recipe import RecipeError, Serving, Variant
from builders.core.runtimes import ONNX, RUNTIMES, TRT, Precision, Runtime, runtime_of
from builders.publish.pbtxt import add_parameters, add_tensors, data_type
from builders.rankers.base import Graph

ROW_CAP = "max_rows_per_run"
"""Parameter of a scorer whose rows are run apart, as ``backends/common/model_configuration.py`` reads it."""
_THREADS = tuple(runtime.thread_parameter for runtime in RUNTIMES.values() if runtime.thread_parameter)
"""Parameters that say how many threads a run takes, of the backends."""
_ALONE = {runtime.backend for runtime in RUNTIMES.values() if not runtime.joins_requests}
"""Backends whose requests are never joined, although rows are independent."""


def scorer_config(graph: Graph, name: str, serving: Serving, variant: Variant, path: Path) -> triton.ModelConfig:
    """A scorer (or query encoder) for the backend that runs ``path``: ``onnxruntime``, ``openvino`` or ``tensorrt``.

    Where the graph batches, Triton joins requests of equal length until MAX_ROWS_PER_RUN rows are reached, or, where a
    request brings one row, MAX_REQUESTS_PER_RUN. One request
    may bring more; ``max_rows_per_run`` and, for sequences, ``max_tokens_per_run`` tell the backend to run it in parts.
    Where the backend takes no joined requests they are not joined, and where a score depends on the rows beside it
    they are not parted either.
    """
    runtime = runtime_of(path)
    if runtime.name == TRT.name:
        from builders.engines.profiles import profiles_of
        from builders.publish.tensorrt_config import tensorrt_config

        config = tensorrt_config(graph, name, profiles_of(graph))
    else:
        config = runtime_config(graph, name, serving, runtime, variant.precision, joins=variant.rows_independent)
    if serving.score_cache_mb is not None and not why_not_cached(graph, variant):
        add_score_cache(config, serving.score_cache_mb)
    if serving.response_cache:
        config.response_cache.enable = True
    return config


def add_score_cache(config: triton.ModelConfig, size_mb: int) -> None:
    """Let the drop-in backend remember scores, see ``backends/common/score_cache.py``. size_mb: MiB of its file."""
    add_parameters(config, score_cache_mb=size_mb)


def why_not_cached(graph: Graph, variant: Variant) -> str:
    """Why scores of a graph's rows cannot be remembered one by one; "" where they can."""
    if not variant.rows_independent:
        return "a score depends on the rows beside it"
    if not (graph.batches or graph.splits):
        return "its rows are scored together"
    free = [tensor.name for tensor in graph.contract.outputs if any(isinstance(dim, str) for dim in tensor.dims[1:])]
    return f"a row of {', '.join(free)} has no fixed size" if free else ""


def told_uncached(graphs: Sequence[Graph], name: str, serving: Serving, variant: Variant) -> str:
    """What of a variant is published without the score cache that the recipe asks for; "" where nothing is.

    Args:
        name: of its scorer.

    Raises:
        RecipeError: no graph could have one, whatever the variant.
    """
    if serving.score_cache_mb is None:
        return ""
    reasons = {graph.name: why for graph in graphs if (why := why_not_cached(graph, variant))}
    told = "; ".join(f"{graph}: {why}" for graph, why in reasons.items())
    if variant.rows_independent and len(reasons) == len(graphs):
        raise RecipeError(f"{name}: score_cache_mb {serving.score_cache_mb}, but no network of it can have a score "
                          f"cache ({told}); leave score_cache_mb out of [serving]")  # fmt: skip
    return f"{name}: without a score cache {told}" if told else ""


def runtime_config(
    graph: Graph,
    name: str,
    serving: Serving,
    runtime: Runtime = ONNX,
    precision: Precision = "fp32",
    *,
    joins: bool = True,
) -> triton.ModelConfig:
    """For the runtime's backend. joins: whether rows of several requests may be run together, and of one apart."""
    shaped = graph if runtime.joins_requests else dataclasses.replace(graph, batches=False, max_batch_size=0)
    config = _scorer(shaped, name, serving, runtime.backend, joins=joins)
    if joins and (graph.batches or graph.splits):
        _add_limits(config, graph)
    add_parameters(config, **runtime.parameters(serving.threads, precision))
    if precision in runtime.graph_level:
        config.optimization.graph.level = runtime.graph_level[precision]
    return config


def _scorer(graph: Graph, name: str, serving: Serving, backend: str, *, joins: bool) -> triton.ModelConfig:
    config = triton.ModelConfig(name=name, backend=backend, max_batch_size=graph.max_batch_size)
    add_tensors(config, graph.contract, skip_dims=1 if graph.batches else 0)
    _add_instances(config, 1 if graph.keep_fp32 else serving.instances)
    if graph.batches and joins:
        if serving.max_queue_size is not None:
            _add_queue(config, serving.max_queue_size)
        of_one_row = graph.max_batch_size <= MAX_ROWS_PER_RUN
        config.dynamic_batching.preferred_batch_size.append(MAX_REQUESTS_PER_RUN if of_one_row else MAX_ROWS_PER_RUN)
    _add_warmup(config, graph)
    return config


def _add_limits(config: triton.ModelConfig, graph: Graph) -> None:
    """What one run may take; ``row_inputs`` where a request is parted although some inputs are not of rows."""
    limits = graph.limits
    add_parameters(config, **{ROW_CAP: MAX_ROWS_PER_RUN})
    if limits.tokens:
        add_parameters(config, max_tokens_per_run=limits.tokens)
    if not graph.batches:
        add_parameters(config, row_inputs=",".join(graph.row_inputs))
    if limits.mask:
        add_parameters(config, padding_mask=limits.mask, lengths=",".join(map(str, limits.lengths)))


def python_config(contract: Contract) -> triton.ModelConfig:
    """A hand-written pre- or post-processing model; a request is one query with its candidates: no batching."""
    config = triton.ModelConfig(name=contract.name, backend="python", max_batch_size=0)
    add_tensors(config, contract, skip_dims=0)
    _add_instances(config, 1)
    return config


def fused_config(contract: Contract, steps: Sequence[triton.ModelConfig], instances: int) -> triton.ModelConfig:
    """A model that runs all steps in one process: as many of them as the scorer has instances, with its threads.

    Args:
        contract: of the endpoint.
        steps: their configurations; what they say of threads stands here, to be tuned.
    """
    config = triton.ModelConfig(name=contract.name, backend="python", max_batch_size=0)
    add_tensors(config, contract, skip_dims=0)
    _add_instances(config, instances)
    for step in steps:
        add_parameters(config, **{name: step.parameters[name].string_value for name in _threads_of(step)})
    return config


def ensemble_config(contract: Contract, steps: Sequence[tuple[triton.ModelConfig, int]]) -> triton.ModelConfig:
    """An endpoint: the steps joined by tensors of the same name, each pinned to a version.

    A step may put out a tensor with the name of an input of the endpoint (the ids that it made of the ``history``,
    say): the steps after it read that.

    Args:
        contract: of the endpoint, as :func:`endpoint_contract` makes it.
        steps: (configuration, version) in the order of the data.

    Raises:
        ContractError: a step needs a tensor that neither the request nor an earlier step brings.
    """
    config = triton.ModelConfig(name=contract.name, platform="ensemble", max_batch_size=0)
    add_tensors(config, contract, skip_dims=0)
    if ANSWER in contract.parameters:
        add_parameters(config, **{ANSWER: json.dumps(contract.parameters[ANSWER], ensure_ascii=False)})
    of_request = {tensor.name for tensor in contract.inputs}
    joined_by = {name: name for name in of_request}
    used = {tensor.name for step, _ in steps for tensor in step.input} | {tensor.name for tensor in contract.outputs}
    for step, version in steps:
        message = config.ensemble_scheduling.step.add(model_name=step.name, model_version=version)
        missing = [tensor.name for tensor in step.input if tensor.name not in joined_by]
        if missing:
            raise ContractError(
                f"{contract.name}: '{step.name}' needs {', '.join(missing)}, there are {', '.join(sorted(joined_by))}"
            )
        for tensor in step.input:
            message.input_map[tensor.name] = joined_by[tensor.name]
        for tensor in step.output:
            joined_by[tensor.name] = f"{step.name}_{tensor.name}" if tensor.name in of_request else tensor.name
            if tensor.name in used:  # Triton refuses a mapped tensor that no step reads
                message.output_map[tensor.name] = joined_by[tensor.name]
    return config


def endpoint_contract(name: str, endpoint: Contract, steps: Sequence[Contract]) -> Contract:
    """The endpoint's contract under another name: without optional inputs that no step reads, which Triton refuses,
    and with those that its steps read beyond it; without optional outputs that no step gives; with the last step's
    business rules, which say what its lists may look like.

    Raises:
        ContractError: a step's output has the name of an input of the endpoint that the last step reads.
    """
    given = {tensor.name for step in steps for tensor in step.outputs}
    produced = given - {tensor.name for tensor in endpoint.outputs}
    further = {tensor.name: tensor for step in steps for tensor in step.inputs if tensor.optional}
    known = {tensor.name for tensor in endpoint.inputs}
    clashes = sorted((known | set(further)) & produced & {tensor.name for tensor in steps[-1].inputs})
    if clashes:
        raise ContractError(f"{name}: {', '.join(clashes)} is an input of the endpoint; give the feature another name")
    read = {tensor.name for step in steps for tensor in step.inputs}
    own = [tensor for tensor in endpoint.inputs if not tensor.optional or tensor.name in read]
    inputs = (*own, *(tensor for name, tensor in further.items() if name not in known))
    outputs = tuple(tensor for tensor in endpoint.outputs if not tensor.optional or tensor.name in given)
    rules = steps[-1].parameters.get("rules", {})
    parameters = {**endpoint.parameters, ANSWER: {**endpoint.parameters.get(ANSWER, ANY_LIST), "rules": rules}}
    return dataclasses.replace(endpoint, name=name, inputs=inputs, outputs=outputs, parameters=parameters)


def pin(config: triton.ModelConfig, versions: Iterable[int]) -> triton.ModelConfig:
    """A copy that serves just these versions."""
    pinned = triton.ModelConfig()
    pinned.CopyFrom(config)
    pinned.version_policy.specific.versions[:] = sorted(set(versions))
    return pinned


def tune(config: triton.ModelConfig, instances: int, threads: int) -> triton.ModelConfig:
    """A copy with one machine's instances (of what batches) and threads; one instance has no queue bound."""
    tuned = triton.ModelConfig()
    tuned.CopyFrom(config)
    if tuned.max_batch_size or tuned.backend in _ALONE or (tuned.backend == "python" and _threads_of(tuned)):
        tuned.instance_group[0].count = instances
        if tuned.max_batch_size and instances == 1:  # see _add_queue
            tuned.dynamic_batching.ClearField("default_queue_policy")
    add_parameters(tuned, **dict.fromkeys(_threads_of(tuned), threads))
    return tuned


def with_tuning_of(config: triton.ModelConfig, tuned: triton.ModelConfig) -> triton.ModelConfig:
    """A copy of ``config`` with the instances and threads of an older, tuned one."""
    result = triton.ModelConfig()
    result.CopyFrom(config)
    del result.instance_group[:]
    result.instance_group.extend(tuned.instance_group)
    for name in _threads_of(tuned):
        if name in result.parameters:
            result.parameters[name].CopyFrom(tuned.parameters[name])
    return result


def _threads_of(config: triton.ModelConfig) -> list[str]:
    """Its parameters that say how many threads a run takes."""
    return [name for name in _THREADS if name in config.parameters]


def _add_instances(config: triton.ModelConfig, count: int) -> None:
    config.instance_group.add(count=count, kind=triton.ModelInstanceGroup.KIND_CPU)


def _add_queue(config: triton.ModelConfig, max_queue_size: int) -> None:
    """A bounded queue: a request that finds it full is refused at once (UNAVAILABLE "Exceeds maximum queue size").

    Only where the model batches, with two instances at least, and without a timeout. Under a queue policy Triton's
    batcher waits for an instance to report itself idle and can miss that (compare
    https://github.com/triton-inference-server/server/issues/8870): with one instance, or ``max_batch_size`` 0, or a
    default timeout, some requests of every thousand waited 0.5 s beside an idle instance. The client's own deadline
    bounds a wait.
    """
    config.dynamic_batching.default_queue_policy.max_queue_size = max_queue_size


def _add_warmup(config: triton.ModelConfig, graph: Graph) -> None:
    """One run for every padded length, or one where lengths are fixed, so that no user's request is a shape's first.

    A graph that does not batch is warmed up with a usual number of candidates, or as many as one run takes, and the
    shortest texts.
    """
    for length in graph.lengths or (LENGTH_BUCKET,):
        rows = min(USUAL_CANDIDATES, rows_per_run(length)) if graph.lengths else USUAL_CANDIDATES
        sample = config.model_warmup.add(name=f"length_{length}" if graph.lengths else "usual", batch_size=1)
        for tensor in graph.contract.inputs:
            free = {"candidates": rows, "rows": rows}
            dims = [free.get(dim, length) if isinstance(dim, str) else dim for dim in tensor.dims[int(graph.batches) :]]
            sample.inputs[tensor.name].data_type = data_type(tensor)
            sample.inputs[tensor.name].dims.extend(dims)
            sample.inputs[tensor.name].zero_data = True
