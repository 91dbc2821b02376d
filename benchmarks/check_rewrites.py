"""How many rewrites a core checks in a second, on chunks of about 350 tokens.

    python -m benchmarks.check_rewrites --tokenizer MODEL_FOLDER

Sources are chunks of the quickstart's corpus; "rewrites" are other chunks of it, cut to the same length, with every
third word of the source's own between them: as many words, names and numbers as real ones. The first round warms up
(word lists, tables of words); seconds are the process's own. Results: benchmarks/rewrite.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from megatron_ext.data.rewriting.checking.checks import check, load_thresholds
from megatron_ext.data.rewriting.checking.lexicon import load_lexicon
from megatron_ext.data.rewriting.chunking import split_into_chunks
from megatron_ext.data.rewriting.helpers import token_counter

CORPUS = Path(__file__).parents[1] / "examples" / "quickstart" / "corpus"
STYLES = ["easy", "medium", "hard", "qa"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="folder; without one a token counts as 3.4 bytes")
    parser.add_argument("--chunks", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    pairs = _pairs(arguments)
    num_characters = sum(len(source) for source, _ in pairs) / len(pairs)
    print(f"{len(pairs)} chunks of {num_characters:,.0f} characters, in {len(STYLES)} styles")
    for number in range(1 + arguments.rounds):
        seconds = _round(pairs)
        print(f"{number}: {len(pairs) * len(STYLES) / seconds:,.0f} rewrites a second", flush=True)


def _round(pairs: list[tuple[str, str]]) -> float:
    lexicon, thresholds = load_lexicon(), load_thresholds(STYLES)
    started = time.process_time()
    for number, (source, text) in enumerate(pairs):
        for style in STYLES:  # a text of its own for each style: nothing that was read before is read again
            check(source, f"{text} {style} {number}.", finish_reason="stop", length_ratio=1.0,
                  thresholds=thresholds[style], lexicon=lexicon)
    return time.process_time() - started


def _pairs(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    count = token_counter(arguments.tokenizer) if arguments.tokenizer else (
        lambda texts: [round(len(text.encode()) / 3.4) for text in texts])
    text = "\n\n".join(json.loads(line)["text"] for file in sorted(CORPUS.glob("*.jsonl"))
                       for line in file.read_text(encoding="utf-8").splitlines())
    chunks = split_into_chunks(text, 350, count, load_lexicon().punkt)[:arguments.chunks]
    return [(source, _like(source, other)) for source, other in zip(chunks, [*chunks[1:], chunks[0]], strict=True)]


def _like(source: str, other: str) -> str:
    own = source.split()[::3]
    mixed = [word for pair in zip(other.split()[::2], other.split()[1::2], own, strict=False) for word in pair]
    return " ".join(mixed)


if __name__ == "__main__":
    main()
