"""``python -m gateway``: the command line."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
from tritonrank_client import TLS, InvalidRequest

from gateway.errors import GatewayError
from gateway.serve import server_of
from gateway.settings import Settings, models_of

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help="HTTP in front of a ranker, until Ctrl-C or SIGTERM.")
def main(
    server: Annotated[
        list[str], typer.Option(envvar="TRITONRANK_GATEWAY_SERVER", help="Triton's gRPC service; repeatable.")
    ] = list(Settings.servers),  # noqa: B006 - typer's form
    model: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=ENDPOINT",
            envvar="TRITONRANK_GATEWAY_MODEL",
            help="Name that requests state, and what answers them: rank, recommend, similar or a variant of one. "
            "Repeatable; the first of a kind answers requests that state none. None = rank=rank.",
        ),
    ] = [],  # noqa: B006
    key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="TRITONRANK_GATEWAY_KEY_FILE", help="Keys of callers, one a line: Authorization: Bearer KEY."
        ),
    ] = Settings.key_file,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = Settings.host,
    port: Annotated[int, typer.Option(help="0 picks a free one.")] = Settings.port,
    open_to_all: Annotated[
        bool, typer.Option("--open", help="Listen on an address that others reach although there is no key file.")
    ] = Settings.open,
    timeout_s: Annotated[float, typer.Option(help="Of one request to the ranker.")] = Settings.timeout_s,
    first_stage: Annotated[
        bool,
        typer.Option(
            "--first-stage", help="Answer in the order of the request, marked as degraded, where the ranker fails."
        ),
    ] = Settings.first_stage,
    max_body_bytes: Annotated[int, typer.Option(help="Of a request.")] = Settings.max_body_bytes,
    max_documents: Annotated[int, typer.Option(help="Texts to rank by one request.")] = Settings.max_documents,
    max_in_flight: Annotated[
        int, typer.Option(help="Requests at once; further ones get 429 at once.")
    ] = Settings.max_in_flight,
    server_tls: Annotated[
        bool, typer.Option("--server-tls", help="TLS to the server, by the authorities that gRPC brings.")
    ] = False,
    server_tls_ca: Annotated[Path | None, typer.Option(help="... by this authority (PEM).")] = None,
    server_tls_cert: Annotated[Path | None, typer.Option(help="This client's certificate, for mutual TLS.")] = None,
    server_tls_key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate of this gateway, for HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
) -> None:
    tls = TLS(server_tls_ca, server_tls_cert, server_tls_key)
    try:
        settings = Settings(
            servers=tuple(server), models=models_of(model), host=host, port=port, key_file=key_file, open=open_to_all,
            timeout_s=timeout_s, first_stage=first_stage, max_body_bytes=max_body_bytes, max_documents=max_documents,
            max_in_flight=max_in_flight, tls=tls if server_tls or tls != TLS() else None, certificate=tls_cert,
            key=tls_key,
        )  # fmt: skip
        asyncio.run(_serve(settings))
    except (GatewayError, InvalidRequest, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(GatewayError.exit_code) from error


async def _serve(settings: Settings) -> None:
    await server_of(settings).serve()


if __name__ == "__main__":
    app(prog_name="python -m gateway")
