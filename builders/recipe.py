"""Recipes: one TOML a ranker says which network, which checkpoint, which variants, behind which gate, how served.

Turned into arguments at the door; nothing below the command line reads a TOML.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from builders.contract import MAX_BOOST_AMOUNT, MAX_BOOSTS, MAX_CANDIDATES

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
SLICES_OF_DATA = {
    "judged": ("query_length", "brand_popularity"),
    "purchases": ("country", "history"),
    "categories": ("query_length",),
}


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


class RuleDefaults(_Table):
    """Business rules of every request that does not bring its own; their order of application is in
    ``model_repository/postprocess/rules.py``.

    Attributes:
        in_stock_only: leave items out whose attribute ``in_stock`` is false.
        boosts: ``"attribute=value"`` => added to the score of the items that have it; negative buries.
        pins: item id => its position, 1 = first; does nothing in a request without this item or this position.
        max_per_brand: items of one brand among the first ``top_k``; 0 = no limit.
    """

    in_stock_only: bool = False
    boosts: dict[
        Annotated[str, pydantic.Field(pattern=r"^[^=]+=.+$")],
        Annotated[float, pydantic.Field(ge=-MAX_BOOST_AMOUNT, le=MAX_BOOST_AMOUNT)],
    ] = pydantic.Field({}, max_length=MAX_BOOSTS)
    pins: dict[str, Annotated[int, pydantic.Field(ge=1, le=MAX_CANDIDATES)]] = {}
    max_per_brand: int = pydantic.Field(0, ge=0, le=MAX_CANDIDATES)

    @pydantic.model_validator(mode="after")
    def _one_item_a_position(self) -> RuleDefaults:
        if len(set(self.pins.values())) != len(self.pins):
            raise ValueError(f"pins {self.pins}, wanted a position each")
        return self


class Postprocess(_Table):
    """What happens between the network's scores and the answer.

    Attributes:
        head_weights: of a network with several heads: the score is the heads' weighted sum.
        rules: business rules.
    """

    head_weights: tuple[Annotated[float, pydantic.Field(allow_inf_nan=False)], ...] = ()
    rules: RuleDefaults = RuleDefaults()


class Recipe(_Table):
    """A ranker from checkpoint to serving.

    Attributes:
        ranker: its name, the prefix of every model it becomes.
        module: ``<file relative to the project>:<class>`` of a :class:`builders.ranker.Ranker`.
        backbone: Hugging Face checkpoint folder; absent = the packaged all-MiniLM-L6-v2.
        checkpoint: folder of the trained part; absent = untrained.
        variants: the first is the reference of the others.
        data: what it is judged on, see ``builders/evaluation.py``.
        postprocess: how heads are combined, and the business rules.
        slices: groups by which the quality report slices NDCG, see ``builders/slices.py``; absent = those of ``data``.
        trained_on_judgements: then only the test queries may judge it.
        trainer: ``<file>:<function>`` that trains it, called with (recipe, data folder); absent = nothing to train.
        training: its settings.
        root: where its relative paths start: the project for its own recipes, else the recipe's folder.
    """

    ranker: str = pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")
    module: str = pydantic.Field(pattern=r"^.+\.py:\w+$")
    data: Literal["judged", "purchases", "categories"] = "judged"
    backbone: Path | None = None
    checkpoint: Path | None = None
    trained_on_judgements: bool = False
    slices: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = pydantic.Field(min_length=1)
    serving: Serving = Serving()
    gate: Gate = Gate()
    postprocess: Postprocess = Postprocess()
    trainer: str | None = pydantic.Field(None, pattern=r"^.+\.py:\w+$")
    training: dict[str, Any] = {}
    root: Path = REPOSITORY_ROOT

    def model_name(self, variant: Variant) -> str:
        """``<ranker>_<variant>``: the scorer's model name."""
        return f"{self.ranker}_{variant.name}"

    @property
    def judged_slices(self) -> tuple[str, ...]:
        """``slices``, or what can be told apart on its data."""
        return self.slices or SLICES_OF_DATA[self.data]

    def path(self, path: Path | str) -> Path:
        """A path of the recipe, absolute."""
        return self.root / path


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: not a file, not TOML, or any field missing, unknown or out of range; all faults at once.
    """
    try:
        recipe = Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        recipe = recipe.model_copy(update={"root": _root_of(path)})
    except FileNotFoundError:
        raise RecipeError(f"no recipe at '{path}'; 'ls recipes' shows those of the kit") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not TOML: {error}") from error
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise RecipeError(f"{path}: {faults}") from error
    return recipe


def _root_of(path: Path) -> Path:
    folder = path.resolve().parent
    return REPOSITORY_ROOT if folder.is_relative_to(REPOSITORY_ROOT) else folder


def load_recipes(folder: Path = REPOSITORY_ROOT / "recipes") -> dict[str, Recipe]:
    """Ranker name => recipe, for every ``*.toml`` of the folder. Raises: RecipeError."""
    recipes = [load_recipe(path) for path in sorted(folder.glob("*.toml"))]
    return {recipe.ranker: recipe for recipe in recipes}
