"""The log of a run: on Prefect's page of the task where there is one."""

import logging

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

_Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


def run_logger() -> _Logger:
    """Return the logger of the task or flow that calls; outside of both, an ordinary one."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("alignflow")
