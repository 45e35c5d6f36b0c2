"""The lineage as a picture: boxes and arrows in pixels, placed by the layered layout."""

from dataclasses import dataclass
from itertools import pairwise

from alignflow.reporting.layout import Place, layered_layout
from alignflow.reporting.model import Lineage, LineageNode

BOX_WIDTH = 148
BOX_HEIGHT = 46
_COLUMN = BOX_WIDTH + 38
_ROW = BOX_HEIGHT + 22
_LABEL_CHARS = 18
_DETAIL_CHARS = 22
_DIGEST_CHARS = 12

_FAMILIES = {
    "model": "model",
    "sft": "model",
    "reward_model": "model",
    "dpo": "model",
    "ppo": "model",
    "attribute_model": "model",
    "steerlm": "model",
    "steerlm2": "model",
    "dataset": "data",
    "benchmark": "data",
    "judge": "judgement",
    "answer_judge": "judgement",
    "duels": "judgement",
    "evaluation": "judgement",
    "verdict": "judgement",
    "token_audit": "judgement",
    "registry": "registry",
}


@dataclass(frozen=True)
class Box:
    """A node, by its top left corner."""

    x: float
    y: float
    family: str
    label: str
    detail: str
    node: LineageNode


@dataclass(frozen=True)
class Arrow:
    """An edge as an SVG path, with the words that a pointer resting on it shows."""

    path: str
    title: str


@dataclass(frozen=True)
class LineagePicture:
    """The whole picture in pixels."""

    width: int
    height: int
    boxes: list[Box]
    arrows: list[Arrow]
    box_width: int = BOX_WIDTH
    box_height: int = BOX_HEIGHT


def lineage_picture(lineage: Lineage) -> LineagePicture | None:
    """Lay out the lineage from left to right; None where it has no node."""
    if not lineage.nodes:
        return None
    layout = layered_layout(
        [node.id for node in lineage.nodes], [(e.source, e.target) for e in lineage.edges]
    )
    names = {node.id: node.label for node in lineage.nodes}
    boxes = [
        Box(
            x=1 + layout.places[node.id].layer * _COLUMN,
            y=round(_middle(layout.places[node.id]) - BOX_HEIGHT / 2, 1),
            family=_FAMILIES.get(node.kind, "model"),
            label=_cut(node.label, _LABEL_CHARS),
            detail=_cut(node.detail, _DETAIL_CHARS) or node.digest[:_DIGEST_CHARS],
            node=node,
        )
        for node in lineage.nodes
    ]
    arrows = [
        Arrow(
            path=_path(layout.ways[edge.source, edge.target]),
            title=f"{names[edge.source]} → {names[edge.target]}"
            + (f" ({edge.role})" if edge.role else ""),
        )
        for edge in lineage.edges
    ]
    return LineagePicture(
        width=layout.num_layers * _COLUMN - (_COLUMN - BOX_WIDTH) + 2,
        height=round(layout.height * _ROW),
        boxes=boxes,
        arrows=arrows,
    )


def _path(way: list[Place]) -> str:
    """Return a curve from the right side of the first place to the left side of the last."""
    path = ""
    for start, end in pairwise(way):
        x0, y0 = 1 + start.layer * _COLUMN + BOX_WIDTH, _middle(start)
        x1, y1 = 1 + end.layer * _COLUMN, _middle(end)
        middle = (x0 + x1) / 2
        path += f"L{x0} {y0:.1f}" if path else f"M{x0} {y0:.1f}"
        path += f"C{middle} {y0:.1f} {middle} {y1:.1f} {x1} {y1:.1f}"
    return path


def _middle(place: Place) -> float:
    return place.y * _ROW


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
