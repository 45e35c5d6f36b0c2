"""Servers of Prefect and MLflow that the environment names: where they are, whether they answer."""

import os
from collections.abc import Mapping
from http.client import HTTPException
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import urlopen

from alignflow.urls import without_credentials

_ANSWER_TIMEOUT_S = 3.0


class Server(NamedTuple):
    """A server that a run talks to."""

    name: str
    variable: str
    """Environment variable that names it."""
    url: str
    """Page that answers while it is well, without credentials."""


def named_servers(environ: Mapping[str, str] = os.environ) -> list[Server]:
    """Return the servers that the environment names; without any, a run brings its own."""
    found = []
    for name, variable in (("Prefect", "PREFECT_API_URL"), ("MLflow", "MLFLOW_TRACKING_URI")):
        url = environ.get(variable, "")
        if url.startswith(("http://", "https://")):
            health = f"{without_credentials(url).rstrip('/')}/health"
            found.append(Server(name, variable, health))
    return found


def why_silent(server: Server) -> str | None:
    """Return in a few words why a server doesn't answer, None where it does."""
    try:
        with urlopen(server.url, timeout=_ANSWER_TIMEOUT_S):
            return None
    except HTTPError as error:
        # Who asks for a password, or has no such page behind a proxy, is there all the same.
        return None if error.code < 500 else f"it answers {error.code}"
    except (OSError, ValueError, HTTPException) as error:
        return str(getattr(error, "reason", error))
