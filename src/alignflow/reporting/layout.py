"""Layered layout of a directed graph: columns, an order with few crossings, and positions.

The steps are Sugiyama's: layers by longest path, a stand-in in every layer that a long edge passes,
barycentre sweeps for the order, then heights that pull neighbours level. The long edges of one
source share their stand-ins, so that they leave it as one line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise
from typing import NamedTuple

_SWEEPS = 12
_STAND_IN_SIZE = 0.4
"""Room that a passing edge takes in a column, where a node takes 1."""


@dataclass(frozen=True)
class Place:
    """A position: the column, from 0, and the middle's way down from the top, in node sizes."""

    layer: int
    y: float


@dataclass(frozen=True)
class Layout:
    """Places of the nodes, and of every edge's way from its source to its target."""

    places: dict[str, Place]
    ways: dict[tuple[str, str], list[Place]]
    num_layers: int
    height: float
    """Node sizes from the top of the highest vertex to the bottom of the lowest."""


class _Vertex(NamedTuple):
    """A node in its layer, or what stands in for the edges of a node in a layer they pass."""

    node: str
    layer: int
    is_stand_in: bool = False

    @property
    def size(self) -> float:
        return _STAND_IN_SIZE if self.is_stand_in else 1.0


_Link = tuple[_Vertex, _Vertex]


def layered_layout(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> Layout:
    """Place the nodes of a graph without cycles so that edges run from left to right.

    Raises:
        graphlib.CycleError: The edges form a cycle.
    """
    vertices = {node: _Vertex(node, layer) for node, layer in _layers(nodes, edges).items()}
    chains = {
        (source, target): [
            vertices[source],
            *(
                _Vertex(source, layer, is_stand_in=True)
                for layer in range(vertices[source].layer + 1, vertices[target].layer)
            ),
            vertices[target],
        ]
        for source, target in edges
    }
    links = list(dict.fromkeys(pair for chain in chains.values() for pair in pairwise(chain)))
    columns = _ordered(_columns([*vertices.values(), *(v for pair in links for v in pair)]), links)
    y = _heights(columns, links)
    top = min((y[v] - v.size / 2 for v in y), default=0.0)

    def place(vertex: _Vertex) -> Place:
        return Place(vertex.layer, y[vertex] - top)

    return Layout(
        places={node: place(vertex) for node, vertex in vertices.items()},
        ways={edge: [place(vertex) for vertex in chain] for edge, chain in chains.items()},
        num_layers=len(columns),
        height=max((y[v] + v.size / 2 for v in y), default=0.0) - top,
    )


def _columns(vertices: Sequence[_Vertex]) -> list[list[_Vertex]]:
    """Return the vertices, each once, by layer."""
    columns: list[list[_Vertex]] = [
        [] for _ in range(max((v.layer for v in vertices), default=-1) + 1)
    ]
    for vertex in dict.fromkeys(vertices):
        columns[vertex.layer].append(vertex)
    return columns


def _layers(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return each node's column: right of all its parents; sources just left of a child."""
    parents: dict[str, list[str]] = {node: [] for node in nodes}
    children: dict[str, list[str]] = {node: [] for node in nodes}
    for source, target in edges:
        parents[target].append(source)
        children[source].append(target)
    layer_of: dict[str, int] = {}
    for node in TopologicalSorter(parents).static_order():
        layer_of[node] = max((layer_of[parent] + 1 for parent in parents[node]), default=0)
    for node in nodes:
        if not parents[node] and children[node]:
            layer_of[node] = min(layer_of[child] for child in children[node]) - 1
    return layer_of


def _neighbours(
    links: Sequence[_Link],
) -> tuple[Mapping[_Vertex, list[_Vertex]], Mapping[_Vertex, list[_Vertex]]]:
    before: dict[_Vertex, list[_Vertex]] = {}
    after: dict[_Vertex, list[_Vertex]] = {}
    for source, target in links:
        before.setdefault(target, []).append(source)
        after.setdefault(source, []).append(target)
    return before, after


def _ordered(columns: list[list[_Vertex]], links: Sequence[_Link]) -> list[list[_Vertex]]:
    """Return the columns in the order, of all sweeps, in which the fewest links cross."""
    before, after = _neighbours(links)
    best, fewest = columns, _crossings(columns, links)
    for sweep in range(_SWEEPS):
        columns = [list(column) for column in columns]
        rightwards = sweep % 2 == 0
        neighbours = before if rightwards else after
        for at in range(len(columns)) if rightwards else reversed(range(len(columns))):
            _sort_by_neighbours(columns, at, neighbours)
        crossings = _crossings(columns, links)
        if crossings < fewest:
            best, fewest = columns, crossings
    return best


def _sort_by_neighbours(
    columns: list[list[_Vertex]], at: int, neighbours: Mapping[_Vertex, list[_Vertex]]
) -> None:
    """Order one column by the mean position of each vertex's neighbours."""
    index = {v: i for column in columns for i, v in enumerate(column)}
    wanted = {
        v: _mean([index[n] for n in neighbours.get(v, [])], default=index[v]) for v in columns[at]
    }
    columns[at].sort(key=wanted.__getitem__)


def _crossings(columns: list[list[_Vertex]], links: Sequence[_Link]) -> int:
    at = {v: (layer, i) for layer, column in enumerate(columns) for i, v in enumerate(column)}
    by_layer: dict[int, list[tuple[int, int]]] = {}
    for source, target in links:
        by_layer.setdefault(at[source][0], []).append((at[source][1], at[target][1]))
    return sum(
        (a[0] - b[0]) * (a[1] - b[1]) < 0
        for pairs in by_layer.values()
        for i, a in enumerate(pairs)
        for b in pairs[:i]
    )


def _heights(columns: list[list[_Vertex]], links: Sequence[_Link]) -> dict[_Vertex, float]:
    """Return heights that draw linked vertices level, in the given order, none overlapping."""
    before, after = _neighbours(links)
    y: dict[_Vertex, float] = {}
    for column in columns:
        offsets = _offsets(column)
        y |= {v: offset - offsets[-1] / 2 for v, offset in zip(column, offsets, strict=True)}
    for sweep in range(2 * _SWEEPS):
        rightwards = sweep % 2 == 0
        for column in columns if rightwards else reversed(columns):
            wanted = [
                _mean([y[n] for n in (*before.get(v, ()), *after.get(v, ()))], y[v]) for v in column
            ]
            y |= dict(zip(column, _spread(wanted, _offsets(column)), strict=True))
    return y


def _offsets(column: Sequence[_Vertex]) -> list[float]:
    """Return the heights of the column's vertices packed as closely as their sizes allow."""
    offsets = [0.0]
    for above, below in pairwise(column):
        offsets.append(offsets[-1] + (above.size + below.size) / 2)
    return offsets


def _spread(wanted: Sequence[float], offsets: Sequence[float]) -> list[float]:
    """Return heights nearest to the wanted ones, in least squares, that keep the distances.

    With the distances subtracted it is isotonic regression, solved by pooling adjacent violators.
    """
    pools: list[tuple[float, int]] = []  # mean and size
    for want, offset in zip(wanted, offsets, strict=True):
        mean, size = want - offset, 1
        while pools and pools[-1][0] > mean:
            above, count = pools.pop()
            mean, size = (mean * size + above * count) / (size + count), size + count
        pools.append((mean, size))
    level = [mean for mean, size in pools for _ in range(size)]
    return [base + offset for base, offset in zip(level, offsets, strict=True)]


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default
