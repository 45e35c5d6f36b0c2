import random
from itertools import combinations

import pytest

from alignflow.reporting.layout import layered_layout
from alignflow.reporting.lineage import BOX_HEIGHT, lineage_picture
from alignflow.reporting.model import Lineage, LineageNode, ReportData


def test_a_chain_lies_level_in_its_columns() -> None:
    layout = layered_layout(["c", "a", "b"], [("a", "b"), ("b", "c")])
    assert [layout.places[n].layer for n in "abc"] == [0, 1, 2]
    assert len({layout.places[n].y for n in "abc"}) == 1
    assert layout.height == 1


def test_a_source_stands_just_left_of_its_first_child() -> None:
    layout = layered_layout(["a", "b", "c", "late"], [("a", "b"), ("b", "c"), ("late", "c")])
    assert layout.places["late"].layer == 1


def test_lines_that_need_not_cross_do_not() -> None:
    layout = layered_layout(["a", "b", "x", "y"], [("a", "y"), ("b", "x")])
    assert (layout.places["a"].y < layout.places["b"].y) == (
        layout.places["y"].y < layout.places["x"].y
    )


def test_long_edges_of_one_source_share_their_way() -> None:
    edges = [("a", "b"), ("b", "x"), ("b", "y"), ("a", "x"), ("a", "y")]
    layout = layered_layout(["a", "b", "x", "y"], edges)
    to_x, to_y = layout.ways["a", "x"], layout.ways["a", "y"]
    assert len(to_x) == 3
    assert to_x[:2] == to_y[:2]


@pytest.mark.parametrize("seed", range(8))
def test_nodes_keep_apart_and_edges_run_right(seed: int) -> None:
    rng = random.Random(seed)
    nodes = [f"n{i}" for i in range(14)]
    edges = [pair for pair in combinations(nodes, 2) if rng.random() < 0.2]
    rng.shuffle(nodes)
    layout = layered_layout(nodes, edges)
    for one, other in combinations(layout.places.values(), 2):
        assert one.layer != other.layer or abs(one.y - other.y) >= 1 - 1e-9
    for (source, target), way in layout.ways.items():
        assert way[0] == layout.places[source]
        assert way[-1] == layout.places[target]
        layers = [place.layer for place in way]
        assert layers == list(range(layers[0], layers[-1] + 1))
    assert all(0.5 <= p.y + 1e-9 <= layout.height for p in layout.places.values())


def test_equal_input_gives_an_equal_layout() -> None:
    nodes, edges = ["a", "b", "c", "d"], [("a", "c"), ("b", "c"), ("b", "d"), ("a", "d")]
    assert layered_layout(nodes, edges) == layered_layout(nodes, edges)


def test_picture_holds_all_boxes(report: ReportData) -> None:
    picture = lineage_picture(report.lineage)
    assert picture is not None
    assert len(picture.boxes) == len(report.lineage.nodes)
    assert len(picture.arrows) == len(report.lineage.edges)
    assert all(box.y > 0 and box.y + BOX_HEIGHT < picture.height for box in picture.boxes)
    assert all(b.x > 0 and b.x + picture.box_width < picture.width for b in picture.boxes)


def test_long_names_are_cut_and_a_digest_fills_in_for_a_detail() -> None:
    node = LineageNode(id="a", kind="sft", label="a" * 40, digest="0123456789abcdef")
    picture = lineage_picture(Lineage(nodes=[node]))
    assert picture is not None
    assert picture.boxes[0].label == "a" * 17 + "…"
    assert picture.boxes[0].detail == "0123456789ab"


def test_there_is_no_picture_of_nothing() -> None:
    assert lineage_picture(Lineage()) is None
