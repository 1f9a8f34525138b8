"""What was asked, by whom and after which history is written nowhere above debug level: in the code, and on the server.

The code is read by two rules, both of calls that print, warn or log above debug level:

- what handles requests (served models, backends) may write constants, counts (``len(...)``), a type's name and
  :data:`HARMLESS`, nothing else: not even an exception's text, which may quote whatever was at fault;
- client, gateway and launcher may write what they like but what has a name of :data:`ASKED`.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from builders.core.contract import HISTORY, ITEM_FIELDS, ITEM_IDS, MAX_QUERY_BYTES, QUERY, TOP_K
from builders.core.workspace import REPOSITORY_ROOT, SHARED_CODE
from builders.data.find import JudgedQueries
from server import TritonServer
from tests.support.endpoint import Array, integers, send, texts
from tests.support.repositories import VECTOR_CONFIG, infer, write_model
from tests.support.waiting import wait_until

HANDLES_REQUESTS = (
    "served/**/*.py",
    "backends/**/*.py",
    "builders/features/encoder.py",
)
OTHERS = ("clients/**/*.py", "gateway/*.py", "server/*.py")
ITS_OUTPUT_IS_THE_ANSWER = REPOSITORY_ROOT / "clients" / "tritonrank_client" / "_command.py"
"""Prints to whoever typed the query."""

HARMLESS = {"model_name", "where", "store_fault", "cache_path", "cache_fault", "FutureWarning"}
"""A model's name; a file and line of the code; what is wrong with the item store; where the score cache is, and what is
wrong with it; a warning's category."""
ASKED = re.compile(
    r"(quer(y|ies)|texts?|histor(y|ies)|events?|users?(_ids?)?|contexts?|item_(ids|fields)|fields|requests?|tensors?|"
    r"inputs?|payload|body|arrays?)$"
)
_LEVELS = {"log", "info", "warn", "warning", "error", "critical", "fatal", "exception"}
_TRITONS = {"log_info", "log_warn", "log_error"}


# ---------------------------------------------------------------- reading the code
def writing_calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that print, warn, or log above debug level."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _writes(ast.unparse(node.func)):
            yield node


def _writes(function: str) -> bool:
    owner, _, name = function.rpartition(".")
    if name in _TRITONS or (name in _LEVELS and "log" in owner.lower()):
        return True
    printed = function in ("print", "warnings.warn") or (owner == "traceback" and name.startswith("print"))
    return printed or (name.startswith("write") and owner.startswith(("sys.stdout", "sys.stderr")))


def told_beyond_harmless(source: str) -> list[str]:
    """Parts of what is written that are neither constants, counts, type names nor :data:`HARMLESS`."""
    return [
        ast.unparse(argument)
        for call in writing_calls(ast.parse(source))
        for argument in (*call.args, *(keyword.value for keyword in call.keywords))
        if not _harmless(argument)
    ]


def _harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Name):
        return node.id in HARMLESS
    if isinstance(node, ast.Attribute):
        of_type = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "type"
        return node.attr in HARMLESS or (of_type and node.attr == "__name__") or ast.unparse(node).startswith("sys.std")
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) == "len"
    return isinstance(node, ast.JoinedStr | ast.FormattedValue | ast.BinOp | ast.operator) and all(
        map(_harmless, ast.iter_child_nodes(node))
    )


def told_of_what_was_asked(source: str) -> list[str]:
    """Names of :data:`ASKED` anywhere in what is written."""
    return [
        name
        for call in writing_calls(ast.parse(source))
        for argument in (*call.args, *call.keywords)
        for node in ast.walk(argument)
        if (name := _identifier(node)) and ASKED.fullmatch(name.lower().lstrip("_"))
    ]


def _identifier(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    in_subscript = isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
    return str(node.slice.value) if in_subscript else ""  # type: ignore[attr-defined]


def sources(patterns: tuple[str, ...]) -> list[Path]:
    found = {path for pattern in patterns for path in REPOSITORY_ROOT.glob(pattern)} - {ITS_OUTPUT_IS_THE_ANSWER}
    return sorted(found)


def each(*patterns: str) -> pytest.MarkDecorator:
    """The test once for each file."""
    files = sources(patterns)
    assert files, f"no file matches {patterns}"
    return pytest.mark.parametrize("path", files, ids=lambda path: str(path.relative_to(REPOSITORY_ROOT)))


@each(*HANDLES_REQUESTS)
def test_code_that_handles_requests_writes_nothing_of_them(path: Path) -> None:
    assert told_beyond_harmless(path.read_text(encoding="utf-8")) == []


@each(*OTHERS)
def test_client_and_launcher_write_nothing_of_what_was_asked(path: Path) -> None:
    assert told_of_what_was_asked(path.read_text(encoding="utf-8")) == []


@each("clients/**/*.py", "gateway/*.py", "server/*.py", "perf/**/*.py")
def test_nobody_makes_tritons_client_print_its_requests(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert not [call for call in calls for keyword in call.keywords if keyword.arg == "verbose"]


@pytest.mark.parametrize(
    "line",
    [
        "log.log_error(f'failed: {error}')",
        "pb_utils.Logger.log_warn('query ' + query)",
        "self.logger.info('asked %s', text)",
        "logging.exception('failed', exc_info=error)",
        "print(tensor)",
        "print('x', file=sys.stderr, end=query)",
        "sys.stderr.write(name)",
        "sys.stdout.buffer.write(name)",
        "warnings.warn(str(request))",
        "traceback.print_exception(error)",
        "log.log_error(type(error).__doc__)",
        "log.log_error(len(ids), ids[0])",
    ],
)
def test_the_rule_finds_what_tells_of_a_request(line: str) -> None:
    assert told_beyond_harmless(line)


@pytest.mark.parametrize(
    "line",
    [
        "log.log_error(f'request failed: {type(error).__name__} at {where}')",
        "log.log_info(f'{self.model_name}: {len(ids)} items')",
        "print('ready', file=sys.stderr)",
        "log.log_verbose(f'asked {query}')",
        "logger.debug('asked %s', query)",
        "parser.error(query)",
        "raise InvalidArgument(query)",
    ],
)
def test_the_rule_allows_counts_type_names_and_debug_level(line: str) -> None:
    assert told_beyond_harmless(line) == []


@pytest.mark.parametrize(
    "line",
    [
        "print(query)",
        "print(f'{options.query!r} failed')",
        "logger.warning('of %s', request['user_id'])",
        "logging.info(self._history[-1])",
        "print(json.dumps(item_ids), file=sys.stderr)",
    ],
)
def test_the_looser_rule_finds_what_was_asked_by_name(line: str) -> None:
    assert told_of_what_was_asked(line)


def test_the_looser_rule_allows_the_rest() -> None:
    assert told_of_what_was_asked("print(f'ready: {server.grpc_url}', flush=True); logger.debug(query)") == []


# ---------------------------------------------------------------- asking the server
MARKER = "xyzzy-never-to-be-logged"
LEAKY_MODEL = """
import triton_python_backend_utils as pb_utils
from served import answer_each

class TritonPythonModel:
    def execute(self, requests):
        return answer_each(requests, self.answer, pb_utils.Logger)

    def answer(self, request):
        raise KeyError({marker!r})
"""


@pytest.fixture(scope="module")
def client(served_kit: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(served_kit.grpc_url) as client:
        yield client


def assert_unwritten(server: TritonServer, capture: pytest.CaptureFixture[str]) -> None:
    written = capture.readouterr()
    for place, text in (("Triton's log", server.log()), ("stdout", written.out), ("stderr", written.err)):
        lines = [line for line in text.splitlines() if MARKER in line]
        assert not lines, f"{place} holds what was asked: {lines[0]}"


GOOD = {QUERY.name: texts(f"red {MARKER} mug"), ITEM_IDS.name: texts("a", MARKER)}
ASKED_BADLY: dict[str, dict[str, Array]] = {
    "a query too long": {QUERY.name: texts(MARKER * MAX_QUERY_BYTES)},
    "a query that is not UTF-8": {QUERY.name: texts(MARKER.encode() + b"\xff")},
    "two queries": {QUERY.name: texts(MARKER, MARKER)},
    "an item twice": {ITEM_IDS.name: texts(MARKER, MARKER)},
    "an id too long": {ITEM_IDS.name: texts(MARKER * 100)},
    "an id that is not UTF-8": {ITEM_IDS.name: texts(MARKER.encode() + b"\xff")},
    "another dtype": {QUERY.name: integers([1])},
    "an unknown input": {MARKER: texts(MARKER)},
    "a negative top_k": {TOP_K.name: integers([-1])},
}


@pytest.mark.server
def test_a_good_query_is_not_written(
    served_kit: TritonServer,
    client: grpc.InferenceServerClient,
    judged: JudgedQueries,
    capfd: pytest.CaptureFixture[str],
) -> None:
    known = next(iter(judged.products))
    ids, _ = send(client, "rank", **{**GOOD, ITEM_IDS.name: texts(known, MARKER)})
    assert ids == [known, MARKER]
    assert_unwritten(served_kit, capfd)


@pytest.mark.server
@pytest.mark.parametrize("fault", ASKED_BADLY)
def test_a_bad_request_is_not_written(
    served_kit: TritonServer, client: grpc.InferenceServerClient, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InferenceServerException):
        send(client, "rank", **{**GOOD, **ASKED_BADLY[fault]})
    assert_unwritten(served_kit, capfd)


@pytest.mark.server
@pytest.mark.parametrize("context", ["{}", f'{{"{MARKER}": "{MARKER}"}}', MARKER, f'["{MARKER}"]'])
def test_users_histories_and_contexts_are_not_written(
    served_kit: TritonServer,
    client: grpc.InferenceServerClient,
    kit: list[str],
    context: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if "recommend" not in kit:
        pytest.skip("no purchases here, so no ranker of histories is served")
    asked = {HISTORY.name: texts(MARKER), ITEM_IDS.name: texts("a"), **_optional(client, "recommend", context)}
    if _is_object(context):
        send(client, "recommend", **asked)
    else:
        with pytest.raises(InferenceServerException):
            send(client, "recommend", **{**asked, ITEM_FIELDS.name: texts(context)})
    assert_unwritten(served_kit, capfd)


def _optional(client: grpc.InferenceServerClient, endpoint: str, context: str) -> dict[str, Array]:
    """What the endpoint takes of a user and a moment."""
    inputs = {tensor["name"] for tensor in client.get_model_metadata(endpoint, as_json=True)["inputs"]}
    return {name: texts(value) for name, value in (("user_id", MARKER), ("context", context)) if name in inputs}


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False


@pytest.mark.server
def test_an_unforeseen_failure_that_quotes_the_request_is_not_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "models", "leaky", VECTOR_CONFIG, LEAKY_MODEL.format(marker=MARKER))
    for path in SHARED_CODE:
        shutil.copy(path, folder / "1")
    with (
        TritonServer(tmp_path / "models", load=["leaky"], grpc_port=0, http_port=0, metrics_port=0) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        with pytest.raises(InferenceServerException, match="KeyError"):
            infer(client, "leaky", x=np.zeros(1, np.float32))
        wait_until(lambda: "KeyError" in server.log())  # Triton writes it when the answer has gone
        assert_unwritten(server, capfd)
