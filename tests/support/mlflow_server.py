"""An MLflow server on SQLite."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from server_process import ServerProcess, free_port


def mlflow_server(folder: Path, settings: Mapping[str, str]) -> ServerProcess:
    """Return a server on a free port, with what it keeps in a folder, and more settings."""
    port = free_port()
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return ServerProcess(
        [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ],
        health_url=f"http://127.0.0.1:{port}/health",
        folder=folder,
        environment={**os.environ, **quiet, **settings},
    )
