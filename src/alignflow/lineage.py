"""From an artifact to everything it was made from, and three ways to show it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from alignflow.artifacts import Artifact, ArtifactStore, Manifest, ParentRef


@dataclass(frozen=True)
class Source:
    """Something from outside that an artifact was made from: a file of data, a model."""

    uri: str
    sha256: str | None = None


@dataclass(frozen=True)
class LineageNode:
    """One artifact; its key names it, since two keys may share a digest."""

    key: str
    digest: str
    kind: str
    created: str | None = None
    """UTC, ISO 8601; None where the artifact is no longer in the store."""
    sources: tuple[Source, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LineageEdge:
    """One parent of one artifact."""

    child: str
    """Key."""
    parent: str
    """Key."""
    role: str


@dataclass(frozen=True)
class Lineage:
    """An artifact with all its ancestors."""

    root: str
    """Key of the artifact that was asked for."""
    nodes: dict[str, LineageNode]
    """By key; the root first, ancestors in the order they were reached."""
    edges: tuple[LineageEdge, ...]

    def parents(self, key: str) -> Iterator[tuple[str, LineageNode]]:
        """Yield role and node of each parent of an artifact."""
        return ((e.role, self.nodes[e.parent]) for e in self.edges if e.child == key)

    @property
    def datasets(self) -> tuple[LineageNode, ...]:
        """Return the datasets among the ancestors; they carry digests and sources."""
        return tuple(node for node in self.nodes.values() if node.kind == "dataset")


def find_artifact(store: ArtifactStore, tags: Mapping[str, str]) -> Artifact:
    """Return the artifact that the tags of a registered version name.

    Two stages may make the same files from other parents: the key tells which one was registered.

    Args:
        store: The store in the tag `alignflow.store`.
        tags: `alignflow.digest`, and `alignflow.key` where the version has it.

    Raises:
        StoreError: The store can't be read or doesn't hold the artifact.
        CorruptArtifactError: It is damaged.
    """
    digest = tags["alignflow.digest"]
    found = store.find(tags["alignflow.key"]) if "alignflow.key" in tags else None
    return found if found is not None and found.digest == digest else store.get(digest)


def trace(store: ArtifactStore, artifact: Artifact) -> Lineage:
    """Walk from an artifact to every ancestor.

    Only manifests are read. An ancestor whose record is gone still appears, with what its child
    knows of it.

    Raises:
        StoreError: The store can't be read.
        CorruptArtifactError: A record on the way is damaged.
    """
    nodes: dict[str, LineageNode] = {}
    edges: list[LineageEdge] = []
    waiting: list[tuple[ParentRef, Manifest | None]] = [(artifact.ref, artifact.manifest)]
    while waiting:
        ref, manifest = waiting.pop(0)
        if ref.key in nodes:
            continue
        nodes[ref.key] = _node(ref, manifest)
        for role, parent in sorted((manifest.parents if manifest else {}).items()):
            edges.append(LineageEdge(child=ref.key, parent=parent.key, role=role))
            waiting.append((parent, store.manifest_of(parent)))
    return Lineage(root=artifact.key, nodes=nodes, edges=tuple(edges))


def _node(ref: ParentRef, manifest: Manifest | None) -> LineageNode:
    if manifest is None:
        return LineageNode(key=ref.key, digest=ref.digest, kind=ref.kind)
    sources = manifest.details.get("sources", [])
    return LineageNode(
        key=ref.key,
        digest=ref.digest,
        kind=ref.kind,
        created=manifest.created.isoformat(timespec="seconds"),
        sources=tuple(Source(str(s["uri"]), s.get("sha256")) for s in sources),
        metrics=dict(manifest.metrics),
    )


def to_tree(lineage: Lineage) -> str:
    """Return the lineage as indented text; an ancestor that is met again is not spelled out."""
    lines: list[str] = []
    seen: set[str] = set()

    def add(node: LineageNode, label: str, head: str, tail: str) -> None:
        again = " (above)" if node.key in seen else ""
        gone = "" if node.created else " (no longer in the store)"
        lines.append(f"{head}{label}{node.kind} {node.digest[:12]}{again or gone}")
        if node.key in seen:
            return
        seen.add(node.key)
        parents = list(lineage.parents(node.key))
        below = len(parents) + len(node.sources)
        for index, (role, parent) in enumerate(parents, start=1):
            corner, bar = _branch(is_last=index == below)
            add(parent, f"{role}: ", tail + corner, tail + bar)
        for index, source in enumerate(node.sources, start=len(parents) + 1):
            corner, _ = _branch(is_last=index == below)
            digest = f" sha256:{source.sha256[:12]}" if source.sha256 else ""
            lines.append(f"{tail}{corner}source: {source.uri}{digest}")

    add(lineage.nodes[lineage.root], "", "", "")
    return "\n".join(lines) + "\n"


def _branch(*, is_last: bool) -> tuple[str, str]:
    return ("└── ", "    ") if is_last else ("├── ", "│   ")


def to_dict(lineage: Lineage) -> dict[str, Any]:
    """Return the lineage in JSON types, digests in full."""
    return {
        "root": lineage.root,
        "nodes": [
            {
                "key": node.key,
                "digest": node.digest,
                "kind": node.kind,
                "created": node.created,
                "sources": [{"uri": s.uri, "sha256": s.sha256} for s in node.sources],
                "metrics": node.metrics,
            }
            for node in lineage.nodes.values()
        ],
        "edges": [
            {"child": edge.child, "parent": edge.parent, "role": edge.role}
            for edge in lineage.edges
        ],
    }


def to_json(lineage: Lineage) -> str:
    """Return the lineage as a JSON document."""
    return json.dumps(to_dict(lineage), indent=2, ensure_ascii=False) + "\n"


def to_mermaid(lineage: Lineage) -> str:
    """Return the lineage as a Mermaid flowchart, parents above their children."""
    names = {key: f"n{index}" for index, key in enumerate(lineage.nodes)}
    lines = ["flowchart TD"]
    for key, node in lineage.nodes.items():
        lines.append(f'    {names[key]}["{_escaped(node.kind)}<br/>{node.digest[:12]}"]')
        for index, source in enumerate(node.sources):
            lines.append(f'    {names[key]}s{index}[("{_escaped(source.uri)}")] --> {names[key]}')
    for edge in lineage.edges:
        lines.append(f'    {names[edge.parent]} -->|"{_escaped(edge.role)}"| {names[edge.child]}')
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Return text that neither Mermaid nor the page around it takes for syntax."""
    signs = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "\n": " "}
    return "".join(signs.get(sign, sign) for sign in text)
