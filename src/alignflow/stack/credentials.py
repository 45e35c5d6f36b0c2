"""Random credentials of a stack, kept in a file that its owner alone reads.

The names are those that the programs themselves read where they have one, so that the file serves a
shell (`set -a; . FILE`), docker compose (`--env-file`) and `alignflow up` alike. This module needs
nothing but Python, and runs as a script where alignflow isn't installed: `make env`.
"""

import base64
import os
import secrets
import sys
from pathlib import Path

USER = "alignflow"
"""The one account of Prefect, MLflow's administrator, and PostgreSQL's owner of the databases."""


def new_credentials() -> dict[str, str]:
    """Return a random value for every name."""
    return {
        "PREFECT_API_AUTH_STRING": f"{USER}:{_password()}",
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": _password(),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": _password(),
        # A Fernet key: without a lasting one no webhook's secret can be read after a restart.
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(
            secrets.token_bytes(32)
        ).decode(),
        "POSTGRES_PASSWORD": _password(),
        # Of runs: read and write in the bucket alignflow.
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
        "AWS_SECRET_ACCESS_KEY": _password(),
        # Of the MLflow server: read and write in the bucket mlflow.
        "S3_MLFLOW_ACCESS_KEY_ID": secrets.token_hex(10),
        "S3_MLFLOW_SECRET_ACCESS_KEY": _password(),
        # Makes the buckets, and is used for nothing else.
        "S3_ADMIN_ACCESS_KEY_ID": secrets.token_hex(10),
        "S3_ADMIN_SECRET_ACCESS_KEY": _password(),
    }


def credentials(path: Path) -> dict[str, str]:
    """Return the credentials of a file, which is made, or completed, with random ones.

    Raises:
        PermissionError: Others may read the file.
    """
    kept = read_credentials(path) if path.exists() else {}
    missing = {name: value for name, value in new_credentials().items() if not kept.get(name)}
    if missing:
        _write(path, {**kept, **missing})
    return {**kept, **missing}


def read_credentials(path: Path) -> dict[str, str]:
    """Return the credentials of a file.

    Raises:
        PermissionError: Others may read the file.
    """
    if path.stat().st_mode & 0o077:
        raise PermissionError(f"{path}: others may read the credentials in it; chmod 600 it.")
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def _password() -> str:
    # Hexadecimal needs no quoting in a URL, a shell or an ini file.
    return secrets.token_hex(24)


def _write(path: Path, values: dict[str, str]) -> None:
    """Write the file whole or not at all, never readable by others."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("# Random credentials of alignflow's servers. Keep them to yourself.\n")
        file.writelines(f"{name}={value}\n" for name, value in values.items())
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


if __name__ == "__main__":
    credentials(Path(sys.argv[1]))
