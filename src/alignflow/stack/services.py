"""The services of a stack: how each is started, where it listens, how it is told to be well."""

import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from alignflow.errors import ConfigError
from alignflow.stack import environment, objects, postgres
from alignflow.stack.config import HOST, StackConfig
from alignflow.stack.health import Look, page_answers, worker_is_heard
from alignflow.stack.records import Record

POOL = "alignflow"
"""Work pool of the worker: that of deployments/prefect.yaml."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Service:
    """One process of a stack, with its children."""

    name: str
    title: str
    """In sentences."""
    command: list[str]
    environment: dict[str, str] = field(repr=False)
    folder: Path
    address: str
    look: Callable[[Record], Look]
    """Gives the look at a process of it."""
    ports: tuple[int, ...] = ()
    port_option: str = ""
    prepare: Callable[[], None] = _nothing
    """Before it is started."""
    settle: Callable[[], None] = _nothing
    """Once it answers: what others need in it."""
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 20.0
    """How long it may take to end before it is killed."""
    user: str | None = None
    """Who it runs as; None for the user who starts the stack."""


def layers(
    config: StackConfig, credentials: dict[str, str], *, workspace: Path, folder: Path
) -> list[list[Service]]:
    """Return the services; each needs those of the layers before its own.

    Args:
        config: Of the stack.
        credentials: Of the stack.
        workspace: Holds MLflow's database where there is no PostgreSQL: that of runs without one.
        folder: Of the stack.

    Raises:
        ConfigError: What it needs is not installed.
    """
    inherited = environment.inherited()
    below: list[Service] = []
    if config.full:
        _check_packages("psycopg2", "boto3")
        below = [
            _postgres(config, credentials, folder, inherited),
            _seaweedfs(config, credentials, folder, inherited),
        ]
    servers = [
        _prefect(config, credentials, folder, inherited),
        _mlflow(config, credentials, workspace, folder, inherited),
    ]
    return [*([below] if below else []), servers, [_worker(config, credentials, folder, inherited)]]


def _check_packages(*names: str) -> None:
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--full needs {' and '.join(missing)}; install: pip install 'alignflow[stack]'."
        )


def _postgres(
    config: StackConfig, credentials: dict[str, str], folder: Path, inherited: dict[str, str]
) -> Service:
    database = postgres.Database(
        folder=folder / "postgres",
        port=config.postgres_port,
        password=credentials["POSTGRES_PASSWORD"],
    )
    return Service(
        name="postgres",
        title="PostgreSQL",
        command=database.command(),
        environment=inherited,
        folder=database.folder,
        address=f"{HOST}:{config.postgres_port}",
        look=lambda _: database.why_silent,
        ports=(config.postgres_port,),
        port_option="--postgres-port",
        prepare=database.prepare,
        settle=lambda: database.make_databases("prefect", "mlflow", "mlflow_accounts"),
        stop_signal=signal.SIGINT,  # SIGTERM would wait for clients
        user=database.user,
    )


def _seaweedfs(
    config: StackConfig, credentials: dict[str, str], folder: Path, inherited: dict[str, str]
) -> Service:
    store = objects.ObjectStore(
        folder=folder / "seaweedfs", port=config.s3_port, credentials=credentials
    )
    return Service(
        name="seaweedfs",
        title="SeaweedFS",
        command=store.command(),
        environment=inherited,
        folder=store.folder,
        address=config.s3_url,
        look=lambda _: page_answers(f"{config.s3_url}/healthz"),
        ports=config.s3_ports,
        port_option="--s3-port",
        prepare=store.prepare,
        settle=store.make_buckets,
        grace_s=40.0,  # it takes 15 s
    )


def _prefect(
    config: StackConfig, credentials: dict[str, str], folder: Path, inherited: dict[str, str]
) -> Service:
    home = folder / "prefect"
    url = f"sqlite+aiosqlite:///{home / 'prefect.db'}"
    if config.full:
        address = f"{HOST}:{config.postgres_port}"
        url = environment.postgres_url(credentials, "asyncpg", address, "prefect")
    # As `prefect server start` does, without the seconds that its command line takes to import.
    uvicorn = [sys.executable, "-m", "uvicorn", "--factory"]
    return Service(
        name="prefect",
        title="Prefect",
        command=[
            *(*uvicorn, "prefect.server.api.server:create_app", "--lifespan", "on"),
            *("--host", HOST, "--port", str(config.prefect_port)),
            *("--log-level", "warning", "--timeout-graceful-shutdown", "5"),
        ],
        environment={
            **inherited,
            **environment.prefect_server(credentials, database_url=url, url=config.prefect_url),
            **_prefect_home(home),
            # It copies its pages before it serves them, by itself into the installed package.
            "PREFECT_UI_STATIC_DIRECTORY": str(home / "pages"),
        },
        folder=home,
        address=config.prefect_url,
        look=lambda _: page_answers(f"{config.prefect_url}/api/health"),
        ports=(config.prefect_port,),
        port_option="--prefect-port",
        prepare=lambda: home.mkdir(mode=0o700, exist_ok=True),
    )


def _mlflow(
    config: StackConfig,
    credentials: dict[str, str],
    workspace: Path,
    folder: Path,
    inherited: dict[str, str],
) -> Service:
    home = folder / "mlflow"
    runs, accounts = f"sqlite:///{workspace / 'mlflow.db'}", f"sqlite:///{home / 'accounts.db'}"
    artifacts, s3 = str(home / "artifacts"), {}
    if config.full:
        address = f"{HOST}:{config.postgres_port}"
        runs = environment.postgres_url(credentials, "psycopg2", address, "mlflow")
        accounts = environment.postgres_url(credentials, "psycopg2", address, "mlflow_accounts")
        artifacts = f"s3://{environment.MLFLOW_BUCKET}/artifacts"
        s3 = environment.mlflow_s3(credentials, config.s3_url)
    ini = home / "accounts.ini"

    def prepare() -> None:
        home.mkdir(mode=0o700, exist_ok=True)
        ini.touch(mode=0o600)
        ini.write_text(environment.mlflow_accounts(accounts), encoding="utf-8")

    return Service(
        name="mlflow",
        title="MLflow",
        command=[
            *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
            *("--host", HOST, "--port", str(config.mlflow_port), "--workers", "1"),
        ],
        environment={
            **inherited,
            **environment.mlflow_server(
                credentials,
                database_url=runs,
                artifacts=artifacts,
                auth_config=str(ini),
                allowed_hosts=environment.allowed_hosts(),
            ),
            **s3,
        },
        folder=home,
        address=config.mlflow_url,
        look=lambda _: page_answers(f"{config.mlflow_url}/health"),
        ports=(config.mlflow_port,),
        port_option="--mlflow-port",
        prepare=prepare,
    )


def _worker(
    config: StackConfig, credentials: dict[str, str], folder: Path, inherited: dict[str, str]
) -> Service:
    home = folder / "worker"
    clients = environment.clients(credentials, config)
    name = f"stack@{socket.gethostname()}"
    auth = clients["PREFECT_API_AUTH_STRING"]
    prefect = str(Path(sys.executable).with_name("prefect"))
    return Service(
        name="worker",
        title="The worker",
        command=[
            *(prefect, "worker", "start", "--pool", POOL, "--type", "process", "--name", name)
        ],
        environment={**inherited, **environment.QUIET, **clients, **_prefect_home(home)},
        folder=home,
        address=f"pool {POOL}",
        look=lambda record: worker_is_heard(
            clients["PREFECT_API_URL"], auth, POOL, name, record.since
        ),
        prepare=lambda: home.mkdir(mode=0o700, exist_ok=True),
        grace_s=60.0,
    )


def _prefect_home(folder: Path) -> dict[str, str]:
    """Return the variable that keeps a user's profiles, and what they name, out of a stack."""
    return {"PREFECT_HOME": str(folder)}
