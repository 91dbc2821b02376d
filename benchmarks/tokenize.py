"""Tokenizing: this project, gigatoken and Megatron-LM's algorithm on the same documents, in one run, taking turns.

    python -m benchmarks.tokenize --corpus corpus/ --tokenizer llama2/ --output benchmarks/tokenize.md

The tokenizer folder needs a tokenizer.model. Each turn is a process of its own, and each contestant writes a whole
Megatron dataset (.bin and .idx). CPU-seconds (user and system, all processes) count from when the libraries are
imported and the tokenizer is open; a pool's processes count in full. The fewest of the turns are shown. The SHA-256 of
the .bin files is compared with that of Megatron-LM's algorithm.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_ext.data.corpus import Corpus
from megatron_ext.data.encoders import GigatokenEncoder, SentencePieceEncoder
from megatron_ext.data.indexed import token_dtype, write_index

_BATCH_ROWS = 256
_ROW_GROUP_ROWS = 2_048
_POOL_CHUNK_DOCUMENTS = 32  # as preprocess_data.py takes them


def main() -> None:
    arguments = _parse_arguments()
    if arguments.turn:
        print(json.dumps(_take_turn(arguments.turn, arguments.tokenizer, arguments.work, arguments.workers)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        size = _write_documents(Corpus(arguments.corpus, id_column=None), int(arguments.megabytes * 1e6), Path(work))
        turns = [_run_turn(name, arguments, work) for _ in range(arguments.repetitions) for name in CONTESTANTS]
    best = {name: min((turn for turn in turns if turn["name"] == name), key=lambda turn: turn["cpu_seconds"])
            for name in CONTESTANTS}
    table = _table(best, size, arguments)
    print(table)
    if arguments.output:
        arguments.output.write_text(table, encoding="utf-8")


# ---- the contestants: (tokenizer folder, work folder, workers) -> what to time, which returns the .bin file


def _ours(documents: str, encoder: str) -> Callable[..., Callable[[], Path]]:
    def prepare(tokenizer: Path, work: Path, workers: int) -> Callable[[], Path]:
        from megatron_ext.data.tokenization import TokenizeSettings, tokenize_corpus
        from megatron_ext.data.tokenizers import load_tokenizer

        load_tokenizer(tokenizer, encoder)
        settings = TokenizeSettings(documents=work / documents, tokenizer=tokenizer, encoder=encoder, workers=workers)
        return lambda: tokenize_corpus(settings, work / "out").path / "train.bin"

    return prepare


def _gigatoken(tokenizer: Path, work: Path, workers: int) -> Callable[[], Path]:
    """The library in the smallest pipeline around it; it has no workers but threads, which it is told not to use."""
    reference = SentencePieceEncoder(tokenizer / "tokenizer.model")
    encoder = GigatokenEncoder(tokenizer / "tokenizer.model", reference)
    dtype = token_dtype(encoder.vocab_size)

    def run() -> Path:
        lengths = []
        with open(work / "out.bin", "wb") as file, pq.ParquetFile(work / "documents.parquet") as documents:
            for batch in documents.iter_batches(_BATCH_ROWS, columns=["text"], use_threads=False):
                encoded = encoder.encode(batch.column("text"), end_id=reference.eod_token_id())
                file.write(encoded.ids.astype(dtype))
                lengths.append(encoded.lengths)
        write_index(work / "out.idx", np.concatenate(lengths), dtype)
        return work / "out.bin"

    return run


def _megatron(tokenizer: Path, work: Path, workers: int) -> Callable[[], Path]:
    """What preprocess_data.py does: a pool parses and encodes lines, this process writes document after document."""
    reference = SentencePieceEncoder(tokenizer / "tokenizer.model")
    dtype = token_dtype(reference.vocab_size)

    def run() -> Path:
        lengths = []
        pool = multiprocessing.get_context("fork").Pool(workers, _start_megatron_worker, (tokenizer,))
        with open(work / "documents.jsonl", encoding="utf-8") as lines, open(work / "out.bin", "wb") as file:
            for ids in pool.imap(_encode_line, lines, _POOL_CHUNK_DOCUMENTS):
                file.write(np.array(ids, dtype=dtype).tobytes())
                lengths.append(len(ids))
        pool.close()
        pool.join()
        write_index(work / "out.idx", np.array(lengths), dtype)
        return work / "out.bin"

    return run


def _start_megatron_worker(tokenizer: Path) -> None:
    global _processor
    import sentencepiece

    _processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))


def _encode_line(line: str) -> list[int]:
    ids = _processor.encode(json.loads(line)["text"])
    return [*ids, _processor.eos_id()] if ids else ids


CONTESTANTS: dict[str, Callable[..., Callable[[], Path]]] = {
    "native, Parquet": _ours("documents.parquet", "native"),
    "native, JSONL": _ours("documents.jsonl", "native"),
    "gigatoken, Parquet": _gigatoken,
    "Megatron-LM's algorithm (sentencepiece), JSONL": _megatron,
}


# ---- turns


def _run_turn(name: str, arguments: argparse.Namespace, work: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.tokenize", "--turn", name, "--work", work,
               "--tokenizer", str(arguments.tokenizer), "--workers", str(arguments.workers)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def _take_turn(name: str, tokenizer: Path, work: Path, workers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=work) as folder, redirect_stdout(sys.stderr):
        for documents in work.glob("documents.*"):
            (Path(folder) / documents.name).symlink_to(documents)
        run = CONTESTANTS[name](tokenizer, Path(folder), workers)
        wall, cpu = time.perf_counter(), _cpu_seconds()
        tokens = run()
        wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
        digest = hashlib.sha256(tokens.read_bytes()).hexdigest()
        dtype = token_dtype(SentencePieceEncoder(tokenizer / "tokenizer.model").vocab_size)
        num_tokens = tokens.stat().st_size // dtype.itemsize
    return {"name": name, "wall_seconds": wall, "cpu_seconds": cpu, "num_tokens": num_tokens, "sha256": digest,
            "peak_mib": _peak_kib() / 1024}


def _peak_kib() -> int:
    """Peak memory of the largest of this process and its children."""
    # ru_maxrss of a process starts with what its parent had before exec; VmHWM does not.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    own = int(status.partition("VmHWM:")[2].split()[0])
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


# ---- input and report


def _write_documents(corpus: Corpus, num_bytes: int, folder: Path) -> int:
    """Write the first documents of a corpus, about `num_bytes` of text, as Parquet and JSONL. Returns their bytes."""
    ids, texts, size = [], [], 0
    for row_id, text in _documents(corpus):
        ids.append(row_id)
        texts.append(text)
        size += len(text.encode())
        if size >= num_bytes:
            break
    pq.write_table(pa.table({"id": ids, "text": texts}), folder / "documents.parquet", row_group_size=_ROW_GROUP_ROWS,
                   compression="zstd")
    with open(folder / "documents.jsonl", "w", encoding="utf-8") as file:
        for row_id, text in zip(ids, texts, strict=True):
            file.write(json.dumps({"id": row_id, "text": text}, ensure_ascii=False) + "\n")
    return size


def _documents(corpus: Corpus) -> Iterator[tuple[str, str]]:
    for chunk in corpus.chunks():
        for batch in corpus.read(chunk):
            yield from zip(batch.column("id").to_pylist(), batch.column("text").to_pylist(), strict=True)


def _table(best: dict[str, dict[str, Any]], size: int, arguments: argparse.Namespace) -> str:
    expected = best[next(name for name in best if name.startswith("Megatron"))]["sha256"]
    least = min(turn["cpu_seconds"] for turn in best.values())
    columns = ["", "CPU-s", "times the least", "MB/CPU-s", "tokens/CPU-s", "MB/s (wall)", "peak MiB", "same bytes"]
    lines = [f"# Tokenizing {size / 1e6:.0f} MB of text with {arguments.workers} worker(s)", "",
             f"{_machine()}. The best of {arguments.repetitions} turns; `python -m benchmarks.tokenize --help` says "
             "what is measured.", "", f"| {' | '.join(columns)} |", f"|---|{'---:|' * 6}---|"]
    for name, turn in best.items():
        cpu = turn["cpu_seconds"]
        cells = [name, f"{cpu:.2f}", f"{cpu / least:.1f}", f"{size / 1e6 / cpu:.1f}",
                 f"{turn['num_tokens'] / cpu:,.0f}", f"{size / 1e6 / turn['wall_seconds']:.1f}",
                 f"{turn['peak_mib']:.0f}", "yes" if turn["sha256"] == expected else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _machine() -> str:
    cpu_info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in cpu_info.read_text().splitlines()
              if line.startswith("model name")] if cpu_info.is_file() else []
    versions = [f"{name} {_version(name)}" for name in ("sentencepiece", "gigatoken", "pyarrow", "numpy")]
    return (f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
            f"{platform.system()}, Python {platform.python_version()}, {', '.join(versions)}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a corpus as tools.tokenize_corpus reads it")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with a tokenizer.model")
    parser.add_argument("--megabytes", type=float, default=20, help="text to take from the corpus, 10^6 bytes")
    parser.add_argument("--repetitions", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
