"""An endpoint's steps => one model that runs them in one process, see ``served/fused/model.py``; and which form wins.

Both forms are published under the same endpoint, with the same contract: what differs is what the endpoint names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2 as triton

from builders.core.contract import ENDPOINTS, Contract
from builders.core.recipe import Recipe, Variant
from builders.core.runtimes import RUNTIMES
from builders.core.workspace import DROP_INS, SERVED_CODE, Workspace
from builders.publish import model_config, pbtxt
from builders.publish.manifest import CONFIG, CONTRACT, FUSED, RepositoryError, read_manifest
from builders.publish.repository import NO_BYTECODE, Ensemble, ServedModel, publish_models
from builders.publish.state import config_of

Form = Literal["ensemble", "fused"]
WINS_BY = 1.05
"""So many times the ensemble's requests/s a fused form must answer to be published."""
MODEL_CONFIG = "model_config.json"
"""As ``served/fused/model.py`` reads it."""
_DROP_INS = {runtime.backend: runtime for runtime in RUNTIMES.values() if runtime.fuses}


def fused_model(steps: Sequence[ServedModel], endpoint: Contract, instances: int) -> ServedModel:
    """The model ``<scorer>_fused`` of these steps: a version folder that holds theirs.

    Args:
        steps: in the order of the data, post-processing last.
        endpoint: what search services agree on, such as ``RANK``.
        instances: processes.

    Raises:
        RepositoryError: the scorer's runtime does not fuse.
        ContractError: as :func:`model_config.endpoint_contract`.
    """
    *_, scorer, _ = steps
    agreed = model_config.endpoint_contract(scorer.name + FUSED, endpoint, [step.contract for step in steps])
    parameters = {"steps": [step.name for step in steps], "rules": steps[-1].contract.parameters.get("rules", {})}
    contract = dataclasses.replace(agreed, parameters=parameters)
    code: dict[str, Path | str] = {"model.py": SERVED_CODE / "fused" / "model.py"}
    files = {f"{step.name}/{name}": content for step in steps for name, content in _files(step).items()}
    config = model_config.fused_config(contract, [step.config for step in steps], instances)
    return ServedModel(config, contract, {**code, **files}, scorer.built_from)


def _files(step: ServedModel) -> Mapping[str, Path | str]:
    """Of its version folder; of a scorer with the code that runs it. Raises: RepositoryError: no such code."""
    backend = step.config.backend
    if backend == "python":
        return step.version_files
    if backend not in _DROP_INS:
        raise RepositoryError(
            f"{step.name}: backend '{backend}' runs in no process but its own, wanted one of {', '.join(_DROP_INS)}; "
            'set form = "ensemble" under [serving] of the recipe'
        )
    return {**step.version_files, **_code_of(backend), MODEL_CONFIG: _as_handed_over(step)}


def _code_of(backend: str) -> dict[str, Path]:
    """File name => file, of a drop-in backend."""
    return {path.name: path for folder in ("common", backend) for path in sorted((DROP_INS / folder).glob("*.py"))}


def _as_handed_over(step: ServedModel) -> str:
    return json_format.MessageToJson(
        step.config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, sort_keys=True
    )


# ---------------------------------------------------------------- both forms of what is published
def publish_both_forms(repository: Path, endpoint: str, instances: int, target: Path) -> None:
    """What an endpoint serves, as a repository in each form: ``target/ensemble`` and ``target/fused``.

    Args:
        instances: of the fused form.

    Raises:
        RepositoryError: there is no such endpoint, or its scorer's runtime does not fuse.
    """
    steps, agreed = published_steps(repository, endpoint), ENDPOINTS[endpoint.split("_")[0]]
    contract = model_config.endpoint_contract(endpoint, agreed, [step.contract for step in steps])
    forms = {"ensemble": steps, "fused": [fused_model(steps, agreed, instances)]}
    for form, models in forms.items():
        ensemble = Ensemble(endpoint, [model.name for model in models], contract)
        publish_models(target / form, models, [ensemble], {}, lambda _: None)


def published_steps(repository: Path, endpoint: str) -> list[ServedModel]:
    """What an endpoint serves, in whichever form, as the steps of an ensemble.

    Raises:
        RepositoryError: there is no such endpoint.
    """
    served = read_manifest(repository).served
    if endpoint not in served:
        raise RepositoryError(f"no endpoint '{endpoint}' in {repository}; run 'make repository'")
    return [step for each in served[endpoint].steps.items() for step in _steps_of(repository, *each)]


def _steps_of(repository: Path, model: str, version: int) -> Iterator[ServedModel]:
    """The model itself, or the steps that it fuses."""
    folder = repository / model / str(version)
    if model.endswith(FUSED):
        for name in _contract_of(folder).parameters["steps"]:
            yield _published_model(folder / name, pbtxt.read(folder / name / CONFIG))
    else:
        yield _published_model(folder, config_of(repository, model, version))


def _published_model(folder: Path, config: triton.ModelConfig) -> ServedModel:
    own = {
        CONFIG,
        CONTRACT,
        NO_BYTECODE,
        MODEL_CONFIG,
        *(_code_of(config.backend) if config.backend != "python" else ()),
    }
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in own}
    return ServedModel(config, _contract_of(folder), files)


def _contract_of(folder: Path) -> Contract:
    return Contract.from_json((folder / CONTRACT).read_text(encoding="utf-8"))


# ---------------------------------------------------------------- which form is published
class FormFigures(pydantic.BaseModel):
    """Both forms of one variant, measured in interleaved rounds.

    Attributes:
        ratio, ratio_low, ratio_high: requests/s of the fused form over the ensemble's of the same round: median,
            lowest, highest.
        ensemble_per_s, fused_per_s, ensemble_p50_ms, fused_p50_ms: medians over the rounds.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    ratio: float
    ratio_low: float
    ratio_high: float
    ensemble_per_s: float
    fused_per_s: float
    ensemble_p50_ms: float
    fused_p50_ms: float


class FormsReport(pydantic.BaseModel):
    """What ``python -m perf forms`` measured of one recipe last.

    Attributes:
        instances, threads: of the recipe's ``[serving]`` then.
        machine: as :class:`perf.machine.Machine`.
        variants: scorer's model name => figures.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    ranker: str
    written: str
    machine: dict[str, Any]
    instances: int
    threads: int
    concurrency: int
    variants: dict[str, FormFigures]


def forms_file(ranker: str, workspace: Workspace) -> Path:
    """Where a recipe's report lies."""
    return workspace.build / "report" / "forms" / f"{ranker}.json"


def form_of(recipe: Recipe, variant: Variant, workspace: Workspace) -> tuple[Form, str]:
    """How a variant is published, and why that is worth saying; "" where it goes without.

    Raises:
        RepositoryError: what was measured cannot be read.
    """
    asked, name = recipe.serving.form, recipe.model_name(variant)
    if asked == "ensemble" or recipe.serving.max_queue_size is not None or recipe.serving.response_cache:
        return "ensemble", ""
    if not variant.runtime.fuses:
        why = f"{name} is published as an ensemble: {variant.runtime.name} runs in no process but its own"
        return "ensemble", why if asked == "fused" else ""
    if asked == "fused":
        return "fused", ""
    report = _read(forms_file(recipe.ranker, workspace))
    if report is None or name not in report.variants:
        return "ensemble", ""
    again = f"'python -m perf forms recipes/{recipe.ranker}.toml' measures it"
    if (report.instances, report.threads) != (recipe.serving.instances, recipe.serving.threads):
        return "ensemble", f"{name} is published as an ensemble: it was measured with other [serving]; {again} anew"
    ratio = report.variants[name].ratio
    form: Form = "fused" if ratio > WINS_BY else "ensemble"
    return form, f"{name} is published as {_TOLD[form]}: fused it answers {ratio:.2f} times the ensemble's requests/s"


_TOLD = {"ensemble": "an ensemble", "fused": "one fused model"}


def _read(path: Path) -> FormsReport | None:
    if not path.is_file():
        return None
    try:
        return FormsReport.model_validate_json(path.read_text(encoding="utf-8"))
    except pydantic.ValidationError as error:
        raise RepositoryError(
            f"{path}: {error.error_count()} fields are not as this version writes them; run 'python -m perf forms "
            f"recipes/{path.stem}.toml', or remove the file"
        ) from None
