"""One turn of benchmarks.select by polars or datatrove; runs in .venv-peers (benchmarks/requirements.txt), not in ours.

    .venv-peers/bin/python -m benchmarks.select_peers PEER CORPUS_FOLDER OUTPUT_FOLDER WORKERS
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

from benchmarks.measuring import measure

MIN_SCORE = 2.5
"""A document passes with more than this in either score."""
Prepare = Callable[[Path, Path, int], Callable[[], None]]


def main() -> None:
    """Select from the corpus; print the measurement as JSON."""
    name, corpus, output, workers = sys.argv[1:]
    with redirect_stdout(sys.stderr):
        measured = measure(PEERS[name](Path(corpus), Path(output), int(workers)))
        measured |= {"ids": ids_digest(Path(output))}
    print(json.dumps(measured))


def prepare_polars(corpus: Path, output: Path, workers: int, is_ordered: bool = False) -> Callable[[], None]:
    """One streaming query, one output file."""
    os.environ["POLARS_MAX_THREADS"] = str(workers)
    import polars as pl

    query = pl.scan_parquet(corpus / "*.parquet").filter(
        (pl.col("stem_score") > MIN_SCORE) | (pl.col("edu_score") > MIN_SCORE))
    if is_ordered:
        query = query.sort(pl.col("id").hash())
    # pyarrow, with which the others write, compresses at level 1.
    return lambda: query.sink_parquet(output / "out.parquet", compression="zstd", compression_level=1)


def prepare_datatrove(corpus: Path, output: Path, workers: int) -> Callable[[], None]:
    """A task a shard."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    pipeline = [ParquetReader(str(corpus), glob_pattern="*.parquet"), LambdaFilter(_passes),
                ParquetWriter(str(output), compression="zstd")]
    # Forked processes are this one's children, so that their time and memory can be measured.
    executor = LocalPipelineExecutor(pipeline, tasks=len(list(corpus.iterdir())), workers=workers, start_method="fork",
                                     logging_dir=str(output / "logs"))
    return lambda: executor.run() and None


def ids_digest(folder: Path) -> str:
    """SHA-256 of the sorted ids in a folder's Parquet files."""
    import pyarrow.parquet as pq

    ids = [name for file in folder.glob("*.parquet") for name in pq.read_table(file, columns=["id"])["id"].to_pylist()]
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def _passes(document) -> bool:  # noqa: ANN001 (datatrove is imported only where it runs)
    return document.metadata["stem_score"] > MIN_SCORE or document.metadata["edu_score"] > MIN_SCORE


PEERS: dict[str, Prepare] = {"polars": prepare_polars,
                             "polars, ordered": partial(prepare_polars, is_ordered=True),
                             "datatrove": prepare_datatrove}
"""Name of a peer -> how it is prepared with (corpus, output folder, workers); what that gives is timed."""


if __name__ == "__main__":
    main()
