"""A run keeps its place in the queue though the Prefect server is killed and started again."""

from datetime import timedelta
from pathlib import Path
from uuid import UUID

import httpx
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_server import prefect_server

pytestmark = [pytest.mark.integration, pytest.mark.slow]

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"
STORAGE = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
LEASE_S = timedelta(minutes=5).total_seconds()


@pytest.mark.parametrize("is_kept", [True, False], ids=["as composed", "in memory"])
def test_a_lease_outlives_the_server(tmp_path: Path, is_kept: bool) -> None:
    server = prefect_server(tmp_path)
    if is_kept:
        services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
        setting = services["prefect"]["environment"][STORAGE]
        server.environment = {**server.environment, STORAGE: setting}
    url = server.health_url.removesuffix("/health")
    with (
        server.running(),
        temporary_settings({PREFECT_API_URL: url}),
        get_client(sync_client=True) as client,
    ):
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpus", limit=1))
        answer = client.increment_concurrency_slots_with_lease(["gpus"], 1, "concurrency", LEASE_S)
        lease = UUID(answer.json()["lease_id"])
        server.kill()
        server.start()
        if is_kept:
            client.renew_concurrency_lease(lease, LEASE_S)
        else:
            with pytest.raises((PrefectHTTPStatusError, httpx.HTTPStatusError), match=r"410|404"):
                client.renew_concurrency_lease(lease, LEASE_S)
