"""Recipes: one TOML a ranker says which network, which checkpoint, which variants, behind which gate, how served.

Turned into arguments at the door; nothing below the command line reads a TOML.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import pydantic

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent


class RecipeError(ValueError):
    """A recipe cannot be used; every fault is in the message."""


class _Table(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class Quantization(_Table):
    """Static INT8 with explicit Q/DQ; see ``builders/quantize.py``.

    Attributes:
        calibration_queries: judged training queries whose real candidates calibrate the activations.
        method: how a range is chosen from what calibration saw.
        percentile: of the absolute values, with method "percentile".
        keep_fp32: patterns of node names (``fnmatch``) left in FP32.
    """

    calibration_queries: int = pydantic.Field(16, ge=1)
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: float = pydantic.Field(99.99, gt=50, le=100)
    keep_fp32: tuple[str, ...] = ()


class Variant(_Table):
    """One form in which the ranker is served.

    Attributes:
        name: what was done and the runtime; the model is called ``<ranker>_<name>``.
        int8: quantize; absent = FP32.
    """

    name: str = pydantic.Field(pattern=r"^[a-z0-9_]+_onnx$")
    int8: Quantization | None = None


class Serving(_Table):
    """Explicit, portable defaults; what is tuned to a machine goes to ``configs/<machine>.pbtxt``.

    Attributes:
        instances: processes a scorer runs in.
        threads: of one run, in each instance.
        max_queue_size: requests that wait before a scorer; one more is refused at once. From measured capacity: what
            the scorer answers within the longest wait that is still of use. Absent = no bound but the clients'
            deadlines; needs two instances, see ``model_config._add_queue``.
    """

    instances: int = pydantic.Field(1, ge=1)
    threads: int = pydantic.Field(2, ge=1)
    max_queue_size: int | None = pydantic.Field(None, ge=1)

    @pydantic.model_validator(mode="after")
    def _bound_needs_two_instances(self) -> Serving:
        if self.max_queue_size is not None and self.instances < 2:
            raise ValueError(
                f"max_queue_size {self.max_queue_size} with 1 instance, wanted 2 instances or no bound: "
                "with one, Triton's batcher leaves some requests waiting 0.5 s beside an idle instance"
            )
        return self


class Gate(_Table):
    """What a variant must keep of its reference's quality to be published."""

    min_ndcg_ratio: float = pydantic.Field(0.99, gt=0, le=1)


class Recipe(_Table):
    """A ranker from checkpoint to serving.

    Attributes:
        ranker: its name, the prefix of every model it becomes.
        module: ``<file relative to the project>:<class>`` of a :class:`builders.ranker.Ranker`.
        backbone: Hugging Face checkpoint folder; absent = the packaged all-MiniLM-L6-v2.
        checkpoint: folder of the trained part; absent = untrained.
        variants: the first is the reference of the others.
        trained_on_judgements: then only the test queries may judge it.
        training: arguments of the ranker's training.
    """

    ranker: str = pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")
    module: str = pydantic.Field(pattern=r"^.+\.py:\w+$")
    backbone: Path | None = None
    checkpoint: Path | None = None
    trained_on_judgements: bool = False
    variants: tuple[Variant, ...] = pydantic.Field(min_length=1)
    serving: Serving = Serving()
    gate: Gate = Gate()
    training: dict[str, Any] = {}

    def model_name(self, variant: Variant) -> str:
        """``<ranker>_<variant>``: the scorer's model name."""
        return f"{self.ranker}_{variant.name}"


def load_recipe(path: Path) -> Recipe:
    """Read a recipe; relative folders in it are relative to the project.

    Raises:
        RecipeError: not a file, not TOML, or any field missing, unknown or out of range; all faults at once.
    """
    try:
        recipe = Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RecipeError(f"no recipe at '{path}'; 'ls recipes' shows those of the kit") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not TOML: {error}") from error
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise RecipeError(f"{path}: {faults}") from error
    return recipe


def load_recipes(folder: Path = REPOSITORY_ROOT / "recipes") -> dict[str, Recipe]:
    """Ranker name => recipe, for every ``*.toml`` of the folder. Raises: RecipeError."""
    recipes = [load_recipe(path) for path in sorted(folder.glob("*.toml"))]
    return {recipe.ranker: recipe for recipe in recipes}
