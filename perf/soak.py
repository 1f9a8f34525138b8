"""A year of a shop in minutes: steady load beside everything that is done to a repository, and no wrong answer.

A copy of this checkout with two small rankers of its own is built and served on generated data. While two clients ask
``rank`` and ``recommend`` at a steady rate, one job after another refreshes the catalogue, adds items, trains anew,
publishes, rolls back, tries and retires candidates and prunes, each as the command line that users type; some are
killed at a random moment. Every score of every answer is then compared with torch's: for a checkpoint that ``rank`` may
have served while the request ran, on a content that the item may have had while the request ran. After a kill both the
state of before and that of after may be served, until a job of the same kind ends well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.table import Table
from tritonrank_client import RankClient, TritonRankError

from perf.errors import PerfError
from perf.kit.data import (
    REPOSITORY_ROOT,
    JudgedQueries,
    Product,
    Recipe,
    Request,
    Workspace,
    evaluation_data,
    load_judged,
    load_recipe,
    write_generated,
    write_judged,
)
from perf.kit.rankers import Ranker, load_ranker
from perf.kit.served import Manifest, read_manifest
from server import TritonServer, control

CANDIDATES, RATE_PER_S, TIMEOUT_S = 20, 15.0, 10.0
KILLED = 0.25
"""Share of the jobs that are killed."""
TOLERANCE = 1e-4
NEW = "new"
"""How the ids of items begin that come and go."""
UNSCORED = np.finfo(np.float32).min
FOREVER = float("inf")
RANKERS = {"rank": "soak_rank", "recommend": "soak_recommend"}
NOT_COPIED = (
    ".git",
    ".venv*",
    "build",
    "item_store",
    "model_repository",
    "checkpoints",
    "recipes",
    ".*_cache",
    "*.pyc",
)

MODULE = '''
"""Scores of a price and a brand, times what "training" found: every training gives other scores in the same order."""
import json

import torch
from torch import nn

from builders.features import dense, history, sparse, tokens
from builders.rankers.backbone import packaged_backbone


class Soaked(nn.Module):
    tokenizer_file = str(packaged_backbone() / "tokenizer.json")
    features = (
        ASKED,
        dense("price", ["price"], log1p=True),
        sparse("brand", ["brand"], vocabularies=[()], oov_buckets=50),
    )

    def __init__(self, scale):
        super().__init__()
        torch.manual_seed(7)
        self.asked, self.brands = nn.Embedding(ASKED_ROWS, 4), nn.Embedding(60, 4)
        self.register_buffer("scale", torch.tensor(float(scale)))

    @classmethod
    def from_checkpoint(cls, folder):
        return cls(json.loads((folder / "scale.json").read_text()))

    def forward(self, asked, price, brand):
        pair = (self.asked(asked).mean(dim=1) * self.brands(brand[:, 0])).sum(dim=1, keepdim=True)
        return self.scale * (pair + 0.3 * price)


def train(recipe, folder):
    checkpoint = recipe.path(recipe.checkpoint)
    checkpoint.mkdir(parents=True)
    (checkpoint / "scale.json").write_text((folder / "scale.txt").read_text())
'''
ASKED = {
    "rank": ('tokens("asked", "query", 16)', "30522"),
    "recommend": ('history("asked", 5, vocabulary=[], oov_buckets=200)', "202"),
}
RECIPE = """
ranker = "{name}"
module = "{folder}/{name}.py:Soaked"
trainer = "{folder}/{name}.py:train"
checkpoint = "checkpoints/{name}"

[gate]
fidelity_lists = 20

[[variants]]
name = "fp32_onnx"
"""


@dataclasses.dataclass(frozen=True)
class Answer:
    """One request as it was answered. error: of one that was not."""

    endpoint: str
    asked: str
    start_s: float
    end_s: float
    scores: Mapping[str, float]
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Span:
    """What may be served from ``start_s`` to ``end_s`` (time.monotonic): a checkpoint's scale, or an item's content."""

    value: Any
    start_s: float
    end_s: float = FOREVER


class Served(Protocol):
    """A server that runs."""

    @property
    def grpc_url(self) -> str:
        """host:port."""

    @property
    def http_host(self) -> str:
        """Where HTTP listens."""

    @property
    def http_port(self) -> int:
        """Its port."""

    @property
    def admin_key(self) -> str:
        """What control of models asks for."""


class Timeline:
    """Key => the values that it may have had, and when."""

    def __init__(self) -> None:
        self._spans: dict[str, list[Span]] = {}

    def may_become(self, key: str, value: Any, since_s: float) -> None:
        """From now on this value, too."""
        self._spans.setdefault(key, []).append(Span(value, since_s))

    def is_now(self, key: str, value: Any, at_s: float) -> None:
        """From now on only this value."""
        spans = self._spans.setdefault(key, [])
        spans[:] = [
            dataclasses.replace(span, end_s=at_s) if span.end_s == FOREVER and span.value != value else span
            for span in spans
        ]
        if not any(span.end_s == FOREVER for span in spans):
            spans.append(Span(value, at_s))

    def may_be(self, key: str, start_s: float, end_s: float) -> list[Any]:
        """The values of some moment in between."""
        spans = self._spans.get(key, ())
        found = [span.value for span in spans if span.start_s <= end_s and span.end_s >= start_s]
        return [value for place, value in enumerate(found) if value not in found[:place]]

    def __contains__(self, key: str) -> bool:
        return key in self._spans

    def keys(self) -> list[str]:
        """In the order of their first value."""
        return list(self._spans)


@dataclasses.dataclass
class Found:
    """What a soak found. The counts of jobs are by name and outcome."""

    minutes: float
    jobs: Counter[str]
    answers: int
    scores: int
    wrong: list[str]
    errors: Counter[str]
    latency_ms: Mapping[str, tuple[float, float]]
    sizes: Mapping[str, Sequence[int]]

    @property
    def passed(self) -> bool:
        """No wrong answer, none lost."""
        return not self.wrong and not self.errors

    def to_json(self) -> str:
        """One line."""
        return json.dumps({**vars(self), "passed": self.passed})

    def table(self) -> Table:
        """Figure, value."""
        table = Table("figure", "found", title=f"Soak of {self.minutes:g} minutes", title_justify="left")
        for name, count in sorted(self.jobs.items()):
            table.add_row(name, str(count))
        table.add_row("answers, each score compared with torch", f"{self.answers:,} with {self.scores:,} scores")
        table.add_row("wrong answers", f"{len(self.wrong)} {'; '.join(self.wrong[:3])}")
        table.add_row("requests not answered", ", ".join(f"{n} {name}" for name, n in self.errors.items()) or "0")
        for name, (median, p99) in self.latency_ms.items():
            table.add_row(f"{name}: p50, p99", f"{median:.1f} ms, {p99:.1f} ms")
        for name, sizes in self.sizes.items():
            table.add_row(f"{name}: first, largest, last", f"{sizes[0]:,}, {max(sizes):,}, {sizes[-1]:,}")
        return table


def run_soak(minutes: float, console: Console, seed: int = 0) -> Found:
    """Build, serve, soak for so long, compare. Raises: ServerError, PerfError."""
    with tempfile.TemporaryDirectory(prefix="tritonrank_soak_") as folder:
        shop = Shop(Path(folder), seed)
        console.print("building two small rankers in a copy of this checkout", style="dim")
        shop.open()
        with TritonServer(
            shop.workspace.repository,
            ["rank", "recommend"],
            store=shop.workspace.item_store,
            verify="hash",
            grpc_port=0,
            http_port=0,
            metrics_port=0,
        ) as server:
            return Soak(shop, server, minutes, console, seed).run()


class Shop:
    """A copy of the checkout with its own recipes, data and catalogue; every job is a command line in it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.kit, self.data = folder, folder / "kit", folder / "data"
        self.draw = random.Random(seed)
        self.workspace = Workspace(self.kit / "build", self.kit / "model_repository", self.kit / "item_store")
        self.products: dict[str, Product] = {}
        self.scale = 1.0
        self.codes = {0, 3, -signal.SIGKILL}
        """With which a job may end."""
        self.rankers: dict[tuple[str, float], Ranker] = {}

    def open(self) -> None:
        """Everything built and published once."""
        shutil.copytree(REPOSITORY_ROOT, self.kit, ignore=shutil.ignore_patterns(*NOT_COPIED), dirs_exist_ok=True)
        for name in (".venv", ".venv-server"):
            (self.kit / name).symlink_to(REPOSITORY_ROOT / name)
        write_generated(self.data)
        self.products = dict(load_judged(self.data).products)
        (self.kit / "recipes").mkdir()
        (self.kit / "model_repository").mkdir()
        for endpoint, name in RANKERS.items():
            asked, rows = ASKED[endpoint]
            module = MODULE.replace("ASKED_ROWS", rows).replace("ASKED", asked)
            (self.kit / "recipes" / f"{name}.py").write_text(module, encoding="utf-8")
            text = RECIPE.format(name=name, folder=self.kit / "recipes") + (
                'data = "purchases"\n' if endpoint == "recommend" else ""
            )
            (self.kit / "recipes" / f"{name}.toml").write_text(_data_first(text), encoding="utf-8")
        for endpoint in RANKERS:
            self.retrain(endpoint)
            self.publish(endpoint)

    def recipe_path(self, endpoint: str) -> Path:
        """Of the endpoint's ranker."""
        return self.kit / "recipes" / f"{RANKERS[endpoint]}.toml"

    def retrain(self, endpoint: str, kill_after_s: float | None = None) -> int:
        """With another scale."""
        self.scale = round(self.scale * 1.01, 6)
        (self.data / "scale.txt").write_text(json.dumps(self.scale))
        return self.builders("retrain", self.recipe_path(endpoint), "--data", self.data, kill_after_s=kill_after_s)

    def publish(self, endpoint: str) -> int:
        """What was trained last."""
        return self.builders("publish", f"{RANKERS[endpoint]}_fp32_onnx", "--recipe", self.recipe_path(endpoint))

    def builders(self, *arguments: object, kill_after_s: float | None = None) -> int:
        """Run ``python -m builders``; returns its code, or minus the signal that ended it.

        Raises:
            PerfError: it ended with a trace or an error.
        """
        command = [sys.executable, "-m", "builders", *map(str, arguments)]
        process = subprocess.Popen(
            command, cwd=self.kit, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            told, _ = process.communicate(timeout=kill_after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            told, _ = process.communicate()
        if "Traceback" in told or process.returncode not in self.codes:
            raise PerfError(f"{' '.join(command)} ended with {process.returncode}: {told[-3000:]}")
        return process.returncode

    def ranker(self, endpoint: str, scale: float) -> Ranker:
        """By torch, with that checkpoint."""
        if (endpoint, scale) not in self.rankers:
            checkpoint = self.folder / "checkpoints" / f"{endpoint}_{scale}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "scale.json").write_text(json.dumps(scale))
            recipe: Recipe = load_recipe(self.recipe_path(endpoint))
            self.rankers[endpoint, scale] = load_ranker(recipe.model_copy(update={"checkpoint": checkpoint}))
        return self.rankers[endpoint, scale]


def _data_first(recipe: str) -> str:
    """A key of the recipe itself before its tables."""
    lines = recipe.strip().splitlines()
    own = [line for line in lines if line.startswith("data = ")]
    return "\n".join([*own, *(line for line in lines if line not in own)]) + "\n"


class Soak:
    """The run: clients, jobs, and afterwards the comparison."""

    timeout_s = TIMEOUT_S

    def __init__(self, shop: Shop, server: Served, minutes: float, console: Console, seed: int) -> None:
        self.shop, self.server, self.minutes, self.console = shop, server, minutes, console
        self.draw = random.Random(seed + 1)
        self.until_s = time.monotonic() + minutes * 60
        self.contents, self.scales = {endpoint: Timeline() for endpoint in RANKERS}, Timeline()
        self.answers: list[Answer] = []
        self.jobs: Counter[str] = Counter()
        self.sizes: dict[str, list[int]] = {}
        self.may_go: set[str] = set()
        """Items that come and go: an added product stays until a catalogue has held it, and nobody judged these."""
        self._known: dict[tuple[Any, ...], float] = {}
        self.judged = load_judged(shop.data)
        bought = evaluation_data("purchases", shop.data).products
        self.asked = {"rank": list(self.judged.queries.values())[:20], "recommend": list(bought)[:20]}
        for endpoint, products in (("rank", shop.products), ("recommend", bought)):
            for item_id, product in products.items():
                self.contents[endpoint].is_now(item_id, product, 0.0)
        for endpoint in RANKERS:
            self.scales.is_now(endpoint, self._published_scale(endpoint), 0.0)

    def run(self) -> Found:
        """Load and jobs side by side, then the comparison."""
        clients = [threading.Thread(target=self._ask, args=(endpoint,)) for endpoint in RANKERS]
        for client in clients:
            client.start()
        try:
            while time.monotonic() < self.until_s:
                self._next_job()
                self._measure_sizes()
        finally:
            self.until_s = 0.0
            for client in clients:
                client.join()
        self.console.print(f"comparing {len(self.answers):,} answers with torch", style="dim")
        return self._found()

    # ------------------------------------------------------------ load
    def _ask(self, endpoint: str) -> None:
        draw = random.Random(endpoint)
        with RankClient(self.server.grpc_url) as client:
            while time.monotonic() < self.until_s:
                start_s = time.monotonic()
                self.answers.append(self._answer(client, endpoint, draw))
                time.sleep(max(0.0, start_s + 1 / RATE_PER_S - time.monotonic()))

    def _answer(self, client: RankClient, endpoint: str, draw: random.Random) -> Answer:
        asked = draw.choice(self.asked[endpoint])
        item_ids = draw.sample(self.contents[endpoint].keys(), CANDIDATES)
        start_s = time.monotonic()
        try:
            if endpoint == "rank":
                ranked = client.rank(asked, item_ids, timeout_s=self.timeout_s)
            else:
                ranked = client.recommend([asked], item_ids, timeout_s=self.timeout_s)
        except TritonRankError as error:
            return Answer(endpoint, asked, start_s, time.monotonic(), {}, f"{type(error).__name__}: {error}")
        return Answer(endpoint, asked, start_s, time.monotonic(), dict(ranked))

    # ------------------------------------------------------------ jobs
    def _next_job(self) -> None:
        jobs = {
            "refresh": self._refresh, "add-items": self._add_items, "retrain": self._retrain,
            "publish": self._publish, "rollback": self._rollback, "candidate": self._candidate,
            "retire": self._retire, "prune": self._prune,
        }  # fmt: skip
        name = self.draw.choice(list(jobs))
        kill_after_s = self.draw.uniform(1.0, 12.0) if self.draw.random() < KILLED else None
        code = jobs[name](kill_after_s)
        outcome = {0: "done", 3: "refused by the gate", -signal.SIGKILL: "killed", None: "nothing to do"}[code]
        self.jobs[f"{name}: {outcome}"] += 1

    def _refresh(self, kill_after_s: float | None) -> int:
        """Other prices, some gone, some new: the whole catalogue."""
        products = self.shop.products.values()
        kept = [each for each in products if each.item_id not in self.may_go or self.draw.random() > 0.1]
        changed = {each.item_id: self._changed(each) for each in kept}
        code = self._bring_to({**changed, **self._new(5)}, "refresh", kill_after_s, whole=True)
        if code == 0:
            self.may_go = {item_id for item_id in self.shop.products if item_id.startswith(NEW)}
        return code

    def _add_items(self, kill_after_s: float | None) -> int:
        some = self.draw.sample(list(self.shop.products.values()), 20)
        fresh = {each.item_id: self._changed(each) for each in some}
        return self._bring_to({**fresh, **self._new(3)}, "add-items", kill_after_s, whole=False)

    def _bring_to(self, products: Mapping[str, Product], verb: str, kill_after_s: float | None, *, whole: bool) -> int:
        """Both contents may be served from the start on; once it has ended well, only the new one. The data that is
        trained on has the catalogue of the day, too."""
        wanted = dict(products) if whole else {**self.shop.products, **products}
        contents = self.contents["rank"]
        ids = dict.fromkeys([*contents.keys(), *wanted] if whole else products)
        self.shop.products = wanted
        start_s = time.monotonic()
        for item_id in ids:
            if item_id not in contents:
                contents.is_now(item_id, None, 0.0)
            contents.may_become(item_id, wanted.get(item_id), start_s)
        write_judged(dataclasses.replace(self.judged, products=wanted), self.shop.data)
        corpus = self.shop.data / "corpus.jsonl"
        if not whole:
            some = self.shop.folder / "some"
            some.mkdir(exist_ok=True)
            write_judged(JudgedQueries({}, dict(products), {}), some)
            corpus = (some / corpus.name).rename(self.shop.data / "some.jsonl")  # beside the mark of generated data
        code = self.shop.builders(verb, corpus, self.shop.recipe_path("rank"), kill_after_s=kill_after_s)
        if code == 0:
            now_s = time.monotonic()
            for item_id in ids:
                contents.is_now(item_id, wanted.get(item_id), now_s)
        return code

    def _retrain(self, kill_after_s: float | None) -> int:
        return self.shop.retrain(self._any_endpoint(), kill_after_s)

    def _publish(self, kill_after_s: float | None) -> int:
        endpoint = self._any_endpoint()
        variant = f"{RANKERS[endpoint]}_fp32_onnx"
        code = self.shop.builders(
            "publish", variant, "--recipe", self.shop.recipe_path(endpoint), kill_after_s=kill_after_s
        )
        self._load(endpoint)
        return code

    def _rollback(self, kill_after_s: float | None) -> int | None:
        endpoint = self._any_endpoint()
        if len(self._manifest().endpoints[endpoint]) < 2:
            return None
        code = self.shop.builders("rollback", endpoint, kill_after_s=kill_after_s)
        self._load(endpoint)
        return code

    def _candidate(self, kill_after_s: float | None) -> int:
        endpoint = self._any_endpoint()
        code = self.shop.builders("candidate", f"{RANKERS[endpoint]}_fp32_onnx", kill_after_s=kill_after_s)
        if f"{endpoint}_candidate" in self._manifest().endpoints:
            self._load(f"{endpoint}_candidate")
        return code

    def _retire(self, kill_after_s: float | None) -> int | None:
        name = f"{self._any_endpoint()}_candidate"
        if name not in self._manifest().endpoints:
            return None
        return self.shop.builders("retire", name, kill_after_s=kill_after_s)

    def _prune(self, kill_after_s: float | None) -> int:
        return self.shop.builders("prune", "--keep", 2, kill_after_s=kill_after_s)

    def _load(self, endpoint: str) -> None:
        """What a running server is told after a publication; both may answer meanwhile."""
        wanted = self._published_scale(endpoint) if endpoint in RANKERS else None
        if wanted is not None:
            self.scales.may_become(endpoint, wanted, time.monotonic())
        control.ask("load", endpoint, self.server.http_host, self.server.http_port, self.server.admin_key)
        if wanted is not None:
            self.scales.is_now(endpoint, wanted, time.monotonic())

    def _any_endpoint(self) -> str:
        return self.draw.choice(list(RANKERS))

    def _manifest(self) -> Manifest:
        return read_manifest(self.shop.workspace.repository)

    def _published_scale(self, endpoint: str) -> float:
        """By the checkpoint that the manifest names, whose hash tells which training it was."""
        manifest = self._manifest()
        built_from = manifest.built_from(manifest.served[endpoint])
        wanted = built_from["checkpoint"]["scale.json"]
        scale = 1.0
        while hashlib.sha256(json.dumps(scale).encode()).hexdigest() != wanted:
            scale = round(scale * 1.01, 6)
        return scale

    def _changed(self, product: Product) -> Product:
        if self.draw.random() < 0.5:
            return product
        return dataclasses.replace(product, price=round(self.draw.uniform(1, 200), 2))

    def _new(self, count: int) -> dict[str, Product]:
        like = self.draw.sample(list(self.shop.products.values()), count)
        ids = [f"{NEW}{self.draw.randrange(10**9)}" for _ in like]
        return {item_id: dataclasses.replace(each, item_id=item_id) for item_id, each in zip(ids, like, strict=True)}

    def _measure_sizes(self) -> None:
        for name in ("repository", "item_store"):
            folder: Path = getattr(self.shop.workspace, name)
            size = sum(path.stat().st_size for path in _files(folder))
            self.sizes.setdefault(f"{name}, bytes", []).append(size)
        versions = sum(path.name.isdigit() for path in self.shop.workspace.repository.glob("*/*"))
        self.sizes.setdefault("version folders", []).append(versions)

    # ------------------------------------------------------------ comparison
    def _found(self) -> Found:
        answered = [answer for answer in self.answers if not answer.error]
        wrong = [fault for answer in answered if (fault := self._fault(answer))]
        latency = {}
        for endpoint in RANKERS:
            spans_ms = [(each.end_s - each.start_s) * 1e3 for each in answered if each.endpoint == endpoint]
            latency[f"{endpoint}, n {len(spans_ms):,}"] = (
                float(np.percentile(spans_ms, 50)),
                float(np.percentile(spans_ms, 99)),
            )
        return Found(
            self.minutes,
            self.jobs,
            len(answered),
            sum(len(answer.scores) for answer in answered),
            wrong,
            Counter(answer.error for answer in self.answers if answer.error),
            latency,
            self.sizes,
        )

    def _fault(self, answer: Answer) -> str:
        """Why no checkpoint of that time explains the answer; "" where one does."""
        faults = []
        for scale in self.scales.may_be(answer.endpoint, answer.start_s, answer.end_s):
            unexplained = [
                (item_id, score)
                for item_id, score in answer.scores.items()
                if not any(
                    np.isclose(score, each, TOLERANCE, TOLERANCE) for each in self._may_be(answer, item_id, scale)
                )
            ]
            if not unexplained:
                return ""
            faults.append(f"{len(unexplained)} scores with scale {scale}, such as {unexplained[0]}")
        return f"{answer.endpoint} '{answer.asked}': {'; '.join(faults)}"

    def _may_be(self, answer: Answer, item_id: str, scale: float) -> Iterator[float]:
        for product in self.contents[answer.endpoint].may_be(item_id, answer.start_s, answer.end_s):
            yield float(UNSCORED) if product is None else self._by_torch(answer.endpoint, answer.asked, product, scale)

    def _by_torch(self, endpoint: str, asked: str, product: Product, scale: float) -> float:
        key = (endpoint, asked, product.item_id, product.price, scale)
        if key not in self._known:
            request = Request(asked) if endpoint == "rank" else Request("", history=(asked,))
            self._known[key] = float(self.shop.ranker(endpoint, scale).score(request, [product])[0])
        return self._known[key]


def _files(folder: Path) -> Iterator[Path]:
    """That are there now: builders write and remove meanwhile."""
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat():
                yield path
