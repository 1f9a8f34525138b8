"""Recipes: one TOML a ranker says which network, which checkpoint, which variants, behind which gate, how served.

Turned into arguments at the door; nothing below the command line reads a TOML.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import pydantic

from builders.core.contract import MAX_BOOST_AMOUNT, MAX_BOOSTS, MAX_CANDIDATES
from builders.core.errors import BuilderError
from builders.core.steps import Bf16, GraphStep, Int8, NetworkStep, Settings, Step
from builders.core.workspace import REPOSITORY_ROOT

Runtime = Literal["onnx", "openvino", "trt"]
SLICES_OF_DATA = {
    "judged": ("query_length", "brand_popularity"),
    "purchases": ("country", "history"),
    "categories": ("query_length",),
}


class RecipeError(BuilderError):
    """A recipe cannot be used; every fault is in the message."""


Loss = Annotated[float, pydantic.Field(ge=0, lt=1)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]


class OwnLimits(Settings):
    """Limits of one variant, in place of the recipe's ``[gate]``: a student of several teachers, for one, has an order
    of its own. As :class:`Gate`; what is absent stays."""

    max_judged_loss: Loss | None = None
    min_fidelity_ndcg: Share | None = None


class Variant(Settings):
    """One form in which the ranker is served.

    Attributes:
        name: what was done and the runtime; the model is called ``<ranker>_<name>``.
        steps: the chain that makes it of the trained ranker; none = as it is, in FP32.
        experimental: built to be compared (``make pareto``) or when it is named, not by ``make repository``.
        gate: limits of its own.
    """

    name: str = pydantic.Field(pattern=r"^[a-z0-9_]+_(onnx|openvino|trt)$")
    steps: tuple[Step, ...] = ()
    experimental: bool = False
    gate: OwnLimits = OwnLimits()

    @property
    def runtime(self) -> Runtime:
        """Which of Triton's backends serves it."""
        return cast("Runtime", self.name.rsplit("_", 1)[1])

    @property
    def network_steps(self) -> tuple[NetworkStep, ...]:
        """Those before the export."""
        return tuple(step for step in self.steps if isinstance(step, NetworkStep))

    @property
    def graph_steps(self) -> tuple[GraphStep, ...]:
        """Those after it."""
        return tuple(step for step in self.steps if isinstance(step, GraphStep))

    @property
    def exact(self) -> bool:
        """Whether its scores are the torch network's own, but for rounding in FP32."""
        return not self.steps and self.runtime != "trt"

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> Variant:
        if self.steps != (*self.network_steps, *self.graph_steps):
            names = " => ".join(step.step for step in self.steps)
            raise ValueError(f"steps {names}, wanted those of the network before those of the graph")
        if self.runtime != "openvino" and any(isinstance(step, Bf16) for step in self.steps):
            raise ValueError(f"bf16 with the runtime {self.runtime}, wanted a variant ..._openvino")
        methods = [step.method for step in self.steps if isinstance(step, Int8) and step.method != "minmax"]
        if self.runtime == "openvino" and methods:
            raise ValueError(f"int8 by {methods[0]} with the runtime openvino, wanted minmax: NNCF has no other")
        return self


class Serving(Settings):
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


class Gate(Settings):
    """What a variant must keep of its reference's quality to be published.

    Attributes:
        metric: of each judged list; the others are told beside it.
        max_judged_loss: how far below the reference, as a share of its mean, the lower end of the 95 % interval of the
            judged difference may lie.
        min_fidelity_ndcg: NDCG@10 of the variant's order against the reference's own, over lists without judgements.
        fidelity_lists: how many of those.
        fidelity_candidates: of each.
    """

    metric: Literal["ndcg", "hit_rate", "auc", "accuracy"] = "ndcg"
    max_judged_loss: Loss = 0.02
    min_fidelity_ndcg: Share = 0.99
    fidelity_lists: int = pydantic.Field(2000, ge=1)
    fidelity_candidates: int = pydantic.Field(12, ge=2)


class Machine(Settings):
    """What a machine costs that serves it, for the cost of a million scored candidates.

    Attributes:
        price_per_hour: in ``currency``.
    """

    price_per_hour: float = pydantic.Field(0.10, gt=0)
    currency: str = "USD"


class RuleDefaults(Settings):
    """Business rules of every request that does not bring its own; their order of application is in
    ``served/postprocess/rules.py``.

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
    pins: dict[str, Annotated[int, pydantic.Field(ge=1, le=MAX_CANDIDATES)]] = pydantic.Field({})
    max_per_brand: int = pydantic.Field(0, ge=0, le=MAX_CANDIDATES)

    @pydantic.model_validator(mode="after")
    def _one_item_a_position(self) -> RuleDefaults:
        if len(set(self.pins.values())) != len(self.pins):
            raise ValueError(f"pins {self.pins}, wanted a position each")
        return self


class Postprocess(Settings):
    """What happens between the network's scores and the answer.

    Attributes:
        head_weights: of a network with several heads: the score is the heads' weighted sum.
        rules: business rules.
    """

    head_weights: tuple[Annotated[float, pydantic.Field(allow_inf_nan=False)], ...] = ()
    rules: RuleDefaults = RuleDefaults()


class Recipe(Settings):
    """A ranker from checkpoint to serving.

    Attributes:
        ranker: its name, the prefix of every model it becomes.
        module: ``<file relative to the project>:<class>`` of a :class:`builders.rankers.base.Ranker`.
        backbone: Hugging Face checkpoint folder; absent = the packaged all-MiniLM-L6-v2.
        checkpoint: folder of the trained part; absent = untrained.
        variants: the first is the reference of the others.
        data: what it is judged on, see ``builders/data/evaluation.py``.
        postprocess: how heads are combined, and the business rules.
        slices: groups by which the quality report slices NDCG, see ``builders/evaluate/slices.py``; absent =
            those of ``data``.
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
    machine: Machine = Machine()
    postprocess: Postprocess = Postprocess()
    trainer: str | None = pydantic.Field(None, pattern=r"^.+\.py:\w+$")
    training: dict[str, Any] = pydantic.Field({})
    root: Path = REPOSITORY_ROOT

    @pydantic.model_validator(mode="after")
    def _reference_is_exact(self) -> Recipe:
        names = [variant.name for variant in self.variants]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"variants {', '.join(repeated)} stand there twice, wanted one name each")
        if not self.variants[0].exact or self.variants[0].experimental or self.variants[0].runtime != "onnx":
            raise ValueError(f"the first variant is {names[0]}, wanted one without steps for the runtime onnx: it is "
                             "the reference of the others")  # fmt: skip
        return self

    def model_name(self, variant: Variant) -> str:
        """``<ranker>_<variant>``: the scorer's model name."""
        return f"{self.ranker}_{variant.name}"

    def gate_of(self, variant: Variant) -> Gate:
        """The recipe's gate with the variant's own limits."""
        return self.gate.model_copy(update=variant.gate.model_dump(exclude_none=True))

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
