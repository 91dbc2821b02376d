"""What the data cost a training run: building the order of 10B tokens, and reading samples.

    python -m benchmarks.training_data

The indexed dataset is synthetic: 10 million documents whose .bin is a sparse file, so that reading it measures our own
work and the page cache, not a disk. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from megatron_ext.data.blend import BlendPlan, SourcePlan
from megatron_ext.data.dataset import BlendedDataset, PackedSource
from megatron_ext.data.indexed import bin_path, idx_path, write_index
from megatron_ext.model.hf_config import parse_hf_config
from megatron_ext.training.throughput import train_flops_per_token

SEQ_LENGTH = 4096
TINYLLAMA = {"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 2048,
             "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
             "max_position_embeddings": 4096}


def main() -> None:
    """Build, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000_000, help="of 1,000 tokens on average")
    parser.add_argument("--samples", type=int, default=2_000, help="that are read")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        num_tokens = write_dataset(Path(folder) / "train", arguments.documents)
        started = time.perf_counter()
        source = PackedSource(Path(folder) / "train", "synthetic", SEQ_LENGTH, seed=0)
        plan = BlendPlan((SourcePlan("synthetic", num_tokens, source.samples_per_epoch, source.samples_per_epoch),),
                         SEQ_LENGTH)
        dataset = BlendedDataset(plan, [source])
        _ = dataset[0]
        built = time.perf_counter() - started
        started = time.perf_counter()
        dataset.exposure(len(dataset) // 2)
        ledger = time.perf_counter() - started
        read = time_reads(dataset, arguments.samples)
    flops = train_flops_per_token(parse_hf_config(TINYLLAMA), SEQ_LENGTH)
    compute = SEQ_LENGTH * flops / (989e12 * 0.5)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {num_tokens / 1e9:.1f}B tokens, {arguments.documents:,} documents, {len(dataset):,} samples | |\n"
          "|---|---|\n"
          f"| open, order of one pass, first sample | {built:.2f} s |\n"
          f"| exposure ledger at half of the run | {ledger:.2f} s |\n"
          f"| read one sample of {SEQ_LENGTH:,} tokens | {1e3 * read:.3f} ms |\n"
          f"| … of the time an H100 takes for it with 1.1B parameters at 50 % MFU ({1e3 * compute:.0f} ms) | "
          f"{100 * read / compute:.2f} % |\n"
          f"| peak memory | {memory:.2f} GiB |")


def write_dataset(prefix: Path, num_documents: int) -> int:
    """An index of random lengths over a file of zeros that takes no space."""
    lengths = np.random.default_rng(0).integers(100, 1901, num_documents)
    write_index(idx_path(prefix), lengths, np.dtype(np.uint16))
    with open(bin_path(prefix), "wb") as file:
        file.truncate(2 * int(lengths.sum()))
    return int(lengths.sum())


def time_reads(dataset: BlendedDataset, count: int) -> float:
    """Seconds a sample."""
    started = time.perf_counter()
    for position in range(count):
        _ = dataset[position]
    return (time.perf_counter() - started) / count


if __name__ == "__main__":
    main()
