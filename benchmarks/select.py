"""Selecting: this project, polars and datatrove, the same rule on the same Parquet, taking turns.

    python -m benchmarks.select --tokenizer models/smollm2 --output table.md

The corpus is made for the purpose, in a temporary folder: documents of 4 kB on average, of phrases from the
quickstart's in random order, with scores of which the rule lets about a fifth pass. Each turn is a process of its own.
Time counts from when the libraries are imported and the tokenizer is open, CPU-seconds are those of all processes; the
best of the turns is shown. All write zstd-compressed Parquet, and the ids that they selected are compared.

Ours does more than the rule: hashes and compares ids and texts, and orders the documents by the hash of their ids, on
disk. "polars, ordered" does the last as well, in memory.
"ours, again" selects with counting after a selection by another rule has counted what both rules let pass.
"tokenizer alone" encodes the passing texts, which lie in memory, in as many processes, and throws the ids away.
polars and datatrove run where .venv-peers is (requirements.txt beside this file).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.measuring import describe_machine, measure, versions_of
from benchmarks.select_peers import MIN_SCORE, PEERS, ids_digest

TEXTS = Path(__file__).parents[1] / "examples" / "quickstart" / "corpus"
SCORES = {"stem": "stem_score", "edu": "edu_score"}
RULE = f"stem > {MIN_SCORE} or edu > {MIN_SCORE}"
OTHER_RULE = f"stem + edu > {MIN_SCORE}"  # which all documents meet that meet the first
_MEAN_SCORE = 1.1  # of an exponential distribution: a fifth passes the rule
_PHRASE_WORDS = 5
_MEAN_PHRASES = 130  # 4 kB of text, about 1,000 tokens
_NUM_SHARDS = 24
_ROW_GROUP_ROWS = 4_096
_ENCODED_ROWS = 256
_PEERS_PYTHON = Path(".venv-peers/bin/python")
_SCHEMA = pa.schema({"id": pa.string(), "text": pa.string(), "stem_score": pa.float64(), "edu_score": pa.float64()})


def main() -> None:
    """Take all turns and print the table, or (a process of ours) take one."""
    arguments = _parse_arguments()
    if arguments.turn:
        with redirect_stdout(sys.stderr):
            result = CONTESTANTS[arguments.turn](arguments)
        print(json.dumps(result))
        return
    names = arguments.only or [*(CONTESTANTS if arguments.tokenizer else ["ours"]), *PEERS]
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        corpus = Path(work) / "corpus"
        num_documents = write_corpus(corpus, int(arguments.megabytes * 1e6))
        turns = [(name, _run_turn(name, arguments, corpus, Path(work)))
                 for _ in range(arguments.repetitions) for name in names]
    best = {name: min((turn for other, turn in turns if other == name), key=lambda turn: turn["wall_seconds"])
            for name in names}
    table = _table(best, arguments, num_documents)
    print(table)
    if arguments.output:
        arguments.output.write_text(table, encoding="utf-8")


# ---- turns


def _run_turn(name: str, arguments: argparse.Namespace, corpus: Path, work: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=work) as output:
        if name in PEERS:
            command = [str(_PEERS_PYTHON), "-m", "benchmarks.select_peers", name, str(corpus), output,
                       str(arguments.workers)]
        else:
            command = [sys.executable, "-m", "benchmarks.select", "--turn", name, "--corpus", str(corpus), "--work",
                       output, "--workers", str(arguments.workers)]
            command += ["--tokenizer", str(arguments.tokenizer)] if arguments.tokenizer else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])


def _select(arguments: argparse.Namespace, tokenizer: Path | None, is_again: bool = False) -> dict[str, Any]:
    """A turn of the selecting stage, with all it does; again: after a selection by another rule, which does not count.
    """
    import pandas  # noqa: F401 (pyarrow imports it at its first array)

    from megatron_ext.data.selection import SelectSettings, select_corpus
    from megatron_ext.data.tokenizers import load_tokenizer

    if tokenizer:
        load_tokenizer(tokenizer)
    settings = SelectSettings(corpus=str(arguments.corpus), tokenizer=tokenizer, scores=SCORES, rule=RULE,
                              exact_duplicates="report", workers=arguments.workers)
    output = arguments.work / "out"
    if is_again:
        select_corpus(settings.model_copy(update={"rule": OTHER_RULE}), arguments.work / "before")
    measured = measure(lambda: select_corpus(settings, output) and None)
    return measured | {"ids": ids_digest(output / "documents")}


def _encode_alone(arguments: argparse.Namespace) -> dict[str, Any]:
    """A turn of the encoder that the selecting stage takes, on the texts that pass."""
    from megatron_ext.data.tokenizers import load_tokenizer

    encoder = load_tokenizer(arguments.tokenizer).encoder
    batches = list(_passing_texts(arguments.corpus))
    context = multiprocessing.get_context("fork")  # the texts are shared, not sent

    def run() -> None:
        processes = [context.Process(target=_encode, args=(encoder, batches[start::arguments.workers]))
                     for start in range(arguments.workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()

    return measure(run) | {"ids": None}


def _encode(encoder: Any, batches: list[pa.Array]) -> None:
    for batch in batches:
        encoder.encode(batch)


def _passing_texts(corpus: Path) -> Iterator[pa.Array]:
    condition = (pc.field("stem_score") > MIN_SCORE) | (pc.field("edu_score") > MIN_SCORE)
    for shard in sorted(corpus.iterdir()):
        texts = pq.read_table(shard, columns=["text"], filters=condition).column("text").combine_chunks()
        yield from (texts.slice(start, _ENCODED_ROWS) for start in range(0, len(texts), _ENCODED_ROWS))


CONTESTANTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "ours": lambda arguments: _select(arguments, None),
    "ours, tokens counted": lambda arguments: _select(arguments, arguments.tokenizer),
    "ours, again": lambda arguments: _select(arguments, arguments.tokenizer, is_again=True),
    "tokenizer alone": _encode_alone,
}
"""Name of a contestant of ours -> its turn."""


# ---- input and report


def write_corpus(folder: Path, num_bytes: int) -> int:
    """Write shards with about so many bytes of text in all, streaming. Returns their documents."""
    folder.mkdir()
    generator = random.Random(0)
    documents = _documents(generator)
    num_documents = 0
    for shard in range(_NUM_SHARDS):
        size = 0
        with pq.ParquetWriter(folder / f"{shard:02d}.parquet", _SCHEMA, compression="zstd") as writer:
            while size < num_bytes / _NUM_SHARDS:
                rows: list[dict[str, Any]] = []
                while len(rows) < _ROW_GROUP_ROWS and size < num_bytes / _NUM_SHARDS:
                    text = next(documents)
                    rows.append({"id": f"{num_documents + len(rows):010d}", "text": text,
                                 **{name: generator.expovariate(1 / _MEAN_SCORE) for name in SCORES.values()}})
                    size += len(text.encode())
                num_documents += len(rows)
                writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
    return num_documents


def _documents(generator: random.Random) -> Iterator[str]:
    """Documents without end: phrases of the quickstart's corpus in random order."""
    words = [json.loads(line)["text"].split() for file in sorted(TEXTS.glob("*.jsonl"))
             for line in file.read_text(encoding="utf-8").splitlines()]
    phrases = [" ".join(text[start:start + _PHRASE_WORDS]) for text in words
               for start in range(0, len(text), _PHRASE_WORDS)]
    while True:
        yield " ".join(generator.choices(phrases, k=1 + int(generator.expovariate(1 / _MEAN_PHRASES))))


def _table(best: dict[str, dict[str, Any]], arguments: argparse.Namespace, num_documents: int) -> str:
    expected = next((turn["ids"] for turn in best.values() if turn["ids"]), None)
    tokenizer = f", tokenizer: {arguments.tokenizer.name}" if arguments.tokenizer else ""
    columns = ["", "wall s", "CPU-s", "MB/s (wall)", "peak MiB of a process", "same ids"]
    lines = [f"# {arguments.megabytes:,.0f} MB of text, {num_documents:,} documents, {arguments.workers} "
             f"worker(s){tokenizer}", "",
             f"{describe_machine()}, {versions_of('pyarrow', 'numpy', 'tokenizers', 'sentencepiece')}; peers: "
             f"{_peer_versions()}. The best of {arguments.repetitions} turns; `python -m benchmarks.select --help` "
             "says what is measured.", "", f"| {' | '.join(columns)} |", f"|---|{'---:|' * 4}---|"]
    for name, turn in best.items():
        same = "–" if turn["ids"] is None else "yes" if turn["ids"] == expected else "no"
        cells = [name, f"{turn['wall_seconds']:.2f}", f"{turn['cpu_seconds']:.2f}",
                 f"{arguments.megabytes / turn['wall_seconds']:,.0f}", f"{turn['peak_mib']:,.0f}", same]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _peer_versions() -> str:
    code = "from benchmarks.measuring import versions_of; print(versions_of('polars', 'datatrove'))"
    if not _PEERS_PYTHON.exists():
        return "not installed"
    return subprocess.run([str(_PEERS_PYTHON), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer.json or tokenizer.model")
    parser.add_argument("--megabytes", type=float, default=2_000, help="text of the corpus, 10^6 bytes")
    parser.add_argument("--repetitions", type=int, default=2, help="turns of each contestant")
    parser.add_argument("--workers", type=int, default=2, help="processes; threads of polars")
    parser.add_argument("--only", nargs="+", help="these contestants alone, by their names in the table")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
