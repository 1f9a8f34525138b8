"""What the pages for search engines and for Go and Java say is what is answered.

The connectors are read from the page, filled in as the engines do, sent to a gateway, and its answers are read as the
engines read them. What an engine does is written here after its documentation and its source:

- https://github.com/opensearch-project/ml-commons: CohereRerankPreProcessFunction, CohereRerankPostProcessFunction
- https://github.com/elastic/elasticsearch: the custom service's RerankResponseParser
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import struct
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server import TritonServer
from tests.support.gateways import PATIENT_S

pytestmark = pytest.mark.server
HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
ENGINES, WITHOUT_PYTHON = HOW_TO / "rerank-in-a-search-engine.md", HOW_TO / "call-it-from-go-or-java.md"
KEY = "k" * 32
QUERY = 'red "running" shoes\n'
TEXTS = ["a blue mug", 'red "running" shoe', "red shoe, waterproof"]


def marked(page: Path, mark: str) -> list[str]:
    """Code under ``<!-- mark -->``."""
    return re.findall(
        rf"<!-- {mark} -->\n```\w+\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def connector(engine: str) -> dict[str, Any]:
    """The body of the page's request to the engine."""
    [code] = marked(ENGINES, f"replayed: {engine}")
    return dict(json.loads(code.partition("\n")[2]))


def filled(template: str, **values: str) -> str:
    """``${name}`` each."""
    for name, value in values.items():
        template = template.replace("${" + name + "}", value)
    assert "${" not in template
    return template


@pytest.fixture
def keyed(started: Callable[..., httpx2.Client], tmp_path: Path) -> httpx2.Client:
    """A gateway as the page has it: with a key, and a model `rank`."""
    (tmp_path / "keys").write_text(KEY)
    (tmp_path / "keys").chmod(0o600)
    return started(models={"rank": "rank"}, key_file=tmp_path / "keys")


def posted(client: httpx2.Client, url: str, headers: Mapping[str, str], body: str) -> Any:
    path = url.removeprefix("http://gateway.example:8080")
    assert path.startswith("/")
    sent = {"content-type": "application/json", **{name.lower(): value for name, value in headers.items()}}
    answer = client.post(path, content=body.encode(), headers=sent)
    assert answer.status_code == 200, answer.text
    return answer.json()


def as_by_the_gateway(client: httpx2.Client) -> list[float]:
    """A score a text."""
    answer = client.post(
        "/v2/rerank", json={"query": QUERY, "documents": TEXTS}, headers={"authorization": f"Bearer {KEY}"}
    )
    return [score for _, score in sorted((one["index"], one["relevance_score"]) for one in answer.json()["results"])]


# ---------------------------------------------------------------- search engines
def test_opensearch_gets_a_score_for_each_hit(keyed: httpx2.Client) -> None:
    made = connector("opensearch")
    [action] = made["actions"]
    assert action["pre_process_function"].endswith("cohere.rerank")
    # The built-in function gives texts as a JSON array, the query as the inside of a JSON string, and top_n = all.
    parameters = {
        **made["parameters"],
        "documents": json.dumps(TEXTS),
        "query": json.dumps(QUERY)[1:-1],
        "top_n": str(len(TEXTS)),
    }
    body = filled(action["request_body"], **{f"parameters.{name}": value for name, value in parameters.items()})
    headers = {name: filled(value, **{"credential.key": KEY}) for name, value in action["headers"].items()}
    answer = posted(keyed, action["url"], headers, body)
    scores = {result["index"]: float(result["relevance_score"]) for result in answer["results"]}
    assert [scores[place] for place in range(len(TEXTS))] == as_by_the_gateway(keyed)


def test_elasticsearch_gets_index_and_score_by_its_paths(keyed: httpx2.Client) -> None:
    settings = connector("elasticsearch")["service_settings"]
    body = filled(settings["request"], query=json.dumps(QUERY), input=json.dumps(TEXTS))
    headers = {name: filled(value, api_key=KEY) for name, value in settings["headers"].items()}
    answer = posted(keyed, settings["url"], headers, body)
    paths = settings["response"]["json_parser"]
    found = dict(zip(at(answer, paths["reranked_index"]), at(answer, paths["relevance_score"]), strict=True))
    assert [found[place] for place in range(len(TEXTS))] == as_by_the_gateway(keyed)


def at(answer: Any, path: str) -> list[Any]:
    """A JSONPath of the form ``$.list[*].field``."""
    [(listed, field)] = re.findall(r"^\$\.(\w+)\[\*\]\.(\w+)$", path)
    return [one[field] for one in answer[listed]]


def test_json_of_the_page_is_json() -> None:
    blocks = re.findall(r"```json\n(.*?)^```", ENGINES.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 8
    for block in blocks:
        json.loads(block.partition("\n")[2])


# ---------------------------------------------------------------- without Python
@pytest.mark.parametrize("place", range(3))
def test_a_curl_command_of_the_page_is_answered(triton: TritonServer, place: int) -> None:
    commands = marked(WITHOUT_PYTHON, "tested: curl")
    assert len(commands) == 3
    command = (
        commands[place].replace("http://127.0.0.1:8000", triton.http_url).replace("200000", str(int(PATIENT_S * 1e6)))
    )
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    if place == 0:
        assert {tensor["name"] for tensor in answer["inputs"]} >= {"query", "item_ids", "item_texts", "top_k"}
        return
    ids, scores = (output["data"] for output in answer["outputs"])
    assert len(ids) == len(scores) == 2
    assert scores == sorted(scores, reverse=True)


def words_of(command: str) -> tuple[str, str, dict[str, Any]]:
    """Service, method and message of a grpcurl command."""
    words = shlex.split(command)
    service, _, method = words[-1].partition("/")
    return service, method, json.loads(words[words.index("-d") + 1])


def test_the_grpcurl_commands_of_the_page_are_answered(triton: TritonServer) -> None:
    """grpcurl makes the message of JSON as protobuf's own JSON form does, which is what makes it here."""
    rank, ready = map(words_of, marked(WITHOUT_PYTHON, "tested: grpcurl"))
    with grpc.insecure_channel(triton.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert {service for service, _, _ in (rank, ready)} == {
            service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
        }
        asked = json_format.ParseDict(rank[2], service_pb2.ModelInferRequest())
        asked.parameters["timeout"].int64_param = int(PATIENT_S * 1e6)
        answer = getattr(stub, rank[1])(asked, timeout=PATIENT_S)
        told = getattr(stub, ready[1])(
            json_format.ParseDict(ready[2], service_pb2.ModelReadyRequest()), timeout=PATIENT_S
        )
    assert told.ready
    assert [output.name for output in answer.outputs] == ["ranked_ids", "scores"]
    ids, scores = answer.raw_output_contents
    assert texts_in(ids) == ["B07", "B01"]
    assert len(struct.unpack("<2f", scores)) == 2


def test_the_pages_base64_is_what_it_says() -> None:
    [rank, _] = marked(WITHOUT_PYTHON, "tested: grpcurl")
    _, _, message = words_of(rank)
    query, item_ids, _ = message["inputs"]
    assert [base64.b64decode(text) for text in query["contents"]["bytes_contents"]] == [b"red running shoes"]
    assert [base64.b64decode(text) for text in item_ids["contents"]["bytes_contents"]] == [b"B07", b"B01", b"B02"]


def texts_in(raw: bytes) -> list[str]:
    """As the page says: each one's length in four little-endian bytes, and its UTF-8."""
    found = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        found.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return found
