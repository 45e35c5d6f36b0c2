"""Promotions that are killed at each of their writes, and promotions made at once.

Every step is a process of its own, forked from one that has MLflow imported and no connection open.
Prints one JSON object.
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from alignflow.tasks.decisions import Author, settle
from alignflow.tasks.promotion import promote
from alignflow.tasks.tracking import Registry, Tracker
from alignflow.tasks.tracking.client import Writer

URI, FOLDER = sys.argv[1], Path(sys.argv[2])
FORCED = Author("ada", "there is no verdict here")


def in_process(step: Callable[[], Any]) -> Any:
    """Return what a forked process returns; None where it was killed."""
    return finish(*start(step))


def start(step: Callable[[], Any]) -> tuple[int, Path]:
    handle, path = tempfile.mkstemp(dir=FOLDER)
    os.close(handle)
    child = os.fork()
    if child == 0:
        Path(path).write_text(json.dumps(step()))
        os._exit(0)
    return child, Path(path)


def finish(child: int, answer: Path) -> Any:
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert status == 0, status
    return json.loads(answer.read_text())


def make_model(name: str, num_versions: int) -> None:
    tracker = Tracker(uri=URI, experiment="faults", artifact_root=FOLDER)
    run = tracker.start_pipeline(name, {})
    for number in range(num_versions):
        tracker.registry.add(name, f"s3://models/{number}", run_id=run.run_id, tags={})
    promote(tracker.registry, name, "1", FORCED, cache=FOLDER, force=True)
    tracker.registry.point(name, "candidate", "2")


def promote_and_die(name: str, writes: int) -> str:
    """Promote the candidate in a process that dies before the write after so many."""
    original, made = Writer.__call__, iter(range(writes))

    def write(self: Writer, *args: Any, **kwargs: Any) -> Any:
        if next(made, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    Writer.__call__ = write  # type: ignore[method-assign]
    promote(Registry(URI), name, None, FORCED, cache=FOLDER, force=True)
    return "lived"


def looked_at(name: str) -> dict[str, Any]:
    """Return what there is, and what the next command, which only lists, makes of it."""
    registry = Registry(URI)
    left = registry.aliases(name)
    decisions = [d.model_dump(mode="json") for d in settle(registry, name)]
    version = registry.get(name, "2")
    return {
        "left": left,
        "repaired": registry.aliases(name),
        "decisions": decisions,
        "tagged": version.tags.get("alignflow.decision") if version else None,
    }


def killed_at_each_write() -> Iterator[dict[str, Any]]:
    for writes in range(50):
        name = f"killed-{writes}"
        in_process(partial(make_model, name, 2))
        outcome = in_process(partial(promote_and_die, name, writes))
        yield in_process(partial(looked_at, name))
        if outcome == "lived":
            return


def made_at_once(num_processes: int) -> dict[str, Any]:
    name = "at-once"
    in_process(partial(make_model, name, num_processes + 1))

    def promote_one(number: int) -> str:
        promote(Registry(URI), name, str(number), FORCED, cache=FOLDER, force=True)
        return "lived"

    started = [start(partial(promote_one, n)) for n in range(2, num_processes + 2)]
    outcomes = [finish(*each) for each in started]
    return {"outcomes": outcomes, **in_process(partial(looked_at, name))}


print(json.dumps({"killed": list(killed_at_each_write()), "at_once": made_at_once(4)}))
