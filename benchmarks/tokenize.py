"""Tokenizing: this project, gigatoken, Megatron-LM's algorithm and datatrove on the same documents, taking turns.

    python -m benchmarks.tokenize --corpus corpus/ --tokenizer llama2/ --output table.md

A tokenizer.json is measured against `tokenizers`, else a tokenizer.model against `sentencepiece`. Each turn is a
process of its own, and each contestant writes a whole Megatron dataset (.bin and .idx), except the libraries alone,
which encode texts in memory. CPU-seconds (user and system, all processes) count from when the libraries are imported
and the tokenizer is open; a pool's processes count in full. The fewest of the turns are shown. The SHA-256 of the .bin
files is compared with that of Megatron-LM's algorithm.
gigatoken and datatrove use one core whatever --workers says. datatrove runs where .venv-peers is (requirements.txt
beside this file), and only on a tokenizer.json.

Where the corpus has less text than is asked for, it is repeated with the lines of each document in another order.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measuring import describe_machine, measure, versions_of
from benchmarks.tokenize_contestants import CONTESTANTS, open_reference
from megatron_ext.data.corpus import Corpus
from megatron_ext.data.encoders import EncoderRefusedError
from megatron_ext.data.indexed import token_dtype

_ROW_GROUP_ROWS = 2_048
_PEERS_PYTHON = Path(".venv-peers/bin/python")
_DATATROVE = "datatrove, JSONL"
_PACKAGES = ("sentencepiece", "tokenizers", "gigatoken", "pyarrow", "numpy")


def main() -> None:
    """Take all turns and print the table, or (a process of ours) take one."""
    arguments = _parse_arguments()
    library = "tokenizers" if (arguments.tokenizer / "tokenizer.json").is_file() else "sentencepiece"
    if arguments.turn:
        print(json.dumps(_take_turn(arguments, library)))
        return
    names = arguments.only or [*CONTESTANTS[library], *([_DATATROVE] if library == "tokenizers" else [])]
    if _DATATROVE in names and not _PEERS_PYTHON.exists():
        print(f"no {_PEERS_PYTHON}: datatrove is left out", file=sys.stderr)
        names.remove(_DATATROVE)
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        size = _write_documents(Corpus(arguments.corpus, id_column=None), int(arguments.megabytes * 1e6), Path(work))
        turns = [(name, _run_turn(name, arguments, library, Path(work)))
                 for _ in range(arguments.repetitions) for name in names]
    refused = {name: turn["refused"] for name, turn in turns if "refused" in turn}
    best = {name: min((turn for other, turn in turns if other == name), key=lambda turn: turn["cpu_seconds"])
            for name in names if name not in refused}
    itemsize = token_dtype(open_reference(arguments.tokenizer, library).vocab_size).itemsize
    table = _table(best, size, itemsize, arguments, library)
    table += "".join(f"\n{name}: cannot serve this tokenizer: {why}\n" for name, why in refused.items())
    print(table)
    if arguments.output:
        arguments.output.write_text(table, encoding="utf-8")


# ---- turns


def _run_turn(name: str, arguments: argparse.Namespace, library: str, work: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for documents in work.glob("documents.*"):
            (Path(folder) / documents.name).symlink_to(documents)
        if name == _DATATROVE:
            eod = open_reference(arguments.tokenizer, library)
            command = [str(_PEERS_PYTHON), "-m", "benchmarks.tokenize_datatrove",
                       str(arguments.tokenizer / "tokenizer.json"), eod.decode([eod.eod_token_id()]), folder]
        else:
            command = [sys.executable, "-m", "benchmarks.tokenize", "--turn", name, "--work", folder,
                       "--tokenizer", str(arguments.tokenizer), "--workers", str(arguments.workers)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])


def _take_turn(arguments: argparse.Namespace, library: str) -> dict[str, Any]:
    with redirect_stdout(sys.stderr):
        try:
            run = CONTESTANTS[library][arguments.turn](arguments.tokenizer, arguments.work, arguments.workers)
        except EncoderRefusedError as error:
            return {"refused": str(error)}
        return measure(run)


# ---- input and report


def _write_documents(corpus: Corpus, num_bytes: int, folder: Path) -> int:
    """Write about `num_bytes` of a corpus's text as Parquet and JSONL, streaming. Returns their bytes."""
    schema = pa.schema({"id": pa.string(), "text": pa.string()})
    rows: list[dict[str, str]] = []
    size = 0
    with (pq.ParquetWriter(folder / "documents.parquet", schema, compression="zstd") as parquet,
          open(folder / "documents.jsonl", "w", encoding="utf-8") as lines):
        for number, text in enumerate(_texts(corpus)):
            rows.append({"id": str(number), "text": text})
            lines.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
            size += len(text.encode())
            if len(rows) == _ROW_GROUP_ROWS or size >= num_bytes:
                parquet.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows = []
            if size >= num_bytes:
                return size
    raise AssertionError("the texts have no end")


def _texts(corpus: Corpus) -> Iterator[str]:
    """The corpus, then over and over again with the lines of every document shuffled."""
    generator = random.Random(0)
    for repetition in count():
        for chunk in corpus.chunks():
            for batch in corpus.read(chunk):
                for text in batch.column("text").to_pylist():
                    lines = text.split("\n")
                    if repetition:
                        generator.shuffle(lines)
                    yield "\n".join(lines)


def _table(best: dict[str, dict[str, Any]], size: int, itemsize: int, arguments: argparse.Namespace,
           library: str) -> str:
    expected = next((turn["sha256"] for name, turn in best.items() if name.startswith("Megatron")), None)
    least = min(turn["cpu_seconds"] for turn in best.values())
    columns = ["", "CPU-s", "times the least", "MB/CPU-s", "tokens/CPU-s", "MB/s (wall)", "peak MiB", "same bytes"]
    lines = [f"# {size / 1e6:.0f} MB of text, {arguments.workers} worker(s), {library}: {arguments.tokenizer.name}", "",
             f"{describe_machine()}, {versions_of(*_PACKAGES)}. The best of {arguments.repetitions} turns; "
             "`python -m benchmarks.tokenize --help` says what is measured.", "",
             f"| {' | '.join(columns)} |", f"|---|{'---:|' * 6}---|"]
    for name, turn in best.items():
        cpu, digest = turn["cpu_seconds"], turn["sha256"]
        tokens = f"{turn['num_bytes'] / itemsize / cpu:,.0f}" if turn["num_bytes"] else "–"
        same = "–" if expected is None or digest is None else "yes" if digest == expected else "no"
        cells = [name, f"{cpu:.2f}", f"{cpu / least:.1f}", f"{size / 1e6 / cpu:.1f}", tokens,
                 f"{size / 1e6 / turn['wall_seconds']:.1f}", f"{turn['peak_mib']:.0f}", same]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a corpus as tools.tokenize_corpus reads it")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with a tokenizer.json or tokenizer.model")
    parser.add_argument("--megabytes", type=float, default=20, help="text to tokenize, 10^6 bytes")
    parser.add_argument("--repetitions", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--only", nargs="+", help="these contestants alone, by their names in the table")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
