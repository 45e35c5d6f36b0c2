"""Events for Prefect, where there is no server or none that answers."""

import logging
import socket
import time

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from alignflow.tasks.events import emit


def test_server_that_is_away_costs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/api"
        began = time.monotonic()
        with temporary_settings({PREFECT_API_URL: url}), caplog.at_level(logging.WARNING):
            emit("alignflow.model.promoted", "alignflow.model.x", {}, key="1")
    assert "did not take the event alignflow.model.promoted" in caplog.text
    assert time.monotonic() - began < 20


def test_without_a_server_nothing_is_posted(caplog: pytest.LogCaptureFixture) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        emit("alignflow.model.promoted", "alignflow.model.x", {}, key="1")
    assert not caplog.records
