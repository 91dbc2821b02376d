from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.artifacts import produce
from megatron_ext.errors import UserError
from megatron_ext.parts import Merge, Part
from megatron_ext.settings import Settings, parse_stage_arguments


class Choice(Settings):
    """Settings of no stage."""

    a: int = 1


@pytest.mark.parametrize(("words", "asked"), [
    ([], None), (["--part", "0/8"], Part(0, 8)), (["--part", "7/8"], Part(7, 8)), (["--merge", "3"], Merge(3))])
def test_the_command_line(words, asked):
    settings, output, share = parse_stage_arguments(Choice, "", ["--output", "out", *words, "a=2"], parts=True)
    assert (settings.a, output, share) == (2, Path("out"), asked)


@pytest.mark.parametrize("words", [
    ["--part", "8/8"], ["--part", "1"], ["--part", "-1/2"], ["--part", "0/0"], ["--merge", "0"], ["--merge", "x"]])
def test_what_is_no_part_is_refused(words):
    with pytest.raises((UserError, SystemExit)):
        parse_stage_arguments(Choice, "", ["--output", "out", *words], parts=True)


@given(st.integers(1, 20), st.integers(0, 200))
def test_every_piece_is_exactly_one_parts(count, position):
    assert sum(Part(index, count).takes(position) for index in range(count)) == 1


def test_missing_parts_are_named(tmp_path):
    output = tmp_path / "rewrites"
    for index in (0, 2):
        produce(Part(index, 4).folder(output), kind="x", settings={}, inputs={}, make=lambda folder: {})
    (output.with_name("rewrites.parts") / "3-of-4.partial").mkdir()
    with pytest.raises(UserError, match=r"2 of 4 parts are missing: .*/1-of-4, .*/3-of-4 \(unfinished\)"):
        Merge(4).folders(output)
    for index in (1, 3):
        produce(Part(index, 4).folder(output), kind="x", settings={}, inputs={}, make=lambda folder: {})
    assert [folder.name for folder in Merge(4).folders(output)] == ["0-of-4", "1-of-4", "2-of-4", "3-of-4"]
