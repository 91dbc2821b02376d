"""Settings files and `key=value` as people have them: what cannot be meant is told in one line, all else is literal."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from megatron_ext.errors import UserError
from megatron_ext.settings import PartOf, Place, Settings, load_settings
from megatron_ext.settings_file import read_layers


class Part(Settings):
    """A part."""

    places: dict[str, Path] = Field(default_factory=dict)
    """Name -> place."""
    place: Path | None = None
    """A place."""


class Example(Settings):
    """All kinds of settings."""

    text: str = ""
    """A text."""
    place: Path | None = None
    """A path."""
    model: Place | None = None
    """A path or a name."""
    number: float = 1.0
    """A number."""
    count: int | None = 1
    """A whole number."""
    truth: bool = False
    """True or false."""
    words: list[str] = Field(default_factory=list)
    """Words."""
    numbers: list[int] = Field(default_factory=list)
    """Numbers."""
    names: dict[str, str] = Field(default_factory=dict)
    """Name -> name."""
    anything: dict[str, Any] = Field(default_factory=dict)
    """Whatever."""
    part: Part = Part()
    """A section."""
    other: Annotated[dict[str, Any], PartOf(lambda: Part, {"places.own": "x"})] = Field(default_factory=dict)
    """Some settings of a part."""


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "settings.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_settings(Example, path)

    return read


FILES = {
    "a key twice": ("text: a\ntruth: true\ntext: b\n", r"line 3, column 1: key 'text' is there twice \(first in"),
    "a key twice, below": ("part:\n  place: a\n  place: b\n", r"line 3, column 3: key 'place' is there twice"),
    "a key twice, in one line": ("names: {a: b, a: c}", "key 'a' is there twice"),
    "a key twice, in quotes": ("text: a\n'text': b\n", "key 'text' is there twice"),
    "its own base": ("base: settings.yaml\n", "name each other as `base`"),
    "a base that is no path": ("base: [a]\n", "must be the path of a file"),
    "an absent base": ("base: absent.yaml\n", r"absent\.yaml cannot be read \(No such file"),
    "latin-1": ("text: ação\n".encode("latin-1"), r"line 1 is not UTF-8 \(byte 0xe7\); save the file as UTF-8"),
    "latin-1, further on": ("text: a\n# coração\n".encode("latin-1"), "line 2 is not UTF-8"),
    "utf-16": ("text: a\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0", "is not UTF-8|is no text file"),
    "zeros": (b"\0" * 100, r"is no text file: character U\+0000"),
    "tabs": ("part:\n\tplace: a\n", "line 2, column 1: .*indent with spaces"),
    "a list": ("- a\n", "must hold `key: value` lines, not a list"),
    "a word": ("text", "must hold `key: value` lines, not a str"),
    "an open bracket": ("words: [a", "line 1, column 10"),
    "two documents": ("text: a\n---\ntext: b\n", "expected a single document"),
    "itself": ("words: &a [*a]\n", "is nested too deeply, or holds itself"),
    "brackets without end": ("words: " + "[" * 20_000, "is nested too deeply"),
    "infinity": ("number: .inf\n", "number = inf: must be a finite number"),
    "infinity as JSON has it": ('{"number": "Infinity"}', "number = 'Infinity': .*finite"),
    "not a number": ("anything: {a: [1, .nan]}\n", r"anything\.a\.1 = nan: must be a finite number"),
    "digits without end": ("count: " + "9" * 5_000, "is not valid YAML"),
    "a number beyond use": ("count: " + "9" * 30, "is too large a number"),
    "true for a number": ("count: true\n", "count = True: true and false are no value here"),
    "true in a list": ("numbers: [1, true]\n", "true and false are no value here"),
    "a lone surrogate": ('text: "\\ud800"\n', "text is not UTF-8 text"),
    "a NUL": ('text: "a\\0b"\n', "text holds a NUL character"),
    "a date by its tag": ("text: !!timestamp 2024-01-31\n", "is a date; needed: text"),
    "a tag that runs code": ("text: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
    "nobody's home": ("place: ~nobody-of-this-name/x\n", "place = '~nobody-of-this-name/x'"),
    "an unknown key of a part": ("other: {plaice: a}\n", r"unknown key 'other\.plaice'; did you mean 'place'"),
    "a wrong value of a part": ("other: {place: [a]}\n", r"other\.place = \['a'\]"),
    "a key that is taken": ("other: {places: {own: a}}\n", r"other\.places\.own is set by what stands around it"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_meant_is_told_in_one_line(read, name):
    content, message = FILES[name]
    with pytest.raises(UserError, match=message) as refusal:
        read(content)
    assert "\n" not in str(refusal.value)
    assert "settings.yaml" in str(refusal.value) or "absent.yaml" in str(refusal.value)


def test_two_files_that_are_each_others_base(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match=r"a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        read_layers(tmp_path / "a.yaml")


def test_a_folder_and_an_impossible_name_for_a_file(tmp_path):
    with pytest.raises(UserError, match="Is a directory"):
        load_settings(Example, tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(Example, tmp_path / ("x" * 5_000))


def test_words_stay_words_and_numbers_are_numbers(read):
    settings = read("text: no\nwords: [on, 24:00:00, 2024-01-31, null, '1']\nnumber: 1e-4\ncount: 010\n"
                    .replace("null", "'null'"))
    assert settings.words == ["on", "24:00:00", "2024-01-31", "null", "1"]
    assert (settings.text, settings.number, settings.count) == ("no", 1e-4, 10)
    assert read("\ufeffcount: 1_000\r\nnumber: -.5\r\n").count == 1000
    assert read("words: &a [x]\nnames: {}\nanything: {b: *a}\n").anything == {"b": ["x"]}
    assert read("").number == 1.0


LITERAL = {
    "text": ["/data/corpus #2", '"edu" > 2.5', "@x", "[a", "{b", "- c", "1e-4", "true", "a: b", "*x", "&x", "'", ""],
    "place": ["/data/corpus #2", "[a]", "@x", "1", "a=b", "%j", "a, b"],
    "names.a": ["stem #1", "[", "2.5"],
    "part.places.x": ["/a #b", "{c"],
    "other.place": ["/a #b"],
    "other.places.x": ["[d"],
    "model": ["owner/name", "/a #b"],
}


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, texts in LITERAL.items() for text in texts])
def test_texts_and_paths_of_the_command_line_are_literal(key, text):
    values = load_settings(Example, None, [f"{key}={text}"])
    for part in key.split("."):
        values = values[part] if isinstance(values, dict) else getattr(values, part)
    assert str(values) == text


def test_what_is_no_text_is_yaml():
    settings = load_settings(Example, None, ["number=1e-4", "count=null", "truth=true", "words=[a, b]",
                                             "numbers=[1, 2]", "names={a: b}", "anything.x=3", "anything.y=[1]",
                                             "place=null", "model=null"])
    assert (settings.number, settings.count, settings.truth) == (1e-4, None, True)
    assert (settings.words, settings.numbers, settings.names) == (["a", "b"], [1, 2], {"a": "b"})
    assert settings.anything == {"x": 3, "y": [1]}
    assert settings.place is None
    assert settings.model is None


@pytest.mark.parametrize(("override", "message"), [
    ("number=.inf", "must be a finite number"), ("number=nan", "number = 'nan'"), ("count=[", "count: line 1"),
    ("words=a b", "words = 'a b'"), ("truth=perhaps", "truth = 'perhaps'"), ("count=1:30", "count = '1:30'"),
    ("text", "section.key=value"), ("part=1", "part = 1"), ("text.x=1", "text"), ("part.place.x=1", "part.place"),
    ("=5", "unknown key ''"), ("text=\udcff", "is not UTF-8"),
])
def test_an_override_that_cannot_be_meant(override, message):
    with pytest.raises(UserError, match=message):
        load_settings(Example, None, [override])


def test_all_overrides_that_cannot_be_read_are_told_at_once():
    with pytest.raises(UserError, match=r"'a' is not of the form.*count: line 1"):
        load_settings(Example, None, ["a", "count=["])


def test_home_is_expanded_in_every_path(monkeypatch, read):
    monkeypatch.setenv("HOME", "/home/ana")
    for settings in (read("place: ~/x\nmodel: ~/m\npart: {places: {a: ~/y}}\ntext: ~/z\n"),
                     load_settings(Example, None, ["place=~/x", "model=~/m", "part.places.a=~/y", "text=~/z"])):
        assert settings.place == Path("/home/ana/x")
        assert settings.model == "/home/ana/m"
        assert settings.part.places == {"a": Path("/home/ana/y")}
        assert settings.text == "~/z"
