"""One command for a nightly job: train anew, compare with what was there, publish as a candidate.

The network that is there goes on until the new one has been accepted: training writes into a folder beside the
checkpoint, variants are built in a build folder of their own, and both take their places by rename. ``rank`` serves
what it served until somebody publishes the candidate. A job that was stopped goes on where it was: training that ended
is not repeated while data and recipe are the same.

Clicks teach: a feedback log joins what is trained on (:mod:`builders.feedback.beside`). What is judged by is the data
alone, but for purchases, where what comes last in time is what is judged by.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from builders.build import build_ranker
from builders.compress.context import Say
from builders.core.errors import GATE_FAILED, BuilderError
from builders.core.files import put_in_place, replaced_folder, write_atomically
from builders.core.keys import changed, digests
from builders.core.locks import only_writer
from builders.core.recipe import Recipe
from builders.core.workspace import PROJECT, Workspace
from builders.data.beir import JudgedQueries
from builders.data.evaluation import evaluation_data, halves, judging_queries
from builders.evaluate.judge import BuiltRanker
from builders.evaluate.metrics import Interval, mean_of, paired_interval
from builders.feedback.beside import Feedback
from builders.publish import catalogue, endpoints, lifecycle
from builders.publish.manifest import read_manifest
from builders.publish.prune import tables_read
from builders.rankers.base import Ranker
from builders.rankers.load import load_ranker

Trainer = Callable[[Recipe, Path], object]


class RetrainingError(BuilderError):
    """There is nothing that could be trained anew."""


class RetrainedWorse(BuilderError):
    """The new network loses more than the recipe's gate allows; what was there goes on serving."""

    exit_code = GATE_FAILED


@dataclasses.dataclass(frozen=True)
class Report:
    """What a retraining found.

    Attributes:
        changed: names of the inputs that differ from those of the last accepted training.
        queries: that judged both.
        before, after: mean NDCG@10 of the recipe's first variant; None without a network before.
        difference: after minus before with its 95 % interval.
        candidate: the endpoint that serves the new network, and its generation.
        feedback: what the log added, a line each.
    """

    ranker: str
    changed: tuple[str, ...]
    queries: int
    before: float | None
    after: float
    difference: Interval | None
    candidate: str = ""
    feedback: tuple[str, ...] = ()

    def __str__(self) -> str:
        why = f"changed since the last time: {', '.join(self.changed) or 'nothing'}"
        if self.difference is None:
            found = f"NDCG@10 {self.after:.4f}, nothing to compare with"
        else:
            found = f"NDCG@10 {self.before:.4f} => {self.after:.4f} ({self.difference})"
        served = self.candidate or "not published"
        return f"{self.ranker}: {why}; {found} on the {self.queries} queries that gate; {served}"


def retrain(
    recipe: Recipe,
    trainer: Trainer,
    folder: Path,
    say: Say = print,
    workspace: Workspace = PROJECT,
    data_note: str = "own",
    feedback: Feedback | None = None,
) -> Report:
    """Refresh what is published, train, build, compare, publish as ``<endpoint>_candidate``.

    Args:
        trainer: writes the checkpoint of the recipe that it is given.
        folder: of the data.
        data_note: which data that is, for the manifest.
        feedback: logs to train on beside it.

    Raises:
        RetrainingError: the recipe has no checkpoint to write.
        DatasetError: data or log cannot be used.
        RetrainedWorse: the new network loses more than ``gate.max_judged_loss``.
    """
    if recipe.checkpoint is None:
        raise RetrainingError(f"recipe of {recipe.ranker}: no checkpoint (a folder), so nothing that training writes")
    with only_writer(workspace.build / "retrain" / recipe.ranker, f"a retraining of {recipe.ranker}", say):
        return _Retraining(recipe, trainer, folder, say, workspace, data_note, feedback).run()


class _Retraining:
    def __init__(
        self,
        recipe: Recipe,
        trainer: Trainer,
        folder: Path,
        say: Say,
        workspace: Workspace,
        data_note: str,
        feedback: Feedback | None,
    ) -> None:
        assert recipe.checkpoint is not None
        self.recipe, self.trainer, self.say, self.workspace = recipe, trainer, say, workspace
        self.data_note = data_note
        self.checkpoint = recipe.path(recipe.checkpoint)
        self.beside = self.checkpoint.with_name(f"{self.checkpoint.name}.retrained")
        self.own = workspace.build / "retrain" / recipe.ranker
        self.trial = dataclasses.replace(workspace, build=self.own / "build")
        self.taught: tuple[str, ...] = ()
        self.training_folder = folder
        if feedback is not None:
            self.training_folder = self.own / "data"
            self.taught = feedback.write_beside(recipe.data, folder, self.training_folder)
        # what clicks say judges no ranker; of purchases the latest are judged by, and must not have been trained on
        judged_by = self.training_folder if recipe.data == "purchases" else folder
        self.data: JudgedQueries = evaluation_data(recipe.data, judged_by)
        self.inputs = digests({
            "data": self.data.digest, "files": _data_files(folder), "training": recipe.model_dump(mode="json"),
            **({"feedback": _data_files(self.training_folder)} if feedback else {}),
        })  # fmt: skip

    def run(self) -> Report:
        for line in self.taught:
            self.say(f"{self.recipe.ranker}: feedback: {line}")
        state = self._state()
        last = dict(state.get("accepted", {}))
        if last == self.inputs and self.checkpoint.exists():
            self.say(f"{self.recipe.ranker}: nothing changed since the last retraining; nothing is trained")
            built = self._built(self.recipe, self.workspace)
            return self._published(self._report(None, built, ()), built)
        before = self._built(self.recipe, self.workspace) if self.checkpoint.exists() else None
        if before is not None and self._is_published(before):
            self._fill_item_store(before)
        self._train(state)
        after = self._built(self.recipe.model_copy(update={"checkpoint": self.beside}), self.trial)
        report = self._report(before, after, changed(last, self.inputs))
        self._check(report)
        if before is not None:
            self._keep_checkpoint(before)
        self._take_the_place()
        self._write_state(accepted=self.inputs)
        return self._published(report, self._built(self.recipe, self.workspace))

    # ------------------------------------------------------------ steps
    def _is_published(self, built: BuiltRanker) -> bool:
        models = {built.recipe.model_name(each.variant) for each in built.variants}
        return not models.isdisjoint(read_manifest(self.workspace.repository).scorers)

    def _fill_item_store(self, built: BuiltRanker) -> None:
        """Of this network, and of those before it that may still be served."""
        earlier = earlier_rankers(self.recipe, built.ranker, self.workspace)
        older = [dataclasses.replace(built, ranker=each) for each in earlier]
        catalogue.fill_item_store([built, *older], self.say, self.workspace)

    def _keep_checkpoint(self, before: BuiltRanker) -> None:
        """Its versions are served until somebody publishes others, and their items change meanwhile."""
        if catalogue.stores_items(before.ranker):
            name = before.ranker.preprocess.parameters["item_features_version"]
            with replaced_folder(_checkpoints_folder(self.recipe, self.workspace) / name) as fresh:
                shutil.copytree(self.checkpoint, fresh, dirs_exist_ok=True)

    def _drop_checkpoints(self) -> None:
        for checkpoint in _kept_checkpoints(self.recipe, self.workspace):
            if not _is_read(checkpoint, self.workspace):
                self.say(
                    f"{self.recipe.ranker}: no version reads the features {checkpoint.name} any more: {checkpoint} goes"
                )
                shutil.rmtree(checkpoint)

    def _train(self, state: Mapping[str, Any]) -> None:
        if state.get("trained") == self.inputs and self.beside.exists():
            self.say(f"{self.recipe.ranker}: trained already on this data; going on")
            return
        shutil.rmtree(self.beside, ignore_errors=True)
        self.trainer(self.recipe.model_copy(update={"checkpoint": self.beside}), self.training_folder)
        self._write_state(trained=self.inputs)

    def _built(self, recipe: Recipe, workspace: Workspace) -> BuiltRanker:
        return build_ranker(recipe, self.data, self.say, workspace)

    def _report(self, before: BuiltRanker | None, after: BuiltRanker, why: tuple[str, ...] | list[str]) -> Report:
        now = self._ndcg(after)
        if before is None:
            return Report(self.recipe.ranker, tuple(why), len(now), None, mean_of(now), None)
        then = self._ndcg(before)
        difference = paired_interval(now, then)
        return Report(self.recipe.ranker, tuple(why), len(now), mean_of(then), mean_of(now), difference)

    def _ndcg(self, built: BuiltRanker) -> dict[str, float]:
        """NDCG@10 of the queries that gate: those that only report decide nothing."""
        gating = halves(judging_queries(self.recipe, self.data)).validation.queries
        found = built.variants[0].figures["ndcg_at_10_by_query"]
        return {query_id: found[query_id] for query_id in gating}

    def _check(self, report: Report) -> None:
        if report.difference is None or not report.before:
            return
        lost, limit = report.difference.low / report.before, self.recipe.gate.max_judged_loss
        if lost < -limit:
            raise RetrainedWorse(
                f"{report}: the interval's lower end is {lost:+.1%} of what was there, allowed -{limit:.1%} "
                f"(gate.max_judged_loss). {self.checkpoint} and what is served stay as they are; the new network lies "
                f"in {self.beside}. Look at the data first ('builders data'), then at its training"
            )

    def _take_the_place(self) -> None:
        """Checkpoint first, then what was built of it: of two that do not belong together, a build notices by keys."""
        _replace_folder(self.beside, self.checkpoint)
        _replace_folder(self.trial.ranker_folder(self.recipe.ranker), self.workspace.ranker_folder(self.recipe.ranker))

    def _published(self, report: Report, built: BuiltRanker) -> Report:
        self._fill_item_store(built)
        endpoints.publish_rankers([built], {}, self.data_note, self.say, self.workspace, moves=False)
        kind = built.ranker.endpoint.name
        served = endpoints.published_variants(self.workspace).get(kind)
        passed = [built.recipe.model_name(each.variant) for each in built.variants if each.passed]
        if not passed:
            raise RetrainedWorse(f"{self.recipe.ranker}: no variant passed its gate; the reasons stand above")
        variant = served if served in passed else passed[0]
        generation = lifecycle.promote(self.workspace.repository, f"{kind}_{lifecycle.CANDIDATE}", f"{kind}_{variant}")
        self._drop_checkpoints()
        candidate = f"{kind}_{lifecycle.CANDIDATE} = {generation.name}"
        report = dataclasses.replace(report, candidate=candidate, feedback=self.taught)
        write_atomically(self.own / "report.json", json.dumps(dataclasses.asdict(report), indent=2) + "\n")
        return report

    # ------------------------------------------------------------ state
    def _state(self) -> dict[str, Any]:
        path = self.own / "state.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def _write_state(self, **now: Mapping[str, str]) -> None:
        write_atomically(self.own / "state.json", json.dumps({**self._state(), **now}) + "\n")


def earlier_rankers(recipe: Recipe, present: Ranker, workspace: Workspace = PROJECT) -> list[Ranker]:
    """The recipe's networks before its present one whose stored items a published version still reads."""
    own = present.preprocess.parameters.get("item_features_version")  # absent where all that is read comes in requests
    return [
        load_ranker(recipe.model_copy(update={"checkpoint": checkpoint.absolute()}))
        for checkpoint in _kept_checkpoints(recipe, workspace)
        if checkpoint.name != own and _is_read(checkpoint, workspace)
    ]


def _is_read(checkpoint: Path, workspace: Workspace) -> bool:
    """A kept checkpoint is named by the version of its features."""
    return checkpoint.name in {table.rpartition("@")[2] for table in tables_read(workspace.repository)}


def _kept_checkpoints(recipe: Recipe, workspace: Workspace) -> list[Path]:
    return sorted(_checkpoints_folder(recipe, workspace).glob("[!.]*"))


def _checkpoints_folder(recipe: Recipe, workspace: Workspace) -> Path:
    return workspace.build / "retrain" / recipe.ranker / "checkpoints"


def _data_files(folder: Path) -> dict[str, Path]:
    """Every file of the data, since a trainer may read any."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _replace_folder(fresh: Path, target: Path) -> None:
    """What is not there is left out."""
    if fresh.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as beside:
            put_in_place(fresh, target, Path(beside) / "old")
