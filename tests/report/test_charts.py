"""Charts: what is drawn where, in what words."""

from __future__ import annotations

import re

import pytest

from datafree.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, line_chart, nice_ticks, short, thinned
from datafree.report.run_reader import Series


def points_of(drawing: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'<polyline[^>]* points="([^"]*)"', drawing)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in lines]  # type: ignore[misc]


def test_a_line_goes_from_corner_to_corner() -> None:
    chart = line_chart("loss", [Series(name="loss", points=[(0, 0.0), (50, 0.5), (100, 1.0)])], unit="nats")
    (line,) = points_of(chart.drawing)
    middle = ((LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2)
    assert line == [(LEFT, HEIGHT - BOTTOM), pytest.approx(middle, abs=0.1), (WIDTH - RIGHT, TOP)]
    assert "<title>loss</title>" in chart.drawing and "in nats" in chart.drawing
    assert "step of the student" in chart.drawing
    assert "loss: from 0 to 1" in chart.drawing  # for those who do not see it


def test_the_warm_up_is_shaded_and_a_run_without_has_none() -> None:
    drawing = line_chart("x", [Series(name="x", points=[(-50, 1.0), (50, 2.0)])], unit="").drawing
    shade = re.search(r'class="warm" x="(\d+)" y="\d+" width="([\d.]+)"', drawing)
    assert shade is not None
    assert float(shade[2]) == pytest.approx((WIDTH - LEFT - RIGHT) / 2, abs=0.1)
    assert 'class="warm"' not in line_chart("x", [Series(name="x", points=[(0, 1.0), (9, 2.0)])], unit="").drawing


def test_lines_differ_in_dashes_as_well_as_in_colour() -> None:
    chart = line_chart("x", [Series(name=str(i), points=[(0, i), (1, i)]) for i in range(10)], unit="")
    drawn = re.findall(r'class="line (c\d)" stroke-dasharray="([^"]*)"', chart.drawing)
    assert len(drawn) == len({dash for _, dash in drawn}) == len({colour for colour, _ in drawn}) == 8
    assert [dash for _, dash in drawn] == [dash for _, dash in chart.names]


def test_words_are_escaped() -> None:
    drawing = line_chart("<b>", [Series(name='"><script>', points=[(0, 1.0)])], unit="&").drawing
    assert "<b>" not in drawing and "<script>" not in drawing and "&lt;script&gt;" in drawing


@pytest.mark.parametrize(
    "points", [[(3.0, 0.7)], [(0.0, 2.0), (9.0, 2.0)], [(0.0, 1e12), (1.0, -1e12)], [(0, 0), (1, 0)]]
)
def test_single_points_and_level_lines_lie_inside(points: list[tuple[float, float]]) -> None:
    for line in points_of(line_chart("x", [Series(name="x", points=points)], unit="").drawing):
        assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in line)


def test_nothing_to_draw_is_nothing() -> None:
    assert line_chart("x", [Series(name="x", points=[])], unit="").drawing == ""


def test_thinning_keeps_both_ends_and_every_peak() -> None:
    points = [(float(step), 0.0) for step in range(5000)]
    points[1234], points[4321] = (1234.0, 9.0), (4321.0, -9.0)
    kept = thinned(points, 100)
    assert len(kept) <= 102 and kept == sorted(kept)
    assert {points[0], points[-1], points[1234], points[4321]} <= set(kept)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.3, 0.87, [0.2, 0.4, 0.6, 0.8, 1.0]),
        (-13, 86, [-25, 0, 25, 50, 75, 100]),
        (1e-7, 3.4e-6, [0, 1e-6, 2e-6, 3e-6, 4e-6]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_numbers_are_short() -> None:
    assert [short(v) for v in (0.25, 0, 12500, 3e6, 0.00003, -1.5)] == ["0.25", "0", "12.5k", "3M", "3.0e-05", "-1.5"]
