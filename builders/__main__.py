"""``python -m builders VERB``: everything that happens before serving. Arguments only; see :mod:`builders.commands`.

A verb imports its body when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

# The kit reads checkpoints from folders only; a hub is never asked.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import typer

from builders.core.errors import FAILED, told_in_one_line
from builders.feedback.settings import LEAST_IMPRESSIONS, Bias

Data = Annotated[Path | None, typer.Option("--data", help="Folder with the data.")]
Recipes = Annotated[list[Path] | None, typer.Argument(help="Recipes; all of recipes/ when none is given.")]
Published = Annotated[
    list[str] | None, typer.Option(help="Variant that `rank` or `recommend` shall serve; repeatable.")
]

Force = Annotated[bool, typer.Option("--force", help="Although it fails its gate; the manifest says so.")]
FidelityLists = Annotated[
    int | None, typer.Option(min=1, help="Unjudged lists of the gate, in place of the recipe's: fewer are quicker.")
]

NewStore = Annotated[
    bool,
    typer.Option(
        "--new-store",
        help="Fill a new item store beside the present one and rename it into its place; to go from generated to real "
        "data, for example. Servers are started again after that.",
    ),
]

OwnRecipe = Annotated[Path | None, typer.Option("--recipe", help="The variant's, where it is not in recipes/.")]

FeedbackLogs = Annotated[
    list[Path], typer.Argument(help="Feedback logs: .jsonl, .parquet or .csv, see docs/reference/feedback-log.md.")
]

ClickBias = Annotated[
    Bias, typer.Option(help="Whether clicks are corrected by how likely their position is looked at.")
]
LeastImpressions = Annotated[
    float, typer.Option(min=1, help="Of a query and item; those seen less often are left out.")
]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def data(data: Data = None) -> None:
    """Find (or fetch, or generate) the data and say what it is."""
    from builders import commands

    commands.data(data=data)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="What the training wrote: a folder, a .onnx or a .pt2 file.")],
    name: Annotated[str | None, typer.Option(help="Of the ranker; none = made of the folder's.")] = None,
    out: Annotated[Path | None, typer.Option(help="The recipe's file; none = recipes/NAME.toml.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Python code in the folder may run.")
    ] = False,
    trained_on_judgements: Annotated[
        bool,
        typer.Option("--trained-on-judgements", help="It saw the data's training queries: only the others judge it."),
    ] = False,
) -> None:
    """Look at a checkpoint of sentence-transformers, transformers or PyLate, or at an ONNX or torch.export file, and
    write the recipe that serves it."""
    from builders import commands

    commands.init(
        folder=folder, name=name, out=out, trust_remote_code=trust_remote_code,
        trained_on_judgements=trained_on_judgements,
    )  # fmt: skip


@app.command()
def train(recipes: Recipes = None, data: Data = None) -> None:
    """Train the rankers of the recipes, each as its `trainer` says; writes their checkpoints."""
    from builders import commands

    commands.train(recipes=recipes, data=data)


@app.command()
def retrain(
    recipe: Annotated[Path, typer.Argument(help="With a trainer and a checkpoint.")],
    data: Data = None,
    feedback: Annotated[
        list[Path] | None,
        typer.Option(help="Feedback log to train on beside the data, see docs/reference/feedback-log.md; repeatable."),
    ] = None,
    bias: ClickBias = "none",
    least_impressions: LeastImpressions = LEAST_IMPRESSIONS,
) -> None:
    """Refresh, train anew, compare with what was there, and publish as `rank_candidate`: a nightly job."""
    from builders import commands

    commands.retrain(recipe=recipe, data=data, feedback=feedback, bias=bias, least_impressions=least_impressions)


@app.command()
def export(recipes: Recipes = None, data: Data = None) -> None:
    """Export, check, quantize and gate every variant of the recipes."""
    from builders import commands

    commands.export(recipes=recipes, data=data)


@app.command()
def engines(recipes: Recipes = None, require_tensorrt: bool = False, data: Data = None) -> None:
    """Build TensorRT engines where there is a TensorRT, gate and publish them; elsewhere say what was skipped."""
    from builders import commands

    commands.engines(recipes=recipes, require_tensorrt=require_tensorrt, data=data)


@app.command()
def bisect(
    variant: Annotated[str, typer.Argument(help="Such as cross_encoder_int8_onnx.")],
    recipe: OwnRecipe = None,
    data: Data = None,
) -> None:
    """Find the layers at which a variant's graph departs from FP32, and print the exclusions to add."""
    from builders import commands

    commands.bisect(variant=variant, recipe=recipe, data=data)


@app.command()
def quality(recipes: Recipes = None, data: Data = None) -> None:
    """Show quality and parity of every variant, offline, and the slice of queries that each ranker serves worst."""
    from builders import commands

    commands.quality(recipes=recipes, data=data)


@app.command()
def recommend_quality(recipes: Recipes = None, data: Data = None) -> None:
    """Judge the recommenders offline, over the whole catalogue, beside popularity and item-kNN (minutes)."""
    from builders import commands

    commands.recommend_quality(recipes=recipes, data=data)


@app.command()
def explain(
    ranker: Annotated[str, typer.Argument(help="A recipe's name, or its path.")],
    query: Annotated[str, typer.Option(help="A search query; none = the first judged request.")] = "",
    history: Annotated[list[str] | None, typer.Option(help="An item that the user took; repeatable.")] = None,
    items: Annotated[list[str] | None, typer.Option(help="A candidate; repeatable. None = judged ones.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a page of plots here.")] = None,
    data: Data = None,
) -> None:
    """Say what each token or field contributes to a candidate's score (integrated gradients)."""
    from builders import commands

    commands.explain(ranker=ranker, query=query, history=history, items=items, out=out, data=data)


@app.command("gate")
def gate_variant(
    variant: Annotated[str, typer.Argument(help="Such as cross_encoder_int8_onnx.")],
    recipe: OwnRecipe = None,
    data: Data = None,
    fidelity_lists: FidelityLists = None,
) -> None:
    """Judge a variant against its recipe's reference: figures, limits, and the queries that it serves worst."""
    from builders import commands

    commands.gate_variant(variant=variant, recipe=recipe, data=data, fidelity_lists=fidelity_lists)


@app.command()
def sensitivity(
    variant: Annotated[str, typer.Argument(help="One with a static int8 step.")],
    recipe: OwnRecipe = None,
    data: Data = None,
) -> None:
    """List the layers by what each costs when it alone is quantized; the worst are candidates for keep_fp32."""
    from builders import commands

    commands.sensitivity(variant=variant, recipe=recipe, data=data)


@app.command()
def repository(
    recipes: Recipes = None,
    data: Data = None,
    published: Published = None,
    fidelity_lists: FidelityLists = None,
    new_store: NewStore = False,
) -> None:
    """Build what is missing of all recipes, fill the item store and write the model repository."""
    from builders import commands

    commands.repository(
        recipes=recipes, data=data, published=published, fidelity_lists=fidelity_lists, new_store=new_store
    )


@app.command("build")
def build_recipe(
    recipe: Path,
    data: Data = None,
    published: Published = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Also this variant although it is experimental, such as bf16_openvino; repeatable."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also variants that fail their gate; kept in the manifest.")
    ] = False,
    fidelity_lists: FidelityLists = None,
    new_store: NewStore = False,
) -> None:
    """Take one ranker, yours for example, from its recipe to the model repository: export, parity, gate, store."""
    from builders import commands

    commands.build_recipe(
        recipe=recipe, data=data, published=published, variant=variant, force=force, fidelity_lists=fidelity_lists,
        new_store=new_store,
    )  # fmt: skip


@app.command()
def publish(
    variant: Annotated[str | None, typer.Argument(help="None = the choice of `choose`.")] = None,
    force: Force = False,
    recipe: OwnRecipe = None,
    data: Data = None,
) -> None:
    """Point `rank` (or `recommend`) at a variant, such as cross_encoder_int8_onnx: one rename. Rolls back likewise.

    A variant that the repository does not hold yet is built and gated before.
    """
    from builders import commands

    commands.publish(variant=variant, force=force, recipe=recipe, data=data)


@app.command()
def rollback(
    endpoint: Annotated[str, typer.Argument(help="Such as rank.")],
    to: Annotated[
        str | None, typer.Option(help="A kept generation or variant, see `status`; none = what it served before.")
    ] = None,
) -> None:
    """Make an endpoint serve again what it served before."""
    from builders import commands

    commands.rollback(endpoint=endpoint, to=to)


@app.command()
def candidate(
    variant: Annotated[str, typer.Argument(help="A published variant, such as dcn_v2_fp32_onnx.")],
    force: Force = False,
) -> None:
    """Publish a variant a second time as `rank_candidate` (`recommend_candidate`), to be tried beside `rank`."""
    from builders import commands

    commands.candidate(variant=variant, force=force)


@app.command()
def retire(endpoint: Annotated[str, typer.Argument(help="Such as rank_candidate.")]) -> None:
    """Publish an endpoint no more."""
    from builders import commands

    commands.retire(endpoint=endpoint)


@app.command()
def prune(
    keep: Annotated[int, typer.Option(min=1, help="Generations of every endpoint, with the one that it serves.")] = 3,
    steps_unused_days: Annotated[
        float, typer.Option(min=0, help="Of networks and graphs that builds keep between two steps of a variant.")
    ] = 90,
) -> None:
    """Remove versions that nothing published names and nothing can be rolled back to, tables of the item store that
    none of the rest reads, and steps of builds that nothing asks for; safe while serving."""
    from builders import commands

    commands.prune(keep=keep, steps_unused_days=steps_unused_days)


@app.command()
def sign(
    key: Annotated[Path, typer.Argument(help="PEM file: openssl genpkey -algorithm ed25519 -out key.pem")],
) -> None:
    """Sign the manifest, for `--verify signature`; $TRITONRANK_SIGNING_KEY does so at every publication."""
    from builders import commands

    commands.sign(key=key)


@app.command()
def status() -> None:
    """Show what each endpoint serves and since when, what it was built from, and what is kept to roll back to."""
    from builders import commands

    commands.status()


@app.command()
def choose(
    slo_p99_ms: Annotated[float, typer.Option(min=0, help="Highest p99.")],
    min_ndcg_ratio: Annotated[float, typer.Option(min=0, help="Of the gate's metric, over the reference's.")],
    recipe: Annotated[Path | None, typer.Option(help="None = the only one measured.")] = None,
    max_size_mb: Annotated[float | None, typer.Option(min=0)] = None,
    min_rate: Annotated[float | None, typer.Option(min=0, help="Candidates/s.")] = None,
) -> None:
    """Name the cheapest measured variant that keeps every limit, and why each other one fell out."""
    from builders import commands

    if not commands.choose(
        slo_p99_ms=slo_p99_ms, min_ndcg_ratio=min_ndcg_ratio, recipe=recipe, max_size_mb=max_size_mb, min_rate=min_rate
    ):
        raise typer.Exit(FAILED)


@app.command()
def refresh(
    corpus: Annotated[Path, typer.Argument(help="A corpus.jsonl, the whole catalogue; - = standard input.")],
    recipes: Annotated[
        list[Path] | None, typer.Argument(help="Recipes; the published ones of search data when none is given.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Some products: add and change, remove none.")] = False,
    allow_shrink: Annotated[
        bool, typer.Option("--allow-shrink", help="Although more than half of the items have gone.")
    ] = False,
) -> None:
    """Bring the item store to a catalogue, also while it is being served: what is new or changed is computed, what has
    gone is removed.

    A line `{"_id": "...", "deleted": true}` removes that product, with `--partial` too.
    """
    from builders import commands

    commands.refresh(corpus=corpus, recipes=recipes, partial=partial, allow_shrink=allow_shrink)


@app.command()
def add_items(corpus: Path, recipes: Recipes = None, attributes_only: bool = False) -> None:
    """Add or replace the products of a corpus.jsonl in the item store, also while it is being served.

    `--attributes-only`: just what business rules read, such as `in_stock`; takes a moment.
    """
    from builders import commands

    commands.add_items(corpus=corpus, recipes=recipes, attributes_only=attributes_only)


@app.command()
def add_users(users: Path, recipes: Recipes = None) -> None:
    """Add or replace users (JSON lines: `_id` and raw fields) in the item store, also while it is being served."""
    from builders import commands

    commands.add_users(users=users, recipes=recipes)


@app.command()
def index() -> None:
    """Make the index of `similar` anew, also while it is served. Writers of the item store do so where it is needed."""
    from builders import commands

    commands.index()


@app.command()
def tune(machine: str, instances: int = 2, threads: int | None = None) -> None:
    """Write configs/MACHINE.pbtxt beside every model; serve them with `make serve CONFIG=MACHINE`.

    Unless told, instances share the CPUs that this process may use; `python -m perf tune` measures which split is best.
    """
    from builders import commands

    commands.tune(machine=machine, instances=instances, threads=threads)


@app.command()
def feedback(
    logs: FeedbackLogs,
    out: Annotated[Path, typer.Option(help="Folder for the data; an earlier export there is replaced.")],
    corpus: Annotated[
        Path | None, typer.Option(help="A corpus.jsonl, for items without `features` in the log.")
    ] = None,
    bias: ClickBias = "none",
    least_impressions: LeastImpressions = LEAST_IMPRESSIONS,
) -> None:
    """Make judged training data of what users clicked and bought (docs/how-to/learn-from-clicks.md)."""
    from builders import commands

    commands.feedback(logs=logs, out=out, corpus=corpus, bias=bias, least_impressions=least_impressions)


@app.command()
def compare_online(
    logs: FeedbackLogs,
    baseline: Annotated[str, typer.Option(help="Variant as the log names it, such as two_tower_fp32_onnx@3.")],
    candidate: Annotated[str, typer.Option(help="The other; without `@`, all generations are meant.")],
    expected_share: Annotated[float, typer.Option(help="Of the users, that were to see the candidate.")] = 0.5,
) -> None:
    """Compare two variants by what users clicked and bought: an A/B test by user, or interleaved lists."""
    from builders import commands

    commands.compare_online(logs=logs, baseline=baseline, candidate=candidate, expected_share=expected_share)


@app.command()
def shadow_report(
    logs: Annotated[list[Path], typer.Argument(help="Written by a client's `Shadow` (`append_to(path)`).")],
    feedback: Annotated[
        list[Path] | None, typer.Option(help="Feedback logs of the same requests, for labels; repeatable.")
    ] = None,
) -> None:
    """Compare a candidate that saw live requests in the shadow with the ranker that answered them."""
    from builders import commands

    commands.shadow_report(logs=logs, feedback=feedback or [])


@app.command()
def recipe_reference() -> None:
    """Write docs/reference/recipe.md: every table and field of a recipe, from the models that parse one."""
    from builders.core.recipe_reference import write_reference

    typer.echo(f"written: {write_reference()}")


def main() -> None:
    """Run a verb; exit codes: see :mod:`builders.core.errors`."""
    with told_in_one_line():
        app()


if __name__ == "__main__":
    main()
