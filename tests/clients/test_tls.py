"""TLS and mutual TLS between the client and the real server, with certificates of authorities made here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from tritonrank_client import TLS, InvalidRequest, MockTransport, RankClient, Unavailable, _command

from perf.analyzer import measure
from server import ServerTls, TritonServer
from server.__main__ import main as launch
from server.errors import TlsError
from tests.support.repositories import ECHO, VECTOR_CONFIG
from tests.support.repositories import write_model as write_plain_model
from tests.support.small_model import write_model

ANY_PORTS = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of certificates: `ca` signed `server` (for 127.0.0.1 only) and `client`; `other` signed `stranger`."""
    folder = tmp_path_factory.mktemp("pem")
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other.pem")
    for authority, name, of in (
        (ca, "server", "127.0.0.1"),
        (ca, "client", "shop.example"),
        (other, "stranger", "shop.example"),
    ):
        issued = authority.issue_cert(of)
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        for part in issued.cert_chain_pems:
            part.write_to_path(folder / f"{name}.pem", append=True)
    (folder / "text.pem").write_text("no certificate\n")
    locked = load_pem_private_key((folder / "server.key").read_bytes(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a password")
    )
    (folder / "locked.key").write_bytes(locked)
    return folder


@pytest.fixture(scope="module", params=["tls", "mutual"])
def encrypted(
    request: pytest.FixtureRequest, pem: Path, gates_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """Servers that show a certificate; the second asks for the client's, too."""
    repository = tmp_path_factory.mktemp("models")
    write_model(repository, "rank", gates_folder)
    client_ca = pem / "ca.pem" if request.param == "mutual" else None
    tls = ServerTls(pem / "server.pem", pem / "server.key", client_ca)
    with TritonServer(repository, tls=tls, **ANY_PORTS) as running:
        yield running
        running.kill()


def asks_for_clients(server: TritonServer) -> bool:
    return server.tls is not None and server.tls.client_ca is not None


def refusal(url: str, tls: TLS | None) -> str:
    with RankClient(url, tls=tls, timeout_s=10) as client, pytest.raises(Unavailable) as refused:
        client.rank("shoes", ["1", "2"])
    assert "\n" not in str(refused.value)
    return str(refused.value)


def of_client(pem: Path, name: str = "client", ca: str = "ca") -> TLS:
    return TLS(pem / f"{ca}.pem", pem / f"{name}.pem", pem / f"{name}.key")


@pytest.mark.server
def test_a_good_certificate_passes(encrypted: TritonServer, pem: Path) -> None:
    with RankClient(encrypted.grpc_url, tls=of_client(pem), timeout_s=10) as client:
        client.check_contract()
        assert client.rank("shoes", ["1", "2"]).ids == ("2", "1")


@pytest.mark.server
def test_a_client_without_a_certificate_passes_where_none_is_asked_for(encrypted: TritonServer, pem: Path) -> None:
    if asks_for_clients(encrypted):
        assert "or for a client's certificate" in refusal(encrypted.grpc_url, TLS(ca=pem / "ca.pem"))
    else:
        with RankClient(encrypted.grpc_url, tls=TLS(ca=pem / "ca.pem"), timeout_s=10) as client:
            assert client.rank("shoes", ["1", "2"]).ids == ("2", "1")


@pytest.mark.server
def test_a_client_of_another_authority_is_refused_where_one_is_asked_for(encrypted: TritonServer, pem: Path) -> None:
    if asks_for_clients(encrypted):
        assert "or for a client's certificate" in refusal(encrypted.grpc_url, of_client(pem, "stranger"))


@pytest.mark.server
def test_a_server_of_another_authority_is_refused(encrypted: TritonServer, pem: Path) -> None:
    assert "TLS: is tls=TLS(ca=...) the authority" in refusal(encrypted.grpc_url, of_client(pem, ca="other"))
    assert "TLS: is tls=TLS(ca=...) the authority" in refusal(encrypted.grpc_url, TLS())


@pytest.mark.server
def test_a_server_of_another_name_is_refused(encrypted: TritonServer, pem: Path) -> None:
    assert "TLS: the server's certificate is for another name" in refusal(
        f"localhost:{encrypted.grpc_port}", of_client(pem)
    )


@pytest.mark.server
def test_a_client_without_tls_is_told_that_the_server_asks_for_it(encrypted: TritonServer) -> None:
    assert "does it ask for TLS, tls=TLS(ca=...)" in refusal(encrypted.grpc_url, None)


@pytest.mark.server
def test_a_client_with_tls_is_told_that_the_server_has_none(server: TritonServer, pem: Path) -> None:
    assert "does this port speak TLS at all" in refusal(server.grpc_url, TLS(ca=pem / "ca.pem"))


@pytest.mark.server
def test_the_shell_command_takes_the_files(
    encrypted: TritonServer, pem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_text("1\n2\n")
    arguments = ["--query", "shoes", "--items", str(tmp_path / "ids.txt"), "--url", encrypted.grpc_url]
    files = [
        "--tls-ca",
        str(pem / "ca.pem"),
        "--tls-cert",
        str(pem / "client.pem"),
        "--tls-key",
        str(pem / "client.key"),
    ]
    assert _command.main([*arguments, *files]) == 0
    assert _command.main([*arguments, "--tls"]) == 1
    assert "TLS: is tls=TLS(ca=...)" in capsys.readouterr().err


@pytest.mark.server
@pytest.mark.parametrize("encrypted", ["mutual"], indirect=True)
def test_perf_analyzer_shows_and_checks_certificates(encrypted: TritonServer, pem: Path, tmp_path: Path) -> None:
    (tmp_path / "requests.json").write_text(
        json.dumps({"data": [{"query": ["shoes"], "item_ids": {"content": ["1", "2"], "shape": [2]}}]})
    )
    found = measure(
        encrypted.grpc_url, "rank", tmp_path / "requests.json", concurrency=1, window_ms=200, tls=of_client(pem)
    )
    assert found.latencies_ms.size


# ---------------------------------------------------------------- files that cannot be used
@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"ca": "none.pem"}, r"found no certificate in ca='.*none\.pem' \(No such file"),
        ({"ca": "text.pem"}, r"found no certificate in ca='.*text\.pem' \(NO_CERT"),
        ({"ca": "ca.pem", "certificate": "client.pem"}, "come together; give both or none"),
        ({"certificate": "client.pem", "key": "server.key"}, r"are no pair \(KEY_VALUES_MISMATCH\)"),
        ({"certificate": "client.pem", "key": "text.pem"}, "are no pair"),
        ({"certificate": "server.pem", "key": "locked.key"}, "the key without a password"),
    ],
)
def test_the_client_refuses_files_that_are_none(pem: Path, files: dict[str, str], wanted: str) -> None:
    with pytest.raises(InvalidRequest, match=wanted) as refused:
        RankClient("localhost:8001", tls=TLS(**{name: pem / file for name, file in files.items()}))
    assert refused.value.argument == "tls"


def test_a_transport_of_ones_own_and_tls_are_not_both_taken() -> None:
    with pytest.raises(InvalidRequest, match="a transport of your own is given"):
        RankClient("mock", tls=TLS(), transport=MockTransport(lambda request: {}))


@pytest.mark.parametrize(
    ("certificate", "key", "client_ca", "wanted"),
    [
        ("none.pem", "server.key", None, r"no certificate and private key \(No such file"),
        ("server.pem", "client.key", None, r"\(KEY_VALUES_MISMATCH\); expected two PEM files that belong together"),
        ("server.pem", "locked.key", None, "the key without a password"),
        ("server.pem", "server.key", "text.pem", r"text\.pem holds no certificate .*--tls-client-ca"),
    ],
)
def test_the_server_refuses_files_that_are_none(
    pem: Path, tmp_path: Path, certificate: str, key: str, client_ca: str | None, wanted: str
) -> None:
    write_plain_model(tmp_path, "echo", VECTOR_CONFIG, ECHO)
    tls = ServerTls(pem / certificate, pem / key, pem / client_ca if client_ca else None)
    with pytest.raises(TlsError, match=wanted):
        TritonServer(tmp_path, ["echo"], tls=tls, run_self_test=False, **ANY_PORTS).start()


@pytest.mark.parametrize("options", [["--tls-cert", "a.pem"], ["--tls-client-ca", "a.pem"]])
def test_the_launcher_wants_certificate_and_key(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch([*options, "--admin-key-file", str(tmp_path / "key")]) == 1
    assert "TLS needs both --tls-cert and --tls-key" in capsys.readouterr().err
