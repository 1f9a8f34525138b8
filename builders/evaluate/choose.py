"""Which variant to ship: the cheapest of those measured that keeps every limit, and why each other one fell out.

``make pareto`` writes the figures (:mod:`perf.pareto`) in the form that stands here. Measures nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from builders.compress.quantize_graph import LayerCost
from builders.core.errors import BuilderError
from builders.core.files import write_atomically
from builders.core.recipe import load_recipe
from builders.core.workspace import PROJECT, Workspace
from builders.data.evaluation import evaluation_data

M = TypeVar("M", bound=pydantic.BaseModel)

BYTES_PER_MB = 1e6
CHOICE = "choice"
METRIC_NAMES = {"ndcg": "NDCG@10", "hit_rate": "HitRate@10", "auc": "AUC", "accuracy": "accuracy"}
SIGNIFICANT = 4
"""Digits of a relaxed limit, rounded to the side that admits."""


class ChoiceError(BuilderError):
    """No variant can be chosen; the message says what to relax or to run."""


# ---------------------------------------------------------------- what was measured
class Figures(pydantic.BaseModel):
    """Kept as JSON; nothing unknown, nothing changed afterwards."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class VariantFigures(Figures):
    """One variant of a recipe: quality offline, the rest as served on one machine.

    Attributes:
        model: ``<ranker>_<variant>``, the scorer's model name.
        endpoint: what a search service calls, "rank" or "recommend".
        experimental: built only to be compared.
        steps: of its chain, a line each, as the recipe writes them.
        layers: what quantizing each alone costs, the most costly first, where that was measured to keep some in FP32.
        metric: the gate's, a key of ``METRIC_NAMES``; ``quality`` is its mean over ``queries``, higher is better.
        half: of the judged queries that ``queries`` counts: "validation", or "validation and test" where they are few.
        sampled: how candidates were drawn, "1 + 99 sampled"; "" = all that were judged.
        quality_ratio: over the reference variant's.
        difference_low, difference_high: interval of ``quality`` minus the reference's, query by query, at
            ``confidence``; None for the reference.
        fidelity_ndcg, fidelity_top_10_overlap: with the reference's own order, over ``fidelity_lists`` lists.
        gate: its verdict and reasons; ``own_limits`` stood in place of the recipe's.
        requests: measured; latencies are theirs, client side.
        candidates_per_s: median over rounds.
        ratio, ratio_low, ratio_high: candidates/s over the reference's of the same round: median, lowest, highest.
        size_bytes: of the files of its graphs.
        memory_rss_bytes, memory_pss_bytes: of the server's process tree that serves this variant alone, after load:
            resident, and with shared pages shared out; medians over rounds.
        build_s: what building took when it was built.
        cost_per_million: candidates, in ``currency``, at the recipe's price of a machine-hour.
        disturbed_rounds: in which other programs took too much of the machine, however often it was measured again.
        on_front: of those that passed their gate none is better in one of quality, p99 and cost and no worse in the
            others.
    """

    model: str
    ranker: str
    variant: str
    endpoint: str
    is_reference: bool
    experimental: bool
    steps: tuple[str, ...]
    layers: tuple[LayerCost, ...] = ()
    metric: str
    quality: float
    queries: int
    half: str = ""
    sampled: str = ""
    quality_ratio: float
    difference_low: float | None = None
    difference_high: float | None = None
    confidence: float | None = None
    fidelity_ndcg: float | None = None
    fidelity_top_10_overlap: float | None = None
    fidelity_lists: int | None = None
    kendall_tau: float | None = None
    top_10_overlap: float | None = None
    gate_passed: bool
    gate: str
    own_limits: dict[str, float] = {}
    requests: int
    disturbed_rounds: int = 0
    p50_ms: float
    p99_ms: float
    candidates_per_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    size_bytes: int
    memory_rss_bytes: int
    memory_pss_bytes: int
    build_s: float
    cost_per_million: float
    currency: str
    on_front: bool = False

    @property
    def half_text(self) -> str:
        """For a reader, behind a number of queries; "" in figures of before there were halves."""
        return f" ({self.half})" if self.half else ""

    @property
    def metric_name(self) -> str:
        """For a reader, with how candidates were drawn."""
        name = METRIC_NAMES.get(self.metric, self.metric)
        return f"{name} ({self.sampled})" if self.sampled else name


class ParetoReport(Figures):
    """All variants of one recipe, measured in interleaved rounds.

    Attributes:
        recipe: its path.
        generated: the data is made up and the quality figures mean nothing.
        machine: as :class:`perf.machine.Machine`.
        price_per_hour: of that machine, in ``currency``, as the recipe says.
        concurrency: requests at once.
        candidates: of a request, mean.
        failures: model => why it was not measured.
        data_kind, data_folder, data_digest: what quality was judged on; None where an earlier version wrote the report.
    """

    ranker: str
    recipe: Path
    written: str
    generated: bool
    machine: dict[str, Any]
    price_per_hour: float
    currency: str
    rounds: int
    window_ms: int
    concurrency: int
    candidates: float
    rows: tuple[VariantFigures, ...]
    failures: dict[str, str] = {}
    data_kind: str | None = None
    data_folder: Path | None = None
    data_digest: str | None = None


def pareto_folder(workspace: Workspace = PROJECT) -> Path:
    """Where reports and the choice lie."""
    return workspace.build / "report" / "pareto"


def read_report(ranker: str, workspace: Workspace = PROJECT) -> ParetoReport:
    """What ``make pareto`` measured last. Raises: ChoiceError: nothing, or in a form of another version."""
    path = pareto_folder(workspace) / f"{ranker}.json"
    again = f"run 'make pareto RECIPES=recipes/{ranker}.toml'"
    return _read(path, ParetoReport, f"no measurements of {ranker} at '{path}'", again)


def _read(path: Path, kind: type[M], missing: str, again: str) -> M:
    """A file of this version's form. Raises: ChoiceError: none, or of another form; ``again`` says what to run."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ChoiceError(f"{missing}; {again}") from None
    except pydantic.ValidationError as error:
        raise ChoiceError(
            f"{path}: {error.error_count()} fields are not as this version writes them; {again}"
        ) from None


# ---------------------------------------------------------------- choosing
@dataclasses.dataclass(frozen=True)
class Limit:
    """One thing asked of a variant.

    Attributes:
        option: of ``builders choose``.
        text: the option's and the variant's value for a reader, with ``{}`` for the number.
        value: of a variant, in the limit's unit.
    """

    option: str
    limit: float
    at_least: bool
    text: str
    value: Mapping[str, float]

    def keeps(self, model: str) -> bool:
        """Whether the variant keeps it; NaN does not."""
        value = self.value[model]
        return value >= self.limit if self.at_least else value <= self.limit

    def relaxation(self, model: str) -> float:
        """By what share of itself the limit must give way to admit the variant; infinite where nothing would."""
        share = abs(self.value[model] - self.limit) / self.limit if self.limit else math.inf
        return share if math.isfinite(share) else math.inf

    def admitting(self, model: str) -> float:
        """The limit that admits the variant, rounded to its side."""
        value = self.value[model]
        step = 10.0 ** (math.floor(math.log10(abs(value))) - SIGNIFICANT + 1) if value else 1.0
        rounded = math.floor(value / step) * step if self.at_least else math.ceil(value / step) * step
        return float(f"{rounded:.{SIGNIFICANT}g}")

    def reason(self, model: str) -> str:
        """Why the variant falls out."""
        side = "below" if self.at_least else "above"
        return f"{self.text.format(_number(self.value[model]))} is {side} the limit of {_number(self.limit)}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What came out.

    Attributes:
        chosen: None where no variant keeps all limits.
        others: model => a sentence that says why it fell out.
        relax: what to ask less of, where nothing was chosen.
    """

    chosen: VariantFigures | None
    others: dict[str, str]
    relax: str = ""


def choose(
    rows: Sequence[VariantFigures],
    slo_p99_ms: float,
    min_ndcg_ratio: float,
    max_size_mb: float | None = None,
    min_rate: float | None = None,
) -> Choice:
    """The cheapest variant that passed its gate and keeps every limit; equal costs go by quality, then p99.

    Args:
        rows: of one recipe.
        slo_p99_ms: highest p99.
        min_ndcg_ratio: of the gate's metric, over the reference variant's.
        max_size_mb: on disk, 10^6 bytes.
        min_rate: candidates/s.
    """
    limits = _limits(rows, slo_p99_ms, min_ndcg_ratio, max_size_mb, min_rate)
    others = {row.model: sentence for row in rows if (sentence := _fault(row, limits))}
    fit = sorted((row for row in rows if row.model not in others), key=_by_cost)
    if not fit:
        return Choice(None, others, _relax([row for row in rows if row.gate_passed], limits))
    others |= {row.model: _dearer(row, fit[0]) for row in fit[1:]}
    return Choice(fit[0], {row.model: others[row.model] for row in rows if row is not fit[0]})


def _limits(
    rows: Sequence[VariantFigures],
    slo_p99_ms: float,
    min_ndcg_ratio: float,
    max_size_mb: float | None,
    min_rate: float | None,
) -> list[Limit]:
    metric = rows[0].metric_name if rows else "quality"
    limits = [
        Limit("--min-ndcg-ratio", min_ndcg_ratio, True, f"{metric} of {{}} times the reference's",
              {row.model: row.quality_ratio for row in rows}),
        Limit("--slo-p99-ms", slo_p99_ms, False, "p99 of {} ms", {row.model: row.p99_ms for row in rows}),
    ]  # fmt: skip
    if max_size_mb is not None:
        sizes = {row.model: row.size_bytes / BYTES_PER_MB for row in rows}
        limits.append(Limit("--max-size-mb", max_size_mb, False, "size of {} MB", sizes))
    if min_rate is not None:
        rates = {row.model: row.candidates_per_s for row in rows}
        limits.append(Limit("--min-rate", min_rate, True, "rate of {} candidates/s", rates))
    return limits


def _by_cost(row: VariantFigures) -> tuple[float, float, float, str]:
    return row.cost_per_million, -row.quality, row.p99_ms, row.model


def _fault(row: VariantFigures, limits: Sequence[Limit]) -> str:
    """Empty where the variant passed its gate and keeps all limits."""
    if not row.gate_passed:
        reasons, _, _ = row.gate.removeprefix(f"{row.model}: ").partition(". ")  # figures and advice come after
        return f"{row.model} failed its gate: {reasons}."
    faults = [limit.reason(row.model) for limit in limits if not limit.keeps(row.model)]
    return f"{row.model} fell out: {', and '.join(faults)}." if faults else ""


def _dearer(row: VariantFigures, chosen: VariantFigures) -> str:
    if row.cost_per_million == chosen.cost_per_million:
        return (
            f"{row.model} keeps all limits and costs the same, with {row.metric_name} {row.quality:.4f} against "
            f"{chosen.quality:.4f} and p99 {_number(row.p99_ms)} ms against {_number(chosen.p99_ms)} ms."
        )
    more = row.cost_per_million / chosen.cost_per_million - 1
    return f"{row.model} keeps all limits and is {more:.1%} dearer: {cost_text(row)}."


def _relax(passed: Sequence[VariantFigures], limits: Sequence[Limit]) -> str:
    """The one limit that, giving way least as a share of itself, admits a variant."""
    if not passed:
        return "No variant passed its gate, so no limit helps; see [gate] of the recipe."
    broken = {row.model: [limit for limit in limits if not limit.keeps(row.model)] for row in passed}
    single = [(row, limit) for row in passed for limit in broken[row.model] if len(broken[row.model]) == 1]
    finite = [(row, limit) for row, limit in single if math.isfinite(limit.relaxation(row.model))]
    if finite:
        row, limit = min(finite, key=lambda pair: (pair[1].relaxation(pair[0].model), _by_cost(pair[0])))
        return f"Relax {_change(limit, row.model)}: that admits {row.model}."
    if len(single) < len(passed):
        return "No single limit that gives way admits a variant: the lines above say which limits each breaks."
    return "No limit that gives way would admit a variant: its figures are not finite."


def _change(limit: Limit, model: str) -> str:
    admitting = limit.admitting(model)
    return f"{limit.option} from {_number(limit.limit)} to {_number(admitting)} ({admitting / limit.limit - 1:+.1%})"


def cost_text(row: VariantFigures) -> str:
    """With its unit."""
    return f"{row.cost_per_million:.3g} {row.currency} per million candidates"


def summary(row: VariantFigures) -> str:
    """What a reader compares, in one line."""
    return (
        f"{cost_text(row)}, p99 {_number(row.p99_ms)} ms over {row.requests:,} requests, "
        f"{row.metric_name} {row.quality:.4f} ({row.quality_ratio:.1%} "
        f"of the reference's) over {row.queries} queries{row.half_text}, "
        f"{_number(row.size_bytes / BYTES_PER_MB)} MB, {row.candidates_per_s:,.0f} candidates/s"
    )


def _number(value: float) -> str:
    """Four significant digits at least, no exponent where it can be helped."""
    return f"{value:,.0f}" if abs(value) >= 10**SIGNIFICANT else f"{value:.{SIGNIFICANT}g}"


# ---------------------------------------------------------------- kept for publishing
class Chosen(Figures):
    """What ``make publish`` publishes: the choice made last.

    Attributes:
        recipe: its path.
        limits: what was asked.
    """

    model: str
    recipe: Path
    limits: dict[str, float]
    figures: VariantFigures


def read_choice(workspace: Workspace = PROJECT) -> Chosen:
    """What was chosen last. Raises: ChoiceError: nothing was, or by another version."""
    path = pareto_folder(workspace) / f"{CHOICE}.json"
    again = "run 'python -m builders choose --slo-p99-ms 50 --min-ndcg-ratio 0.995' with limits of yours"
    return _read(path, Chosen, f"no choice at '{path}'", again)


def chosen_variant(workspace: Workspace = PROJECT) -> str:
    """Its model name, such as ``cross_encoder_int8_onnx``. Raises: ChoiceError, as :func:`read_choice`."""
    return read_choice(workspace).model


def run_choose(
    recipe: Path | None,
    slo_p99_ms: float,
    min_ndcg_ratio: float,
    max_size_mb: float | None = None,
    min_rate: float | None = None,
    *,
    workspace: Workspace = PROJECT,
) -> tuple[Choice, list[str]]:
    """Read the figures, choose, and keep the choice.

    Args:
        recipe: its path; None = the only one that was measured.

    Returns:
        The choice, and what to tell the user, line by line.

    Raises:
        ChoiceError: nothing was measured, the data has changed since, or it is not clear which recipe is meant.
    """
    report = read_report(load_recipe(recipe).ranker if recipe else _only_measured(workspace), workspace)
    _check_data(report)
    choice = choose(report.rows, slo_p99_ms, min_ndcg_ratio, max_size_mb, min_rate)
    unmeasured = [f"{model} was not measured: {reason.splitlines()[0]}" for model, reason in report.failures.items()]
    lines = [*choice.others.values(), *unmeasured]
    if choice.chosen is None:
        return choice, [*lines, f"No variant of {report.ranker} keeps all limits. {choice.relax}"]
    asked = {
        "slo_p99_ms": slo_p99_ms, "min_ndcg_ratio": min_ndcg_ratio, "max_size_mb": max_size_mb, "min_rate": min_rate,
    }  # fmt: skip
    limits = {name: limit for name, limit in asked.items() if limit is not None}
    kept = Chosen(model=choice.chosen.model, recipe=report.recipe, limits=limits, figures=choice.chosen)
    path = pareto_folder(workspace) / f"{CHOICE}.json"
    write_atomically(path, kept.model_dump_json(indent=2) + "\n")
    lines.append(f"{choice.chosen.model} is the cheapest that keeps all limits: {summary(choice.chosen)}.")
    return choice, [*lines, f"written: {path}; 'make publish' points '{choice.chosen.endpoint}' at it"]


def _check_data(report: ParetoReport) -> None:
    """Raises: ChoiceError: queries, judgements or products are others than those that the report is of."""
    if report.data_kind is None or report.data_folder is None or not report.data_folder.is_dir():
        return
    if evaluation_data(report.data_kind, report.data_folder).digest != report.data_digest:
        raise ChoiceError(
            f"the data in {report.data_folder} has changed since {report.ranker} was measured ({report.written}); run "
            f"'make pareto RECIPES={report.recipe}'"
        )


def _only_measured(workspace: Workspace) -> str:
    """The ranker. Raises: ChoiceError: none was measured, or several."""
    measured = [path.stem for path in sorted(pareto_folder(workspace).glob("*.json")) if path.stem != CHOICE]
    if not measured:
        raise ChoiceError("no measurements yet; run 'make pareto'")
    if len(measured) > 1:
        raise ChoiceError(f"measured are {', '.join(measured)}, wanted one; say --recipe recipes/{measured[0]}.toml")
    return measured[0]
