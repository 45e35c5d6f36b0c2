"""What `alignflow gc` removes, with a real registry and store."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alignflow.artifacts import ArtifactStore
from alignflow.artifacts.garbage import Garbage
from alignflow.cli.app import app
from alignflow.errors import ConfigError
from alignflow.jobs.local import LocalLauncher
from alignflow.jobs.run_folder import RunFolder
from alignflow.jobs.spec import JobSpec
from alignflow.jobs.wait import wait_for
from alignflow.tasks.cleaning import clean_jobs, clean_store
from alignflow.tasks.decisions import Author
from alignflow.tasks.pipeline import Pipeline
from alignflow.tasks.promotion import promote
from alignflow.tasks.tracking import RegisteredVersion, Registry

Candidate = Callable[[float], RegisteredVersion]
DAY_S = 86_400.0


def make_old(path: Path) -> None:
    """Have everything below a path have changed 31 days ago."""
    then = time.time() - 31 * DAY_S
    for each in [*path.rglob("*"), path]:
        os.utime(each, (then, then))


def test_what_a_promotion_asks_again_stays_and_what_was_refused_goes(
    pipeline: Pipeline, candidate: Candidate, registry: Registry, name: str
) -> None:
    candidate(0.7)
    refused = pipeline.store.publish(
        _folder(pipeline.workspace / "refused"),
        kind="dpo",
        key=hashlib.sha256(b"refused").hexdigest(),
        code_version="v",
    )
    make_old(pipeline.workspace / "artifacts" / "keys")

    def clean(*, delete: bool) -> Garbage:
        return clean_store(
            pipeline.store,
            registry,
            unused_s=30 * DAY_S,
            allow_none_registered=False,
            delete=delete,
        )

    listed = clean(delete=False)
    assert [manifest.digest for manifest in listed.artifacts] == [refused.digest]
    assert pipeline.store.find(refused.key) is not None
    removed = clean(delete=True)
    assert removed.artifacts == listed.artifacts
    assert pipeline.store.find(refused.key) is None
    assert promote(registry, name, None, Author("ada", ""), cache=pipeline.cache) is not None


def test_a_registry_that_knows_nothing_of_the_store_is_not_believed(
    pipeline: Pipeline, registry: Registry, tmp_path: Path
) -> None:
    store = ArtifactStore(str(tmp_path / "other"))
    store.publish(_folder(tmp_path / "made"), kind="dpo", key="b" * 64, code_version="v")
    make_old(tmp_path / "other")
    with pytest.raises(ConfigError, match="the registry has no version"):
        clean_store(store, registry, unused_s=1, allow_none_registered=False, delete=True)
    gone = clean_store(store, registry, unused_s=1, allow_none_registered=True, delete=True)
    assert [record.manifest.key for record in gone.records] == ["b" * 64]


def test_only_jobs_that_ended_long_ago_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNFLOW_SLOTS_DIR", str(tmp_path / "slots"))
    folders = {name: _run_job(tmp_path, name, seconds=0) for name in ("old", "young")}
    running = _run_job(tmp_path, "running", seconds=60)
    make_old(folders["old"].path)
    make_old(running.path)
    try:
        listed = clean_jobs(tmp_path, unused_s=30 * DAY_S, delete=False)
        assert [folder.path for folder in listed] == [folders["old"].path]
        assert listed[0].size > 0
        removed = clean_jobs(tmp_path, unused_s=30 * DAY_S, delete=True)
        assert [folder.path for folder in removed] == [folders["old"].path]
        assert not folders["old"].path.exists()
        assert folders["young"].path.exists()
    finally:
        job = LocalLauncher().find(running)
        assert job is not None
        job.cancel(grace_s=0)


def test_the_command_lists_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    store = ArtifactStore(str(tmp_path / "artifacts"))
    made = store.publish(_folder(tmp_path / "made"), kind="dpo", key="c" * 64, code_version="v")
    make_old(tmp_path / "artifacts" / "keys")
    say = ["gc", "--workspace", str(tmp_path)]
    refused = CliRunner().invoke(app, say)
    assert (refused.exit_code, refused.stdout) == (2, "")
    listed = CliRunner().invoke(app, [*say, "--none-registered"]).stdout
    assert made.digest[:12] in listed
    assert "alignflow gc --delete removes it" in listed
    told = CliRunner().invoke(app, [*say, "--none-registered", "--delete", "--format", "json"])
    assert [item["what"] for item in json.loads(told.stdout)["items"]] == ["dpo"]
    assert store.find("c" * 64) is None
    assert CliRunner().invoke(app, say).stdout == "nothing is unneeded\n"


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "model.bin").write_text(path.name)
    return path


def _run_job(workspace: Path, name: str, *, seconds: int) -> RunFolder:
    """Start a job that sleeps; wait for one that doesn't."""
    (workspace / "sleeping_job.py").write_text(
        "import time\n"
        "from alignflow.jobs.spec import JobResult\n"
        "from alignflow.jobs.worker import run_job\n"
        "def main(folder, spec):\n"
        "    time.sleep(spec.config['seconds'])\n"
        "    return JobResult()\n"
        "run_job(main)\n"
    )
    folder = RunFolder(workspace / "jobs" / name)
    spec = JobSpec(
        name=name,
        module="sleeping_job",
        config={"seconds": seconds},
        env={"PYTHONPATH": f"{workspace}:{os.environ.get('PYTHONPATH', '')}"},
    )
    job = LocalLauncher().submit(spec, folder)
    if not seconds:
        wait_for(job, folder, poll_s=0.05)
    return folder
