"""The client's README says what is so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import trustme
from tritonrank_client import MockTransport, RankClient, _check, _command, _errors

from builders.core.contract import ITEM_IDS, RANKED_IDS, SCORES

README = (Path(__file__).parents[2] / "clients" / "README.md").read_text(encoding="utf-8")
USAGES, FOR_A_USER, TEXTS, RULES, ENCRYPTED, PRIVACY, FALLBACK, MOCKS, TASKS, CAREFUL, TRIED, RECORDED = (
    block.partition("```")[0] for block in README.split("```python\n")[1:]
)


def test_the_page_without_a_server_falls_back_to_the_first_stage():
    names = {"query": "shoes", "ids": [str(row) for row in range(20)]}
    exec(MOCKS, names)  # leaves the overloaded client
    exec(FALLBACK, names)

    assert names["order"] == names["ids"][:10]


@pytest.mark.server
def test_the_column_of_usages_runs(server):
    usages = USAGES.replace('"localhost:8001"', f"{server.grpc_url!r}, timeout_s=30").replace("timeout_s=0.05", "")
    names = {"ids": ["1", "2", "3"]}
    exec(usages, names)

    assert names["ranked"].ids == ("3", "2", "1")


def test_the_usages_for_a_user_with_rules_and_with_a_key_run():
    requests = []

    def handler(request):
        requests.append(request)
        ids = request.inputs.get(ITEM_IDS.name, np.array([b"B01"], dtype=object))
        count = int(request.inputs.get("top_k", [len(ids)])[0])
        return {RANKED_IDS.name: ids[:count], SCORES.name: -np.arange(len(ids), dtype=np.float32)[:count]}

    def client(url, **options):
        return RankClient(url, transport=MockTransport(handler), timeout_s=30, **options)

    names = {"ids": ["1", "2", "3"], "key": b"sixteen secrets!", "RankClient": client, "client": client("mock")}
    for block in (FOR_A_USER, TEXTS, RULES, PRIVACY):
        exec(block, names)

    assert [request.model for request in requests] == [
        *["recommend"] * 2,
        "rank",
        "similar",
        *["rank"] * 4,
        "recommend",
    ]
    assert requests[-1].inputs["user_id"].tolist() == [names["hashed_id"]("user 7", names["key"]).encode()]


def test_clients_with_tls_are_made_of_the_files_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = trustme.CA()
    shop = ca.issue_cert("shop.example")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    shop.cert_chain_pems[0].write_to_path(tmp_path / "shop.pem")
    shop.private_key_pem.write_to_path(tmp_path / "shop.key")
    monkeypatch.chdir(tmp_path)

    exec(ENCRYPTED, {"RankClient": RankClient})


def test_the_errors_are_those_of_the_tree():
    drawn = [line.split()[1] for line in _errors.__doc__.splitlines() if "+--" in line]

    assert [line.split()[1] for line in README.splitlines() if "+--" in line] == drawn


def test_the_commands_options_are_its_own(capsys):
    (_, _, shell) = README.partition("## From a shell")
    options = {word for word in shell.split() if word.startswith("--")}

    of_check = {"--model"}
    assert options - of_check <= set(_command._parser()._option_string_actions)
    with pytest.raises(SystemExit, match="0"):
        _check.main(["check", "--help"])
    assert of_check <= set(capsys.readouterr().out.split())


@pytest.mark.server
def test_the_usages_by_asyncio_with_policies_with_another_ranker_and_recorded_run(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"ids": ["1", "2", "3"], "RankClient": RankClient}
    for block in (TASKS, CAREFUL, TRIED, RECORDED):
        served = block.replace('["ranker-0:8001", "ranker-1:8001"]', f'["{server.grpc_url}", "{server.grpc_url}"]')
        served = served.replace("localhost:8001", server.grpc_url).replace("timeout_s=0.05", "timeout_s=30")
        exec(served.replace("timeout_s=0.1,", "timeout_s=30,").replace("rank_candidate", "rank_filters"), names)

    assert asyncio.run(names["search"]("shoes", ["1", "2", "3"])).ids == ("3", "2", "1")
    assert names["ranked"].ids == ("3", "2", "1") and names["ranked"].degraded is None
    assert (tmp_path / "answers.jsonl").exists()
