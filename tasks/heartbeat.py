"""A run's heartbeat, sent by the thread that watches over it.

Prefect's own comes from a thread that sleeps for a second at a time, and whose end every run waits
for: half a second on average.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from alignflow.tasks.events import emit

HEARTBEAT = "prefect.flow-run.heartbeat"
HEARTBEAT_INTERVAL_S = 30.0


@contextmanager
def without_prefects_heartbeat() -> Iterator[None]:
    """Have the runs of a block send their heartbeat themselves."""
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def sends_its_own_heartbeat() -> bool:
    """Whether a run has to send its heartbeat itself."""
    return PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() is None


def send_heartbeat(flow_run_id: str) -> None:
    """Tell Prefect that a flow run lives."""
    resource = f"prefect.flow-run.{flow_run_id}"
    emit(HEARTBEAT, resource, {}, key=f"{flow_run_id} {datetime.now(UTC).isoformat()}")
