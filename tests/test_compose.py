"""compose.yaml and what it mounts: valid, consistent with the Dockerfile, and asking for metrics that Triton exports.

compose_spec.json is the Compose Specification's schema as docker-compose 1.29.2 (Apache-2.0, PyPI) carries it,
unchanged.
"""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import promql_parser
import pytest
import tritonclient.grpc as grpc
import yaml

from builders.core.workspace import SHARED_CODE
from server import TritonServer
from tests.support.repositories import inputs_of, python_model, vector, write_model
from tests.test_dockerfile import stages

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
TRITONS = {"triton-gpu": "server", "triton-cpu": "server-cpu"}
SCHEMA = ROOT / "tests" / "compose_spec.json"

# Exported where there is a GPU, so never here: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md
GPU_METRICS = {
    "nv_gpu_utilization": {"gpu_uuid"},
    "nv_gpu_memory_total_bytes": {"gpu_uuid"},
    "nv_gpu_memory_used_bytes": {"gpu_uuid"},
}
OF_PROMETHEUS = {"up": set[str]()}
ADDED_BY_PROMETHEUS = {"instance", "job"}

PANELS = {"stat", "timeseries"}  # https://grafana.com/docs/grafana/latest/panels-visualizations/visualizations/
GRID_WIDTH = 24
GRAFANA_VARIABLES = {"$__rate_interval": "1m", "$instance": ".*", "$model": ".*"}

COUNTS = python_model(
    {"y": "tensor('x')"},
    "[counter.add(1) for counter in self.counters]; self.gauges.update()",
    "from types import SimpleNamespace; from served import Counter, StoreGauges; "
    "self.counters = [Counter(name, 'as served models do', args['model_name']) for name in {names}]; "
    "store = SimpleNamespace(size_bytes=1, free_readers=lambda: 1, age_s=1.0); "
    "self.gauges = StoreGauges(store, args['model_name'])",
)
VECTORS = """
max_batch_size: 0
input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
"""
ENSEMBLE = """
platform: "ensemble"
ensemble_scheduling { step [{ model_name: "step" model_version: -1
  input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } }] }
"""


def dashboard() -> dict[str, Any]:
    (path,) = (DEPLOY / "grafana" / "dashboards").glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


def datasource() -> dict[str, Any]:
    path = DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (found,) = yaml.safe_load(path.read_text())["datasources"]
    return dict(found)


def panel_expressions() -> Iterator[tuple[str, str]]:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in GRAFANA_VARIABLES.items():
                expression = expression.replace(name, value)
            yield panel["title"], expression


def expressions() -> list[tuple[str, str]]:
    return [*panel_expressions(), *((rule["alert"], rule["expr"]) for rule in alerts())]


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """Every metric that an expression reads, with its matchers."""
    found = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def labels_of(metrics: str) -> dict[str, set[str]]:
    """Name => labels of every series of a /metrics answer (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", metrics, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def mounts(service: str) -> dict[str, tuple[str, str]]:
    """Target => (source, mode) of a service's mounts."""
    parts = [volume.split(":") for volume in COMPOSE["services"][service]["volumes"]]
    return {target: (source, mode[0] if mode else "rw") for source, target, *mode in parts}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Name => labels of what the real server exports after one request, started with the container's options."""
    code = [ROOT / "served" / "served.py", ROOT / "backends" / "common" / "score_cache.py"]
    counters = sorted({name for path in code for name in re.findall(r'"(tritonrank_\w+_total)"', path.read_text())})
    repository = tmp_path_factory.mktemp("models")
    step = write_model(repository, "step", 'backend: "python"' + VECTORS, COUNTS.replace("{names}", str(counters)))
    for source in SHARED_CODE:
        shutil.copy(source, step / "1")
    write_model(repository, "rank", VECTORS + ENSEMBLE)
    options = [word for word in stages()["server"].command("ENTRYPOINT") if word.startswith("--metrics-")]
    with TritonServer(
        repository, ["rank"], grpc_port=0, http_port=0, metrics_port=0, extra_arguments=options
    ) as server:
        grpc.InferenceServerClient(server.grpc_url).infer("rank", inputs_of(x=vector(1.0)))
        with urllib.request.urlopen(server.metrics_url) as answer:
            return labels_of(answer.read().decode())


def test_the_compose_file_is_valid_by_the_specifications_schema() -> None:
    jsonschema.Draft7Validator(json.loads(SCHEMA.read_text())).validate(COMPOSE)


def test_every_mounted_file_of_the_checkout_exists() -> None:
    sources = {source for service in COMPOSE["services"] for source, _ in mounts(service).values()}
    made_by_the_builders = {"./item_store"}
    made_by_hand = {"./gateway.keys"}

    assert [
        source
        for source in sources - made_by_the_builders - made_by_hand
        if source[0] == "." and not (ROOT / source).exists()
    ] == []
    assert {source for source in sources if source[0] != "."} == COMPOSE["volumes"].keys()


@pytest.mark.parametrize("service", TRITONS)
def test_models_are_mounted_read_only_and_the_item_store_writable(service: str) -> None:
    assert mounts(service) == {"/models": ("./model_repository", "ro"), "/item_store": ("./item_store", "rw")}


@pytest.mark.parametrize(("service", "target"), TRITONS.items())
def test_a_triton_is_built_from_its_stage_and_has_its_health_check(service: str, target: str) -> None:
    described = COMPOSE["services"][service]
    _, *check = described["healthcheck"]["test"]

    assert described["build"]["target"] == target
    assert check == stages()[target].command("HEALTHCHECK")


def test_the_gateway_asks_triton_by_the_name_that_both_have_among_callers() -> None:
    described, stage = COMPOSE["services"]["gateway"], stages()["gateway"]
    options = dict(word.split("=") for word in stage.command("CMD"))
    (exposed,) = stage.values("EXPOSE")

    assert described["build"]["target"] == "gateway"
    assert {COMPOSE["services"][name]["networks"]["callers"]["aliases"][0] for name in TRITONS} == {
        options["--server"].partition(":")[0]
    }
    assert options["--key-file"] in mounts("gateway")
    assert described["ports"] == [f"127.0.0.1:{exposed}:{exposed}"]


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_ports_are_published_on_this_machines_own_address_only(service: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in COMPOSE["services"][service]["ports"])


@pytest.mark.parametrize(("service", "target"), TRITONS.items())
def test_a_triton_publishes_the_ports_that_its_image_exposes(service: str, target: str) -> None:
    (exposed,) = stages()[target].values("EXPOSE")

    assert [port.split(":")[-1] for port in COMPOSE["services"][service]["ports"]] == exposed.split()


def test_triton_and_grafana_share_no_network_and_metrics_are_reached_from_inside_only() -> None:
    networks = {name: set(service["networks"]) for name, service in COMPOSE["services"].items()}

    assert networks == {
        **{name: {"callers", "metrics"} for name in TRITONS},
        "gateway": {"callers"},
        "prometheus": {"metrics", "dashboards"},
        "grafana": {"dashboards"},
    }
    assert COMPOSE["networks"]["metrics"] == {"internal": True}


def test_only_the_gpu_profile_asks_for_a_gpu() -> None:
    with_gpu = {name for name, service in COMPOSE["services"].items() if "gpu" in json.dumps(service.get("deploy"))}

    assert with_gpu == {"triton-gpu"}
    assert {name: service["profiles"] for name, service in COMPOSE["services"].items() if "profiles" in service} == {
        "triton-gpu": ["gpu"],
        "triton-cpu": ["cpu"],
        "gateway": ["gateway"],
    }


def test_every_foreign_image_has_a_version() -> None:
    foreign = [service["image"] for service in COMPOSE["services"].values() if "build" not in service]

    assert [image for image in foreign if not re.search(r":v?\d+\.\d+\.\d+$", image)] == []


def test_nothing_in_the_compose_file_is_a_password() -> None:
    variables = [name for service in COMPOSE["services"].values() for name in service.get("environment", {})]

    assert [name for name in variables if re.search("PASSWORD|SECRET|TOKEN", name)] == []


def test_prometheus_scrapes_both_tritons_by_their_common_name() -> None:
    scraped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0][
        "targets"
    ]
    names = {COMPOSE["services"][service]["networks"]["metrics"]["aliases"][0] for service in TRITONS}
    (exposed,) = stages()["server"].values("EXPOSE")

    assert scraped == [f"{name}:{exposed.split()[1]}" for name in names]


def test_prometheus_reads_the_alerts_where_they_are_mounted() -> None:
    (rules,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["rule_files"]

    assert mounts("prometheus")[rules] == ("./deploy/alerts.yml", "ro")


def test_grafana_finds_dashboards_and_prometheus_where_they_are() -> None:
    path = DEPLOY / "grafana" / "provisioning" / "dashboards" / "tritonrank.yml"
    (provider,) = yaml.safe_load(path.read_text())["providers"]
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    prometheus_port = COMPOSE["services"]["prometheus"]["ports"][0].split(":")[-1]

    assert mounts("grafana")[provider["options"]["path"]] == ("./deploy/grafana/dashboards", "ro")
    assert (DEPLOY / "grafana/dashboards" / PurePosixPath(home).relative_to(provider["options"]["path"])).is_file()
    assert datasource()["url"] == f"http://prometheus:{prometheus_port}"


def test_every_panel_asks_the_provisioned_datasource() -> None:
    asking = [*dashboard()["panels"], *dashboard()["templating"]["list"]]
    asking += [target for panel in dashboard()["panels"] for target in panel["targets"]]

    assert [one["datasource"] for one in asking] == [{"type": "prometheus", "uid": datasource()["uid"]}] * len(asking)


def test_panels_are_of_kinds_that_grafana_has_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert {panel["type"] for panel in panels} == PANELS
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < GRID_WIDTH


@pytest.mark.parametrize(("name", "expression"), expressions(), ids=lambda value: value[:40])
@pytest.mark.server
def test_an_expression_reads_metrics_and_labels_that_triton_exports(
    name: str, expression: str, exported: dict[str, set[str]]
) -> None:
    known = {**exported, **GPU_METRICS, **OF_PROMETHEUS}
    read = selectors(expression)

    assert read
    for selector in read:
        assert selector.name in known
        assert {matcher.name for matcher in selector.matchers.matchers} <= known[selector.name] | ADDED_BY_PROMETHEUS


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert re.fullmatch(r"\d+m", rule["for"])
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alerts_text_uses_labels_that_its_expression_leaves(rule: dict[str, Any]) -> None:
    used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
    kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rule["expr"]))))
    unaggregated = ADDED_BY_PROMETHEUS | GPU_METRICS["nv_gpu_utilization"]

    assert used <= (kept or unaggregated)
