import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tools import check_rewrites

SOURCE = "O museu abriu em 15 de março de 1922 e guarda 12.500 peças. A entrada custa R$ 20 para adultos."
GOOD = "O museu foi aberto em 15 de março de 1922. Ele tem 12,5 mil peças. O adulto paga vinte reais."
ROWS = [
    {"source": SOURCE, "text": f"Aqui está o texto:\n\n{GOOD}", "style": "easy", "label": "good",
     "kind": "good", "n": 1},
    {"source": SOURCE, "text": GOOD.replace("1922", "1932"), "style": "easy", "label": "bad", "kind": "year", "n": 2},
    {"source": SOURCE, "text": GOOD, "style": "a style of theirs", "label": "bad", "kind": "no-fault", "n": 3},
    {"source": SOURCE, "text": "", "style": "easy", "n": 4},
    {"source": SOURCE, "text": GOOD + " \ud83d", "style": "easy", "finish_reason": "length", "n": 5},
]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["check_rewrites", *map(str, arguments)])
    return check_rewrites.main()


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_row_is_written_again_with_its_verdict(tmp_path, monkeypatch, capsys):
    file = write(tmp_path / "pairs.jsonl", ROWS)
    assert run(monkeypatch, file, "--language", "pt", "--output", tmp_path / "out.jsonl") == 0
    rows = read(tmp_path / "out.jsonl")
    assert [row["n"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["accepted"] for row in rows] == [True, False, True, False, False]
    assert [row["reasons"] for row in rows[1:]] == [["numbers_new"], [], ["empty"], ["cut_by_max_tokens"]]
    assert rows[0]["text"] == GOOD and rows[0]["number_retention"] == 1.0 and rows[1]["numbers_new"] == 1
    printed = capsys.readouterr().out
    for line in ("2 of 5 rewrites accepted (40.0 %)", "numbers_new", "good, but rejected: 0 of 1 (0.0 %)",
                 "bad, but accepted: 1 of 2 (50.0 %)"):
        assert line in printed
    assert "no-fault                          1 of 1" in printed


def test_parquet_and_several_processes_give_the_same(tmp_path, monkeypatch):
    rows = [row | {"label": None, "kind": None, "finish_reason": None} for row in ROWS[:4]] * 40
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    write(tmp_path / "pairs.jsonl", rows)
    for name, processes in (("pairs.parquet", 2), ("pairs.jsonl", 1)):
        assert run(monkeypatch, tmp_path / name, "--output", tmp_path / f"{name}.out", "--processes", processes) == 0
    assert read(tmp_path / "pairs.parquet.out") == read(tmp_path / "pairs.jsonl.out")


@pytest.mark.parametrize("content, message", [
    (None, "no such file"), (b"{", "line 1: is not JSON"), (b"[1]", "line 1: must be an object"),
    (b"\xff\xfe\x00", "UTF-8"), (b'{"source": "a", "text": 3}\n{"source": " ", "text": "b", "style": "easy"}',
                                 "row 1: text, style must be text; row 2: source is empty")])
def test_mistakes_in_a_file_are_told_in_a_line(tmp_path, monkeypatch, capsys, content, message):
    file = tmp_path / "pairs.jsonl"
    if content is not None:
        file.write_bytes(content)
    assert run(monkeypatch, file, "--output", tmp_path / "out.jsonl") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out.jsonl").exists()


def test_other_mistakes(tmp_path, monkeypatch, capsys):
    file = write(tmp_path / "pairs.jsonl", ROWS)
    (tmp_path / "no.parquet").write_bytes(b"abc")
    assert run(monkeypatch, tmp_path / "no.parquet", "--output", tmp_path / "out.jsonl") == 2
    assert "no Parquet file" in capsys.readouterr().err
    assert run(monkeypatch, file, "--output", tmp_path / "out.jsonl", "--language", "xx") == 2
    assert "there are en, pt; one of your own" in capsys.readouterr().err
