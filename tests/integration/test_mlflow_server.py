"""Decisions through a real MLflow server, and its webhooks as docs/promotion.md describes them."""

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient, create_external_model
from mlflow_server import mlflow_server

from alignflow.tasks.decisions import Author, settle
from alignflow.tasks.promotion import promote, roll_back
from alignflow.tasks.tracking import Registry, Tracker

pytestmark = pytest.mark.integration

SECRET = "a secret of the test"
DOCS = Path(__file__).parents[2] / "docs" / "promotion.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(bytes(32)).decode(),
    }
    with mlflow_server(tmp_path_factory.mktemp("server"), settings).running() as server:
        yield server.health_url.removesuffix("/health")


class Receiver:
    """A real HTTP server that keeps what it is sent."""

    def __init__(self) -> None:
        calls: list[tuple[Message, bytes]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                calls.append((self.headers, body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.calls = calls
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/mlflow"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait_for(self, count: int) -> list[tuple[Message, bytes]]:
        deadline = time.monotonic() + 60
        while len(self.calls) < count and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.calls


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture(scope="module")
def is_from_mlflow() -> Callable[..., bool]:
    """The check that the documentation shows."""
    (code,) = re.findall(r"```python\n(import base64.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    check: Callable[..., bool] = names["is_from_mlflow"]
    return check


def test_promotion_and_rollback_call_a_signed_webhook(
    server: str, receiver: Receiver, is_from_mlflow: Callable[..., bool], tmp_path: Path
) -> None:
    MlflowClient(server).create_webhook(
        name="aliases",
        url=receiver.url,
        events=["model_version_alias.created", "model_version_alias.deleted"],
        secret=SECRET,
    )
    tracker = Tracker(uri=server, experiment="webhooks", artifact_root=tmp_path)
    registry, run = tracker.registry, tracker.start_pipeline("webhooks", {})
    author = Author("ada", "there is no verdict here")
    for number in ("1", "2"):
        registry.add("assistant", f"s3://models/{number}", run_id=run.run_id, tags={})
        promote(registry, "assistant", number, author, cache=tmp_path, force=True)
    roll_back(registry, "assistant", Author("ada"))
    assert registry.aliases("assistant") == {"champion": "1"}
    assert [d.action for d in settle(registry, "assistant")] == [
        *("promoted", "promoted", "rolled back"),
    ]

    # champion 1; previous 1, champion 2; no previous, champion 1.
    calls = receiver.wait_for(5)
    told = sorted(
        (body["action"], body["data"]["alias"], body["data"].get("version"))
        for body in (json.loads(body) for _, body in calls)
    )
    assert told == [
        ("created", "champion", "1"),
        ("created", "champion", "1"),
        ("created", "champion", "2"),
        ("created", "previous", "1"),
        ("deleted", "previous", None),
    ]
    for headers, body in calls:
        assert is_from_mlflow(headers, body, SECRET)
        assert not is_from_mlflow(headers, body, "another secret")
        assert not is_from_mlflow(headers, body + b" ", SECRET)
        assert not is_from_mlflow(headers, body, SECRET, max_age_s=-1)


def test_a_model_that_a_run_logged_is_registered(server: str, tmp_path: Path) -> None:
    tracker = Tracker(uri=server, experiment="logged", artifact_root=tmp_path)
    run = tracker.start_pipeline("logged", {})
    model = create_external_model(name="dpo", source_run_id=run.run_id, model_type="dpo")
    version = tracker.register("logged", model.model_id, run=run, tags={"alignflow.digest": "1"})
    assert tracker.registry.version_of("logged", "1") == version


def test_nothing_is_printed_when_a_run_ends(
    server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(uri=server, experiment="quiet", artifact_root=tmp_path)
    tracker.start_pipeline("quiet", {}).end("FINISHED")
    # Commands with --json have standard output to themselves.
    assert capfd.readouterr().out == ""


def test_decisions_of_several_clients_follow_one_another(server: str, tmp_path: Path) -> None:
    tracker = Tracker(uri=server, experiment="at-once", artifact_root=tmp_path)
    run = tracker.start_pipeline("at-once", {})
    for number in range(5):
        tracker.registry.add("shared", f"s3://models/{number}", run_id=run.run_id, tags={})

    def promote_one(number: int) -> None:
        author = Author(f"client {number}", "there is no verdict here")
        promote(Registry(server), "shared", str(number), author, cache=tmp_path, force=True)

    with ThreadPoolExecutor(5) as clients:
        list(clients.map(promote_one, range(1, 6)))
    decisions = settle(tracker.registry, "shared")
    assert sorted(decision.version for decision in decisions) == ["1", "2", "3", "4", "5"]
    for earlier, later in pairwise(decisions):
        assert later.before["champion"] == earlier.version
        assert later.after["previous"] == earlier.version
    assert tracker.registry.aliases("shared") == decisions[-1].after
