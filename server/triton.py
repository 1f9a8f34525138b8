"""TritonServer: one tritonserver process, from start to a clean end."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from server import health, self_test
from server.admin_key import HEADER, new_key, restricting_options
from server.backend_directory import DROP_INS, assemble_backends
from server.environment import REPOSITORY_ROOT, ServerEnvironment, find_environment
from server.errors import ModelsNotReady, RepositoryError, ServerNotReady
from server.plans import servable_repository
from server.ports import is_this_machine, port_to_bind
from server.process import GuardedProcess
from server.repository import all_published, asking_for_response_cache, check_models_exist, served_names
from server.tls import ServerTls
from server.triton_log import reasons_in
from server.verify import NotAsPublished, check_as_published

DEFAULT_REPOSITORY = REPOSITORY_ROOT / "model_repository"
DEFAULT_STORE = REPOSITORY_ROOT / "item_store"
DEFAULT_MODEL = "rank"
LOOPBACK = "127.0.0.1"
STORE_VARIABLE = "TRITONRANK_ITEM_STORE"
SCORE_CACHE_VARIABLE = "TRITONRANK_SCORE_CACHE"
SCORE_CACHE = "score_cache"  # in the store's folder, which the models may write to
MIB = 1 << 20
POLL_S = 0.05
EXIT_TIMEOUT_S = 10  # for requests that run when the server is stopped
EXIT_MARGIN_S = 5  # for Triton itself after that
LOG_LINES_IN_ERRORS = 30
SHARED_MEMORY = Path("/dev/shm")
_LOGGER = logging.getLogger(__name__)


class TritonServer:
    """A running tritonserver; a context manager that starts it, waits until it is ready, and stops it.

    repository     Triton model repository; where its TensorRT plans are not for this machine, see server/plans.py
    load           models to load, with what they depend on; None loads all that were published
    store          item-store folder, told to the models as $TRITONRANK_ITEM_STORE
    score_cache    folder of the score caches of models that ask for one; True = in the store's, False = none, where
                   what is measured or compared is the network
    response_cache_mb  MiB of Triton's own response cache, for models that ask for it; 0 = none
    verify         off, hash or signature: whether what is loaded must be as published, see server/verify.py
    public_key     PEM file with the Ed25519 key of the manifest's signature, for verify="signature"
    config_name    <model>/configs/<config_name>.pbtxt takes the place of config.pbtxt where it exists
    host, *_port   where gRPC and metrics listen; port 0 picks a free one
    http_host      where HTTP listens: this machine only, unless told, whatever `host` is
    admin_key      what control of models, shared memory, log and trace asks for, see server/admin_key.py; made anew
                   unless given. Read it from the running server
    open_apis      asks for no admin key: for development
    tls            of gRPC
    log_to_terminal  writes Triton's log to this process's output instead of keeping it for `log()`
    backends       folder of drop-in backends, each NAME/model.py
    extra_arguments  more options of tritonserver
    drain_s        how long a stop that drains lets the server answer on, while it says that it is not ready
    answer_within_s  how long an endpoint may take for a canary, a request that is sent again and again, before the
                     server is ended; 0 = none is sent, so that nothing but the caller's requests is counted
    run_self_test  send one tensor through the stub the first time this environment is used

    Enter it in a thread that lives as long as the server shall: Linux ends the server when that thread ends.
    Raises a ServerError, see server/errors.py.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str] = DEFAULT_REPOSITORY,
        load: Sequence[str] | None = (DEFAULT_MODEL,),
        *,
        store: str | os.PathLike[str] = DEFAULT_STORE,
        score_cache: bool | str | os.PathLike[str] = True,
        response_cache_mb: int = 0,
        environment: str | os.PathLike[str] | None = None,
        verify: str = "off",
        public_key: str | os.PathLike[str] | None = None,
        config_name: str | None = None,
        host: str = LOOPBACK,
        http_host: str = LOOPBACK,
        grpc_port: int = 8001,
        http_port: int = 8000,
        metrics_port: int = 8002,
        admin_key: str | None = None,
        open_apis: bool = False,
        tls: ServerTls | None = None,
        log_verbose: int = 0,
        log_to_terminal: bool = False,
        ready_timeout_s: float = 120.0,
        backends: str | os.PathLike[str] = DROP_INS,
        extra_arguments: Sequence[str] = (),
        drain_s: float = 0.0,
        answer_within_s: float = 0.0,
        run_self_test: bool = True,
    ):
        self.repository = Path(repository).absolute()
        self.models = list(load) if load is not None else None
        self.store = Path(store).absolute()
        self.score_cache = self.store / SCORE_CACHE if score_cache is True else score_cache
        self.response_cache_mb = response_cache_mb
        self.environment: ServerEnvironment = find_environment(environment)
        self.verify = verify
        self.public_key = Path(public_key) if public_key is not None else None
        self.config_name = config_name
        self.host, self.http_host = host, http_host
        self.admin_key = admin_key or new_key()
        self.open_apis = open_apis
        self.tls = tls
        self.grpc_port, self.http_port, self.metrics_port = grpc_port, http_port, metrics_port
        self.log_verbose = log_verbose
        self.log_to_terminal = log_to_terminal
        self.ready_timeout_s = ready_timeout_s
        self.backends = Path(backends).absolute()
        self.extra_arguments = list(extra_arguments)
        self.drain_s = drain_s
        self.answer_within_s = answer_within_s
        self.drains = False
        self.run_self_test = run_self_test
        self._process: GuardedProcess | None = None
        self._folder: Path | None = None
        self._log = ""

    @property
    def grpc_url(self) -> str:
        return f"{self.host}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"{self.http_host}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self.host}:{self.metrics_port}/metrics"

    @property
    def pid(self) -> int:
        """Process id of tritonserver; the stubs are its children."""
        return self._running().pid

    @property
    def process_group(self) -> int:
        """Process group of tritonserver and all its stubs."""
        return self._running().group

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start tritonserver and wait until every wanted model takes requests."""
        try:
            self._choose_repository()
            self._check_repository()
            self._verify_repository()
            self._check_environment()
            self._choose_ports()
            self._warn_of_open_doors()
            self._start_process()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server; kill what is left after EXIT_TIMEOUT_S. Safe to call again.

        With `drains` set it says first that it is not ready, and answers on for `drain_s`; else requests under way may
        be lost.
        """
        if self._process is not None:
            self._process.stop(drains=self.drains)
        self._clean_up()

    def restart(self) -> None:
        """Start it again, on the same ports. Raises as `start` does."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """End the server and its stubs at once."""
        if self._process is not None:
            self._process.kill()

    def wait(self) -> int:
        """Wait until tritonserver ends, by itself or killed; return its exit code."""
        return self._running().wait()

    def log(self) -> str:
        """Return what Triton and the models have written so far; empty where it went to the terminal."""
        if self._folder is not None and self._log_file.exists():
            self._log = self._log_file.read_text(errors="replace")
        return self._log

    @property
    def _work_folder(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="tritonrank_"))
        return self._folder

    @property
    def _log_file(self) -> Path:
        return self._work_folder / "triton.log"

    @property
    def _shared_memory_prefix(self) -> str:
        return f"{self._work_folder.name}_"

    def _running(self) -> GuardedProcess:
        if self._process is None:
            raise ServerNotReady("the server was not started; enter it with 'with TritonServer(...) as server'.")
        return self._process

    def _verify_repository(self) -> None:
        try:
            check_as_published(
                self.repository, self.models, self.verify, config_name=self.config_name, public_key=self.public_key
            )
        except NotAsPublished as error:
            raise RepositoryError(str(error)) from error

    def _choose_repository(self) -> None:
        """Serve the repository, or a view of it without the plans that this machine cannot load."""
        self._served, refused = servable_repository(
            self.repository, self._work_folder, self.environment.tensorrt_version
        )
        for refusal in refused:
            _LOGGER.warning(refusal.line)

    def _check_repository(self) -> None:
        if not self.response_cache_mb and (asking := asking_for_response_cache(self._served)):
            _LOGGER.warning(
                "%s: no response cache, which the configuration asks for; give one with --response-cache-mb 64",
                ", ".join(asking),
            )
        if self.models is not None:
            check_models_exist(self._served, self.models)
            self._wanted = self.models
            return
        self._wanted, unpublished = served_names(self._served)
        if unpublished:
            _LOGGER.warning(
                "left out, not published on this machine: %s (failed the gate here, or not built; "
                "'python -m builders gate VARIANT' says which)",
                ", ".join(unpublished),
            )

    def _check_environment(self) -> None:
        if not self.run_self_test or self_test.has_passed(self.environment):
            return
        with tempfile.TemporaryDirectory(prefix="tritonrank_") as folder:
            self_test.write_repository(Path(folder))
            with TritonServer(
                folder,
                [self_test.MODEL],
                environment=self.environment.root,
                grpc_port=0,
                http_port=0,
                metrics_port=0,
                run_self_test=False,
            ) as server:
                self_test.check_tensor_returns(server.http_host, server.http_port, self.environment)
        self_test.remember_pass(self.environment)

    def _choose_ports(self) -> None:
        self.grpc_port = port_to_bind(self.host, self.grpc_port, "--grpc-port")
        self.http_port = port_to_bind(self.http_host, self.http_port, "--http-port")
        self.metrics_port = port_to_bind(self.host, self.metrics_port, "--metrics-port")

    def _warn_of_open_doors(self) -> None:
        if not is_this_machine(self.http_host):
            _LOGGER.warning(
                "HTTP listens on %s: one request of very many chunks ends this Triton, so let nobody reach it whom you "
                "do not trust, or put a proxy before it that limits requests (docs/how-to/close-the-doors.md)",
                self.http_url,
            )
        if self.open_apis and not (is_this_machine(self.host) and is_this_machine(self.http_host)):
            _LOGGER.warning(
                "no admin key is asked for: whoever reaches %s or %s runs code here", self.grpc_url, self.http_url
            )

    def _start_process(self) -> None:
        assemble_backends(self.environment, self._work_folder / "backends", self.backends)
        with self._log_file.open("wb") as log:
            output = None if self.log_to_terminal else log
            self._process = GuardedProcess(
                self._command(),
                self._environ(),
                self._work_folder,
                output,
                grace_s=EXIT_TIMEOUT_S + EXIT_MARGIN_S,
                drain_s=self.drain_s,
                answer_within_s=self.answer_within_s,
            )

    def _command(self) -> list[str]:
        return [
            str(self.environment.tritonserver),
            f"--model-repository={self._served}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self._wanted),
            *([f"--model-config-name={self.config_name}"] if self.config_name else []),
            # To complete a configuration, Triton first starts each Python model once more, and ends it.
            *(["--disable-auto-complete-config"] if all_published(self._served, self._wanted) else []),
            # Stays up when a model fails, so that the repository index can be asked which one and why.
            "--exit-on-error=false",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            f"--backend-directory={self._work_folder / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory_prefix}",
            f"--cache-directory={self.environment.caches}",
            *([f"--cache-config=local,size={self.response_cache_mb * MIB}"] if self.response_cache_mb else []),
            f"--http-address={self.http_host}",
            f"--http-port={self.http_port}",
            f"--grpc-address={self.host}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-address={self.host}",
            "--metrics-config=summary_latencies=true",
            f"--metrics-port={self.metrics_port}",
            f"--log-verbose={self.log_verbose}",
            *([] if self.open_apis else restricting_options(self.admin_key)),
            *([] if self.tls is None else self.tls.options()),
            *self.extra_arguments,
        ]

    def _environ(self) -> dict[str, str]:
        """The caller's variables; the stub finds its Python by PATH, and reads no PYTHON* variable."""
        path = os.pathsep.join([str(self.environment.bin), os.environ.get("PATH", os.defpath)])
        # The caller's come last: they may hold CUDA's and TensorRT's libraries.
        callers = filter(None, [os.environ.get("LD_LIBRARY_PATH")])
        runtime = self.environment.link_cuda_runtime(self._work_folder / "cuda")
        libraries = [str(self.environment.libraries), *callers, str(runtime)]
        return {
            **os.environ,
            "PATH": path,
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            STORE_VARIABLE: str(self.store),
            SCORE_CACHE_VARIABLE: str(Path(self.score_cache).absolute()) if self.score_cache else "",
        }

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.ready_timeout_s
        while not health.is_live(self.http_host, self.http_port):
            self._check_still_starting(deadline)
            time.sleep(POLL_S)
        self._check_models()

    def _check_still_starting(self, deadline: float) -> None:
        code = self._running().exit_code()
        if code is not None:
            raise ServerNotReady(f"tritonserver ended with code {code} before it was ready.{self._end_of_log()}")
        if time.monotonic() > deadline:
            raise ServerNotReady(
                f"tritonserver was not ready after {self.ready_timeout_s:g} s; give it longer with "
                f"--ready-timeout-s, or see what it is doing with --log-verbose 1.{self._end_of_log()}"
            )

    def _check_models(self) -> None:
        failed = [model for model in self._wanted if not health.is_ready(self.http_host, self.http_port, model)]
        if not failed:
            return
        reasons = dict.fromkeys(failed, "see Triton's log")
        reasons |= reasons_in(self.log()) | health.reasons_not_ready(
            self.http_host, self.http_port, {HEADER: self.admin_key}
        )
        listed = "".join(f"\n  {model}: {reason}" for model, reason in sorted(reasons.items()))
        raise ModelsNotReady(
            f"{len(reasons)} of the models in {self.repository} could not be loaded:{listed}\nMend what the "
            "reason names, or run 'make repository' to write them anew.",
            reasons,
        )

    def _end_of_log(self) -> str:
        lines = self.log().splitlines()[-LOG_LINES_IN_ERRORS:]
        return "\nThe end of Triton's log:\n  " + "\n  ".join(lines) if lines else "\nTriton's log is above."

    def _clean_up(self) -> None:
        if self._folder is None:
            return
        self.log()
        for region in SHARED_MEMORY.glob(f"{self._shared_memory_prefix}*"):
            region.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None
