"""The page for every reader: colours under three deficiencies, curves that are one above the other, tables as CSV."""

import base64
import csv
import io
import itertools
import json
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from evaluation.report.page import gather, render
from evaluation.report.plots import draw_lines
from evaluation.report.record import StudyRecord
from evaluation.report.scales import CONDITION_COLORS, GIVEN_COLOR, condition_colors, line_looks
from evaluation.report.tables import as_csv, csv_links, tables
from tests.unit.colour_vision import DEFICIENCIES, ciede2000, contrast, seen
from tests.unit.simulated_study import write_study

MIN_DISTANCE = 10.0
NAMES = [f"arm{number}" for number in range(len(CONDITION_COLORS))]


@pytest.mark.parametrize("one, other, distance", [  # Sharma, Wu & Dalal 2005, table 1
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425), ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792), ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
])
def test_distances_are_the_published_ones(one, other, distance):
    assert ciede2000(one, other) == pytest.approx(distance, abs=1e-4)


def test_greys_look_grey_under_every_deficiency():
    for deficiency, matrix in DEFICIENCIES.items():
        assert np.allclose(matrix.sum(axis=1), 1, atol=1e-5), deficiency
        assert np.abs(seen("#808080", deficiency)[1:]).max() < 0.05


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_every_two_conditions_look_different(deficiency):
    colors = condition_colors([*NAMES, "base"], ["base"])
    assert len(set(colors.values())) == len(NAMES) + 1
    close = {(a, b): distance for a, b in itertools.combinations(colors.values(), 2)
             if (distance := ciede2000(seen(a, deficiency), seen(b, deficiency))) < MIN_DISTANCE}
    assert close == {}


def test_blue_and_purple_of_the_older_palette_would_not_pass():
    assert ciede2000(seen("#2f6f8f", "deuteranopia"), seen("#7d5690", "deuteranopia")) < 1


def test_colours_stand_out_from_paper():
    assert min(map(contrast, (*CONDITION_COLORS, GIVEN_COLOR))) >= 2.8


@pytest.mark.parametrize("number", [2, 4, 8])
@pytest.mark.parametrize("markers", [False, True])
def test_equal_curves_all_show(number, markers):
    looks = line_looks(condition_colors(NAMES[:number], []))
    tokens = list(range(0, 50, 5))
    pixels = drawn([(name, tokens, [3.0 - one / 50 for one in tokens]) for name in looks], looks, markers)
    shown = {name: int((np.abs(pixels - np.array(to_rgb(look.color)) * 255).max(axis=2) < 12).sum())
             for name, look in looks.items()}
    assert min(shown.values()) > 25, shown


def test_a_single_line_has_no_gaps():
    [look] = line_looks({"high": "#1497f7"}).values()
    assert look.dashes[1] == 0


def drawn(lines, looks, markers):
    figure = Figure(figsize=(3.9, 2.6), dpi=200)
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    draw_lines(axes, lines, looks, markers)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].astype(int)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return gather(StudyRecord.read(write_study(folder, num_items=40)))


@pytest.fixture(scope="module")
def html(numbers):
    return render(numbers)


def files_of(html):
    """Name -> rows of every CSV that the page holds."""
    found = re.findall(r'<a download="([\w.-]+)" href="data:text/csv;charset=utf-8;base64,([\w+/=]+)">', html)
    assert len(found) == html.count("data:text/csv") == len(dict(found))
    return {name.removeprefix("quality-by-rewriting-").removesuffix(".csv"):
            list(csv.DictReader(io.StringIO(base64.b64decode(data).decode()))) for name, data in found}


def test_every_table_of_the_page_is_there_as_csv(numbers, html):
    files = files_of(html)
    assert set(files) == set(csv_links(numbers))
    assert {"npm", "differences", "tasks", "peaks", "categories", "exposure", "losses", "selection", "contamination",
            "tokenized", "rewriting", "parity", "cost", "gains"} <= set(files)
    assert all(files.values())
    for section in re.findall(r"<section .*?</section>", html, re.DOTALL):
        assert ("<table" not in section) or ("data:text/csv" in section), section[:80]


def test_csv_has_all_digits(numbers, html):
    files = files_of(html)
    shown = {(one["label"], group): npm for one in numbers["results"]["conditions"]
             for group, npm in one["npm"].items()}
    assert len(files["npm"]) == len(shown)
    for row in files["npm"]:
        estimate = shown[row["condition"], row["group"]]
        assert [float(row[key]) for key in ("value", "low", "high")] == [estimate[k] for k in ("value", "low", "high")]
    assert len(files["tasks"]) == numbers["results"]["num_tasks"] * len(numbers["results"]["conditions"])
    assert {row["p_corrected"] for row in files["differences"]} != {""}


def test_a_key_of_some_rows_alone_is_a_column_and_signs_are_quoted():
    text = as_csv([{"a": "x, y", "b": {"c": 1.5, "d": None}},
                   {"a": 'he said "no"', "seeds": [1, 2], "rows": [{"z": 1}]}])
    assert text == 'a,b.c,b.d,seeds\n"x, y",1.5,,\n"he said ""no""",,,1; 2\n'


def test_tables_of_what_is_not_there_are_left_out(numbers):
    assert tables({**numbers, "results": None, "training": None, "rewriting": None}).keys() == {
        "selection", "contamination", "tokenized", "parity", "cost", "gains"}
    assert json.dumps(tables(numbers), default=str)
