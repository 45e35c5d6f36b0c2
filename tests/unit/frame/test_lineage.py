import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from alignflow.artifacts import Artifact, ArtifactStore
from alignflow.errors import CorruptArtifactError
from alignflow.lineage import Lineage, to_json, to_mermaid, to_tree, trace

Publish = Callable[..., Artifact]

SOURCE = {"uri": 's3://data/"pairs" <1>.jsonl', "sha256": "ab" * 32, "bytes": 10}


@pytest.fixture
def pipeline(publish: Publish) -> dict[str, Artifact]:
    """Publish a pipeline whose base model has two children that meet again in DPO."""
    model = publish("model", kind="model")
    demos = publish("demos", kind="dataset", details={"sources": [{"uri": "/data/demos.csv"}]})
    pairs = publish("pairs", kind="dataset", details={"sources": [SOURCE]})
    sft = publish("sft", parents={"model": model.ref, "data": demos.ref})
    dpo = publish(
        "dpo",
        kind="dpo",
        parents={"policy": sft.ref, "base": model.ref, "data": pairs.ref},
        metrics={"dpo/loss": 0.5},
    )
    return {"model": model, "demos": demos, "pairs": pairs, "sft": sft, "dpo": dpo}


@pytest.fixture
def lineage(store: ArtifactStore, pipeline: dict[str, Artifact]) -> Lineage:
    return trace(store, pipeline["dpo"])


def test_the_walk_reaches_every_ancestor_once(
    lineage: Lineage, pipeline: dict[str, Artifact]
) -> None:
    assert {node.digest for node in lineage.nodes.values()} == {
        artifact.digest for artifact in pipeline.values()
    }
    assert {(edge.child, edge.role, edge.parent) for edge in lineage.edges} == {
        (pipeline["dpo"].key, "base", pipeline["model"].key),
        (pipeline["dpo"].key, "data", pipeline["pairs"].key),
        (pipeline["dpo"].key, "policy", pipeline["sft"].key),
        (pipeline["sft"].key, "data", pipeline["demos"].key),
        (pipeline["sft"].key, "model", pipeline["model"].key),
    }


def test_datasets_and_their_sources_are_the_leaves(
    lineage: Lineage, pipeline: dict[str, Artifact]
) -> None:
    assert {node.digest: node.sources[0].uri for node in lineage.datasets} == {
        pipeline["demos"].digest: "/data/demos.csv",
        pipeline["pairs"].digest: SOURCE["uri"],
    }


def test_the_tree_shows_an_ancestor_in_full_once(
    lineage: Lineage, pipeline: dict[str, Artifact]
) -> None:
    short = {name: artifact.digest[:12] for name, artifact in pipeline.items()}
    assert to_tree(lineage).splitlines() == [
        f"dpo {short['dpo']}",
        f"├── base: model {short['model']}",
        f"├── data: dataset {short['pairs']}",
        f"│   └── source: {SOURCE['uri']} sha256:abababababab",
        f"└── policy: sft {short['sft']}",
        f"    ├── data: dataset {short['demos']}",
        "    │   └── source: /data/demos.csv",
        f"    └── model: model {short['model']} (above)",
    ]


def test_json_holds_full_digests_and_metrics(
    lineage: Lineage, pipeline: dict[str, Artifact]
) -> None:
    document = json.loads(to_json(lineage))
    assert document["root"] == pipeline["dpo"].key
    nodes = {node["key"]: node for node in document["nodes"]}
    assert nodes[pipeline["dpo"].key]["metrics"] == {"dpo/loss": 0.5}
    assert nodes[pipeline["pairs"].key]["sources"] == [
        {"uri": SOURCE["uri"], "sha256": SOURCE["sha256"]}
    ]
    assert len(document["edges"]) == 5


def test_mermaid_text_cannot_break_out_of_its_label(lineage: Lineage) -> None:
    text = to_mermaid(lineage)
    assert text.startswith("flowchart TD\n")
    assert "s3://data/#quot;pairs#quot; #lt;1#gt;.jsonl" in text
    assert all(line.count('"') in (0, 2) for line in text.splitlines())


def test_an_ancestor_that_is_gone_is_still_named(
    store: ArtifactStore, pipeline: dict[str, Artifact], tmp_path: Path
) -> None:
    sft = pipeline["sft"]
    (tmp_path / "store/keys" / f"{sft.key}.json").unlink()
    shutil.rmtree(tmp_path / "store/artifacts" / sft.digest)
    tree = to_tree(trace(store, pipeline["dpo"]))
    assert f"policy: sft {sft.digest[:12]} (no longer in the store)" in tree


def test_a_damaged_ancestor_stops_the_walk(
    store: ArtifactStore, pipeline: dict[str, Artifact], tmp_path: Path
) -> None:
    sft = pipeline["sft"]
    (tmp_path / "store/keys" / f"{sft.key}.json").write_text("{")
    assert sft.key in trace(store, pipeline["dpo"]).nodes, "the artifact itself still knows"
    manifest = tmp_path / "store/artifacts" / sft.digest / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("{")
    with pytest.raises(CorruptArtifactError, match="damaged manifest"):
        trace(store, pipeline["dpo"])
