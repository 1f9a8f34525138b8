"""The kit as the tests build and serve it: in a workspace of its own, never in the developer's.

The workspace is kept between runs, and what is current in it is not built again. Variants that fail their gate on this
machine are published, too: the tests are about how they are served. Run as a program, it builds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from builders.build import build_ranker
from builders.core.recipe import Recipe, load_recipes
from builders.core.workspace import PROJECT, REPOSITORY_ROOT, Workspace
from builders.data.evaluation import evaluation_data
from builders.data.find import DatasetError, JudgedQueries, find_data
from builders.evaluate.judge import BuiltRanker
from builders.publish.catalogue import fill_item_store
from builders.publish.endpoints import DEFAULT_PUBLISHED, by_endpoint, publish_rankers

FOLDER = PROJECT.build / "test-kit"
WORKSPACE = Workspace(build=FOLDER, repository=FOLDER / "model_repository", item_store=FOLDER / "item_store")
JUDGING_QUERIES = 10
FIDELITY_LISTS = 10
"""Of a variant's figures, which nobody reads here."""
DEMO = "cross_encoder"
"""On the data that ``make demo`` builds it on, whose test takes it from here: its INT8 variant takes a minute."""


def build() -> None:
    """Build what is missing of every recipe whose data is there, as ``make repository`` does, but without a gate."""
    source = find_data()
    rankers = [_built(recipe, data) for recipe, data in _with_data(source.folder)]
    fill_item_store(rankers, workspace=WORKSPACE)
    published = by_endpoint(rankers, list(DEFAULT_PUBLISHED.values()))
    publish_rankers(rankers, published, source.kind, workspace=WORKSPACE, gated=False)


def _built(recipe: Recipe, data: JudgedQueries) -> BuiltRanker:
    """Judged on few requests, stored with all items."""
    judged = data if recipe.ranker == DEMO else _few(data)
    built = build_ranker(recipe, judged, workspace=WORKSPACE, fidelity_lists=FIDELITY_LISTS)
    return dataclasses.replace(built, data=data)


def _few(data: JudgedQueries) -> JudgedQueries:
    return data.only(list(data.subset("test").queries)[:JUDGING_QUERIES])


def _with_data(folder: Path) -> Iterator[tuple[Recipe, JudgedQueries]]:
    for recipe in load_recipes().values():
        try:
            yield recipe, evaluation_data(recipe.data, folder)
        except DatasetError as error:
            print(f"{recipe.ranker}: skipped, {error}")


# ---------------------------------------------------------------- what tests leave alone
DEVELOPERS = (
    PROJECT.repository,
    PROJECT.item_store,
    PROJECT.build / "rankers",
    REPOSITORY_ROOT / "clients" / "tritonrank_client" / "contracts.json",
)
"""What ``make`` writes for whoever works here."""


@dataclasses.dataclass
class Untouched:
    """Tells whether files were written, made or removed since it last looked: by size and time of change."""

    paths: Sequence[Path] = DEVELOPERS
    seen: Mapping[Path, tuple[int, int]] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.look()

    def look(self) -> None:
        """Take what is there now as it shall stay."""
        self.seen = self._now()

    def touched(self) -> list[str]:
        """Paths that differ from what was seen."""
        now = self._now()
        return sorted(str(path) for path in {*self.seen, *now} if self.seen.get(path) != now.get(path))

    def _now(self) -> dict[Path, tuple[int, int]]:
        files = [file for path in self.paths for file in (path, *path.rglob("*")) if file.is_file()]
        states = {file: file.stat() for file in files}
        return {file: (state.st_size, state.st_mtime_ns) for file, state in states.items()}


if __name__ == "__main__":
    build()
