"""Recipes: one TOML a ranker says which network, which checkpoint, which variants, behind which gate, how served.

Turned into arguments at the door; nothing below the command line reads a TOML.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic

from builders.core.contract import MAX_BOOST_AMOUNT, MAX_BOOSTS, MAX_CANDIDATES
from builders.core.faults import DERIVED, RecipeError, faults_of
from builders.core.renames import with_names_of_now
from builders.core.runtimes import RUNTIMES, Precision, Runtime
from builders.core.steps import GraphStep, NetworkStep, Settings, Step
from builders.core.training_settings import TrainerSettings, settings_of
from builders.core.workspace import REPOSITORY_ROOT

M = TypeVar("M", bound=pydantic.BaseModel)
SIMILAR_BY = "two_tower"
"""The ranker whose stored vectors ``similar`` compares."""
SLICES_OF_DATA = {
    "judged": ("query_length", "brand_popularity"),
    "purchases": ("country", "history"),
    "categories": ("query_length",),
}


Loss = Annotated[float, pydantic.Field(ge=0, lt=1)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]


class OwnLimits(Settings):
    """Limits of one variant, in place of the recipe's ``[gate]``: a student of several teachers, for one, has an order
    of its own.

    Attributes:
        max_judged_loss: as in ``[gate]``; absent = the recipe's.
        min_fidelity_ndcg: as in ``[gate]``; absent = the recipe's.
    """

    max_judged_loss: Loss | None = None
    min_fidelity_ndcg: Share | None = None


class Variant(Settings):
    """One form in which the ranker is served.

    Attributes:
        name: what was done and the runtime; the model is called ``<ranker>_<name>``.
        steps: the chain of compression steps that makes it of the trained ranker; none = as it is, in FP32.
        experimental: built to be compared (``make pareto``) or when it is named, not by ``make repository``.
        gate: limits of its own, in place of the recipe's.
    """

    name: str = pydantic.Field(pattern=rf"^[a-z0-9_]+_({'|'.join(RUNTIMES)})$")
    steps: tuple[Step, ...] = ()
    experimental: bool = False
    gate: OwnLimits = OwnLimits()

    @property
    def runtime(self) -> Runtime:
        """What serves it: the end of its name."""
        return RUNTIMES[self.name.rsplit("_", 1)[1]]

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
        return not self.steps and not self.runtime.needs_gpu

    @property
    def precision(self) -> Precision:
        """What its runtime is asked to compute in."""
        asked = [step.precision for step in self.steps if step.precision != "fp32"]
        return asked[-1] if asked else "fp32"

    @property
    def quantized(self) -> bool:
        """Whether it multiplies in static INT8."""
        return any(step.quantizes for step in self.steps)

    @property
    def joins_requests(self) -> bool:
        """Whether the server may run several of its requests as one batch."""
        return self.runtime.joins_requests and self.rows_independent

    @property
    def rows_independent(self) -> bool:
        """Whether a row's score is the same whatever rows are run with it, so that requests may be parted."""
        return all(step.joins_requests for step in self.steps)

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> Variant:
        if self.steps != (*self.network_steps, *self.graph_steps):
            names = " => ".join(step.step for step in self.steps)
            raise ValueError(f"steps {names}, wanted those of the network before those of the graph")
        if refusals := [refusal for step in self.steps if (refusal := step.refusal(self.runtime))]:
            raise ValueError("; ".join(refusals))
        return self


class Serving(Settings):
    """Explicit, portable defaults; what is tuned to a machine goes to ``configs/<machine>.pbtxt``.

    Attributes:
        instances: copies of a scorer that run side by side.
        threads: threads of one run, in each instance.
        max_queue_size: requests that wait before a scorer; one more is refused at once. From measured capacity: what
            the scorer answers within the longest wait that is still of use. Absent = no bound but the clients'
            deadlines; needs two instances, see ``model_config._add_queue``.
        form: "ensemble" = a process each for pre-processing, scorer and post-processing; "fused" = one process for all
            three, in each instance, where the runtime can (onnx); "measured" = fused where ``python -m perf forms``
            has measured that it answers more than 5 % more requests on this machine, an ensemble else, or with a
            ``max_queue_size`` or ``response_cache``.
        score_cache_mb: MiB of a file in which the pip-only server keeps the scores of the rows that a scorer has
            scored last, for each scorer; absent = none. See ``docs/explanation/caches.md``.
        response_cache: whether the scorers ask for Triton's own response cache; a server has one that is started with
            ``--response-cache-mb``.
    """

    instances: int = pydantic.Field(1, ge=1)
    threads: int = pydantic.Field(2, ge=1)
    max_queue_size: int | None = pydantic.Field(None, ge=1)
    form: Literal["measured", "ensemble", "fused"] = "measured"
    score_cache_mb: int | None = pydantic.Field(None, ge=1)
    response_cache: bool = False

    @pydantic.model_validator(mode="after")
    def _bound_needs_two_instances(self) -> Serving:
        if self.max_queue_size is not None and self.instances < 2:
            raise ValueError(
                f"max_queue_size {self.max_queue_size} with 1 instance, wanted 2 instances or no bound: "
                "with one, Triton's batcher leaves some requests waiting 0.5 s beside an idle instance"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _fused_has_no_queue(self) -> Serving:
        if self.max_queue_size is not None and self.form == "fused":
            raise ValueError(
                f"max_queue_size {self.max_queue_size} with form 'fused', wanted no bound or form 'ensemble': Triton "
                "bounds the queue of models that join requests alone"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _fused_has_no_response_cache(self) -> Serving:
        if self.response_cache and self.form == "fused":
            raise ValueError(
                "response_cache with form 'fused', wanted form 'ensemble' or no response_cache: a fused model reads "
                "the item store, and Triton would answer from before an update of it"
            )
        return self


class Gate(Settings):
    """What a variant must keep of its reference's quality to be published.

    Attributes:
        metric: what a judged list is judged by; the other metrics are told beside it.
        max_judged_loss: how far below the reference, as a share of its mean, the lower end of the 95 % interval of the
            judged difference may lie.
        min_fidelity_ndcg: NDCG@10 of the variant's order against the reference's own, over lists without judgements.
        fidelity_lists: how many lists without judgements.
        fidelity_candidates: candidates of each list without judgements.
    """

    metric: Literal["ndcg", "hit_rate", "auc", "accuracy"] = "ndcg"
    max_judged_loss: Loss = 0.02
    min_fidelity_ndcg: Share = 0.99
    fidelity_lists: int = pydantic.Field(2000, ge=1)
    fidelity_candidates: int = pydantic.Field(12, ge=2)


class Machine(Settings):
    """What a machine costs that serves it, for the cost of a million scored candidates.

    Attributes:
        price_per_hour: of the whole machine, in ``currency``.
        currency: as figures and pages spell it.
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


class Text(Settings):
    """How a text ranker reads query and items; for a checkpoint of a library, absent = as the checkpoint says.

    Attributes:
        item: template of an item's text over any of its fields, such as ``"{title}. {brand}"``; a missing field leaves
            no trace of its punctuation. Absent = the title, and the brand where the title does not name it.
        query_prompt, item_prompt: put before the text, as they are.
        max_length: tokens of one sequence, special ones counted; what is longer is truncated, and counted.
        max_query_tokens: the query is cut to as many before it is joined with an item; absent = query and item are cut
            together, the longer one first.
        store: whether items' tokens or vectors are kept in the item store; false = all texts come in the request.
        vectors: how items' vectors are stored, where they are.
        dimensions: of a vector that are kept, for checkpoints trained so (Matryoshka); absent = all.
    """

    item: str = ""
    query_prompt: str | None = None
    item_prompt: str | None = None
    max_length: int | None = pydantic.Field(None, ge=4)
    max_query_tokens: int | None = pydantic.Field(None, ge=1)
    store: bool = True
    vectors: Literal["fp32", "fp16", "int8"] = "fp32"
    dimensions: int | None = pydantic.Field(None, ge=1)


class Similar(Settings):
    """How ``similar`` finds the nearest items of a catalogue above 50,000; below, every item is compared.

    Attributes:
        exact: compare every item whatever the catalogue's size: a million take 0.2 s and 2 GB.
        recall: least share of the exact 10 nearest that an index finds, measured when it is made; one that finds less
            is not kept, and every item is compared.
    """

    exact: bool = False
    recall: float = pydantic.Field(0.95, gt=0, le=1)


class Reference(Settings):
    """Scores from outside, which the reference variant must give; the build fails where it does not.

    Attributes:
        scores: JSON lines, a request each: ``query`` (or ``history``, ``user_id``, ``context``) and ``scores``, item id
            => score, written by the code that trained the ranker.
        tolerance: largest difference of one score.
        lists: candidate lists that the library which made the checkpoint scores itself; 0 = none.
    """

    scores: Path | None = None
    tolerance: float = pydantic.Field(1e-4, gt=0)
    lists: int = pydantic.Field(8, ge=0)


class FeatureTable(Settings):
    """One input of a network that comes as a file: how the kit makes this tensor; see ``builders/features/encoder.py``.

    Attributes:
        name: of the tensor as it is served, lower case.
        input: the file's own name of it; absent = ``name``.
        kind: ``dense`` (numbers), ``sparse`` (one id a field), ``multi_hot`` (a list of ids), ``tokens`` (a text's
            token ids) or ``vector`` (numbers from elsewhere).
        fields: raw fields that it is made of, a column each; absent = ``name``, the ids of a history, the query's text.
        source: what has the fields; ``item`` and ``user`` are stored, the others come with the request.
        size: at most so many ids or tokens; the width of a vector.
        log1p: of ``dense``: take ln(1 + x) first.
        mean, std: of ``dense``, a number a field, after ``log1p``.
        vocabularies: of ``sparse`` (a list a field) and ``multi_hot`` (one): known values. A value's id is
            1 + ``oov_buckets`` + its place; 0 = absent.
        vocabulary_files: in their place, text files with a value a line.
        oov_buckets: ids from 1 on that values outside the vocabulary share; 0 = such a value is absent.
        padding: of ``multi_hot``: where the zeros stand.
    """

    name: str = pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")
    input: str = ""
    kind: Literal["dense", "sparse", "multi_hot", "tokens", "vector"]
    fields: tuple[str, ...] = ()
    source: Literal["item", "user", "query", "history", "context"] = "item"
    size: int = pydantic.Field(0, ge=0)
    log1p: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    vocabularies: tuple[tuple[str, ...], ...] = ()
    vocabulary_files: tuple[Path, ...] = ()
    oov_buckets: int = pydantic.Field(1, ge=0)
    padding: Literal["front", "behind"] = "front"

    @pydantic.model_validator(mode="after")
    def _one_vocabulary(self) -> FeatureTable:
        if self.vocabularies and self.vocabulary_files:
            raise ValueError("both vocabularies and vocabulary_files, wanted one of the two")
        return self


Format = Literal["cross_encoder", "causal_reranker", "bi_encoder", "late_interaction", "onnx", "torch_export"]
FILE_FORMATS = ("onnx", "torch_export")
"""Formats of a single file, whose inputs the recipe declares."""


class Recipe(Settings):
    """A ranker from checkpoint to serving.

    Attributes:
        ranker: its name, the prefix of every model it becomes.
        module: ``<file relative to the project>:<class>`` of a :class:`builders.rankers.base.Ranker`.
        format: in place of ``module``: what the checkpoint of a library is, as ``python -m builders init`` finds it.
        text: how it reads query and items.
        reference: scores from outside that it must give.
        features: of the formats "onnx" and "torch_export": the file's inputs, in any order.
        score: of these formats: the output that is the score, by its name, or by its place where it has none; absent =
            the only one.
        trust_remote_code: whether Python code in the checkpoint's folder may run.
        backbone: Hugging Face checkpoint folder; absent = the packaged all-MiniLM-L6-v2.
        checkpoint: folder of the trained part; absent = untrained.
        variants: the first is the reference of the others.
        data: what it is judged on, see ``builders/data/evaluation.py``.
        serving: instances, threads and queue.
        gate: what each variant must keep of the first one's quality.
        machine: what serving costs.
        postprocess: how heads are combined, and the business rules.
        similar: of ``two_tower``, by whose vectors ``similar`` compares.
        slices: groups by which the quality report slices NDCG, see ``builders/evaluate/slices.py``; absent =
            those of ``data``.
        trained_on_judgements: whether it learned from judged training queries; then only the test queries judge it.
        trainer: ``<file>:<function>`` that trains it, called with (recipe, data folder); absent = nothing to train.
        training: the trainer's settings, typed where the trainer is the kit's; free where it is the user's own.
        root: where its relative paths start: the project for its own recipes, else the recipe's folder.
    """

    ranker: str = pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")
    module: str | None = pydantic.Field(None, pattern=r"^.+\.py:\w+$")
    format: Format | None = None
    text: Text = Text()
    reference: Reference = Reference()
    features: tuple[FeatureTable, ...] = ()
    score: str = ""
    trust_remote_code: bool = False
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
    similar: Similar = Similar()
    trainer: str | None = pydantic.Field(None, pattern=r"^.+\.py:\w+$")
    training: dict[str, Any] | TrainerSettings = pydantic.Field({})
    root: Path = REPOSITORY_ROOT

    @pydantic.model_validator(mode="after")
    def _one_maker(self) -> Recipe:
        if (self.module is None) == (self.format is None):
            found = "neither 'module' nor 'format'" if self.module is None else "both 'module' and 'format'"
            raise ValueError(f"{found}, wanted one: your own class, or a library's checkpoint ('builders init FOLDER')")
        if self.format is not None and self.checkpoint is None:
            raise ValueError(f"format '{self.format}' without 'checkpoint', wanted the folder or file that it is in")
        return self

    @pydantic.model_validator(mode="after")
    def _similar_has_a_reader(self) -> Recipe:
        if self.similar != Similar() and self.ranker != SIMILAR_BY:
            raise ValueError(f"[similar] of ranker '{self.ranker}': nothing reads it, similar compares by the vectors "
                             f"of '{SIMILAR_BY}'; leave it out")  # fmt: skip
        return self

    @pydantic.model_validator(mode="after")
    def _features_of_files(self) -> Recipe:
        is_file = self.format in FILE_FORMATS
        if is_file and not self.features:
            raise ValueError(f"format '{self.format}' without [[features]], wanted one for each input of the file; "
                             "'builders init FILE' writes a first form")  # fmt: skip
        if not is_file and (self.features or self.score):
            raise ValueError(f"[[features]] or score without a format of {' or '.join(FILE_FORMATS)}: nothing reads "
                             "them; a module of your own declares its features itself")  # fmt: skip
        return self

    @pydantic.model_validator(mode="after")
    def _reference_is_exact(self) -> Recipe:
        names = [variant.name for variant in self.variants]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"variants {', '.join(repeated)} stand there twice, wanted one name each")
        if (
            not self.variants[0].exact
            or self.variants[0].experimental
            or self.variants[0].runtime is not RUNTIMES["onnx"]
        ):
            raise ValueError(f"the first variant is {names[0]}, wanted one without steps for the runtime onnx: it is "
                             "the reference of the others")  # fmt: skip
        return self

    @pydantic.model_validator(mode="after")
    def _cached_scores_are_of_their_rows(self) -> Recipe:
        dependent = [each.name for each in self.variants if not (each.rows_independent or each.experimental)]
        if self.serving.score_cache_mb is not None and dependent:
            raise ValueError(f"score_cache_mb {self.serving.score_cache_mb} with {', '.join(dependent)}, whose scores "
                             "depend on the rows beside them; leave score_cache_mb out, or these variants, or make "
                             "them experimental: those are published without a score cache")  # fmt: skip
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
        RecipeError: not a file, not TOML, or any field missing, unknown, derived or out of range; all faults at once.

    Warns:
        FutureWarning: a field or step under its name until 0.1, see :mod:`builders.core.renames`.
    """
    root = _root_of(path)
    content = _content(path)
    table = settings_of(content.get("trainer"), root)
    content, faults = with_names_of_now(content, str(path), own_trainer=table is None)
    faults += [f"{name}: derived, not set: {DERIVED[name]}; leave it out" for name in DERIVED if name in content]
    content = {name: value for name, value in content.items() if name not in DERIVED}
    if content.get("training") and not content.get("trainer"):
        faults.append("training: nothing reads it, there is no 'trainer'; name one, or leave the table out")
    training = content.get("training", {})
    recipe, found = _validated(Recipe, {**content, "training": {}} if table else content)
    faults += found
    if table:
        training, found = _validated(table, training, "training")
        faults += found
    if recipe is None or faults:
        raise RecipeError(f"{path}: {'; '.join(faults)}")
    return recipe.model_copy(update={"root": root, "training": training})


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"no recipe at '{path}'; 'ls recipes' shows those of the kit") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); wanted a recipe's TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not TOML: {error}") from error


def _validated(model: type[M], content: Any, *within: str) -> tuple[M | None, list[str]]:
    """The typed content, or None with its faults."""
    try:
        return model.model_validate(content), []
    except pydantic.ValidationError as error:
        return None, faults_of(error, model, *within)


def _root_of(path: Path) -> Path:
    folder = path.resolve().parent
    return REPOSITORY_ROOT if folder.is_relative_to(REPOSITORY_ROOT) else folder


def load_recipes(folder: Path = REPOSITORY_ROOT / "recipes") -> dict[str, Recipe]:
    """Ranker name => recipe, for every ``*.toml`` of the folder. Raises: RecipeError, as :func:`load_each`."""
    return load_each(sorted(folder.glob("*.toml")))


def load_each(paths: Iterable[Path]) -> dict[str, Recipe]:
    """Ranker name => recipe. Raises: RecipeError, also where two recipes have one ranker's name."""
    recipes: dict[str, Recipe] = {}
    origin: dict[str, Path] = {}
    for path in paths:
        recipe = load_recipe(path)
        if recipe.ranker in recipes:
            raise RecipeError(
                f"{path}: ranker '{recipe.ranker}' is also that of {origin[recipe.ranker]}; its models and its files "
                "under build/ go by that name: give one of the two another, or leave one out"
            )
        recipes[recipe.ranker], origin[recipe.ranker] = recipe, path
    return recipes
