"""Curves vary one quantity at a time around one point."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import curves
from benchmarks.curves import AXES, Point


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in for measuring: what would have been measured."""
    asked: list[Any] = []

    def measure(shape: Any, batch: int, threads: int, pairs: int, cases: Any) -> list[dict[str, Any]]:
        asked.append((shape, batch, threads, cases[1].changes["mapping.tile_rows"]))
        row = {"clean_ms": 1.0, "sites": 8 * shape.layers + 1, "low": 1.0, "high": 3.0, "instruction_set": "none"}
        return [{**row, "ratio": ratio} for ratio in (1.0, 2.0)]

    monkeypatch.setattr(curves, "measure", measure)
    return asked


def test_every_axis_holds_the_shared_point_which_is_measured_once(points: list[Any]) -> None:
    rows = list(curves.curves(3))
    assert len(points) == sum(len(values) - 1 for _, values in AXES.values()) + 1
    assert {row["axis"] for row in rows} == set(AXES)
    for axis, (_, values) in AXES.items():
        assert getattr(Point(), axis) in values
        assert len([row for row in rows if row["axis"] == axis]) == len(values)


def test_sites_are_counted_not_blocks(points: list[Any]) -> None:
    assert [row["value"] for row in curves.curves(3) if row["axis"] == "blocks"] == [9, 17, 33, 65]


def test_curves_are_drawn(points: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    curves.plot_curves(list(curves.curves(3)), path)
    text = path.read_text(encoding="utf-8")
    assert text.lstrip().startswith("<?xml") and len(text) > 1000


def test_one_small_block_is_measured() -> None:
    point = Point(tokens=4, width=64)
    rows = curves.measure(point.shape(), 1, 1, 2, point.cases())
    assert [row["case"] for row in rows] == ["programmed", "everything"]
    assert all(row["ratio"] > 0 and row["low"] <= row["ratio"] <= row["high"] for row in rows)
