"""Where the model came from."""

from graphlib import CycleError, TopologicalSorter
from typing import Self

from pydantic import model_validator

from alignflow.config import Config
from alignflow.reporting.model.fields import Text


class LineageNode(Config):
    """One thing that the model came from or was judged by."""

    id: str
    kind: str
    """Artifact kind (`model`, `dataset`, `benchmark`, `sft`, …) or `registry`."""
    label: Text
    """A short name; about 16 characters fit the picture."""
    digest: str = ""
    """Content digest; empty for what is no artifact."""
    detail: Text = ""
    """A few words more, such as `288 rows` or `version 3`."""


class LineageEdge(Config):
    """One thing that was made from another."""

    source: str
    """Id of the parent."""
    target: str
    """Id of the child."""
    role: str = ""
    """What the parent was to the child, such as `reference`."""


class Lineage(Config):
    """Where the model came from, as a directed graph without cycles."""

    nodes: list[LineageNode] = []
    edges: list[LineageEdge] = []

    @model_validator(mode="after")
    def _is_a_graph_without_cycles(self) -> Self:
        known = {node.id for node in self.nodes}
        if len(known) != len(self.nodes):
            raise ValueError("two lineage nodes have the same id")
        children: dict[str, list[str]] = {}
        for edge in self.edges:
            if not {edge.source, edge.target} <= known:
                raise ValueError(f"edge {edge.source} -> {edge.target} names an unknown node")
            children.setdefault(edge.source, []).append(edge.target)
        try:
            TopologicalSorter(children).prepare()
        except CycleError as error:
            raise ValueError(f"the lineage has a cycle: {error.args[1]}") from None
        return self
