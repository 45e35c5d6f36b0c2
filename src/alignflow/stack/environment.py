"""The environment variables of each server and of its clients: one source of their names.

`docker-compose.yml` has the same names, which a test holds it to.
"""

import os
from collections.abc import Mapping

from alignflow.stack.config import HOST, StackConfig
from alignflow.stack.credentials import USER

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
}
"""Nothing reports to anybody."""

REGION = "us-east-1"
BUCKET = "alignflow"
"""Bucket of artifacts and data."""
MLFLOW_BUCKET = "mlflow"


def prefect_server(
    credentials: Mapping[str, str], *, database_url: str, url: str
) -> dict[str, str]:
    """Return the variables of a Prefect server.

    Args:
        credentials: Of the stack.
        database_url: With password, where there is one.
        url: Address at which a browser finds the server.
    """
    return {
        **QUIET,
        "PREFECT_API_DATABASE_CONNECTION_URL": database_url,
        "PREFECT_SERVER_API_AUTH_STRING": credentials["PREFECT_API_AUTH_STRING"],
        "PREFECT_UI_API_URL": f"{url}/api",
        # Else a box about Prefect's own service lies over the form of an approval.
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    }


def mlflow_server(
    credentials: Mapping[str, str],
    *,
    database_url: str,
    artifacts: str,
    auth_config: str,
    allowed_hosts: str,
) -> dict[str, str]:
    """Return the variables of an MLflow server.

    Args:
        credentials: Of the stack.
        database_url: With password, where there is one.
        artifacts: Folder or URL of what runs log.
        auth_config: Path of the ini file of MLflow's accounts.
        allowed_hosts: What a request may call the server.
    """
    return {
        **QUIET,
        "MLFLOW_BACKEND_STORE_URI": database_url,
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
        "MLFLOW_AUTH_CONFIG_PATH": auth_config,
        "MLFLOW_AUTH_ADMIN_USERNAME": credentials["MLFLOW_TRACKING_USERNAME"],
        "MLFLOW_AUTH_ADMIN_PASSWORD": credentials["MLFLOW_TRACKING_PASSWORD"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": credentials["MLFLOW_FLASK_SERVER_SECRET_KEY"],
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": credentials["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"],
        # Its own jobs take eight more processes, and alignflow asks for none.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": allowed_hosts,
    }


def s3_client(endpoint: str, key_id: str, secret: str) -> dict[str, str]:
    """Return the variables by which every client of S3 finds a server of one's own."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": key_id,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def mlflow_s3(credentials: Mapping[str, str], endpoint: str) -> dict[str, str]:
    """Return the variables by which the MLflow server finds its bucket."""
    return s3_client(
        endpoint,
        credentials["S3_MLFLOW_ACCESS_KEY_ID"],
        credentials["S3_MLFLOW_SECRET_ACCESS_KEY"],
    )


def clients(credentials: Mapping[str, str], config: StackConfig) -> dict[str, str]:
    """Return the variables by which runs, workers and shells find the servers of this machine."""
    found = {
        "PREFECT_API_URL": f"{config.prefect_url}/api",
        "PREFECT_API_AUTH_STRING": credentials["PREFECT_API_AUTH_STRING"],
        "MLFLOW_TRACKING_URI": config.mlflow_url,
        "MLFLOW_TRACKING_USERNAME": credentials["MLFLOW_TRACKING_USERNAME"],
        "MLFLOW_TRACKING_PASSWORD": credentials["MLFLOW_TRACKING_PASSWORD"],
    }
    if not config.full:
        return found
    key = credentials["AWS_ACCESS_KEY_ID"], credentials["AWS_SECRET_ACCESS_KEY"]
    return {**found, **s3_client(config.s3_url, *key)}


def postgres_url(credentials: Mapping[str, str], driver: str, address: str, database: str) -> str:
    """Return the URL of a database, password and all."""
    password = credentials["POSTGRES_PASSWORD"]
    return f"postgresql+{driver}://{USER}:{password}@{address}/{database}"


def mlflow_accounts(database_url: str) -> str:
    """Return MLflow's ini file: who has an account sees nothing until somebody lets them."""
    return (
        "[mlflow]\n"
        "default_permission = NO_PERMISSIONS\n"
        # configparser reads % as the start of a name.
        f"database_uri = {database_url.replace('%', '%%')}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )


def allowed_hosts(*names: str) -> str:
    """Return MLflow's list of what a request may call the server, any port included."""
    return ",".join(f"{name}:*" for name in (*names, "localhost", HOST))


def inherited(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what servers take over from a shell: all but what names or sets up other servers."""
    own = ("PREFECT_", "MLFLOW_", "_MLFLOW_", "POSTGRES_", "PG")
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(own) or name.startswith("MLFLOW_WEBHOOK_")
    }
