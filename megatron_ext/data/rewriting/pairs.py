"""Judging rewrites that lie in a file, of whatever pipeline: rows of source, text and style, a verdict for each."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from megatron_ext.data.rewriting.checking.checks import Verdict, check, load_thresholds
from megatron_ext.data.rewriting.checking.lexicon import load_lexicon
from megatron_ext.data.rewriting.checking.wrapping import strip_wrapping
from megatron_ext.data.rewriting.chunking import CountTokens
from megatron_ext.data.rewriting.engines.cleaning import storable
from megatron_ext.errors import UserError

REQUIRED = ("source", "text", "style")
LABELS = ("good", "bad")
_ROWS_A_TASK = 64
_SHOWN_MISTAKES = 5

Row = dict[str, Any]


@dataclass
class Tally:
    """What was found."""

    num_rows: int = 0
    num_accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """A row can have several."""
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(label, kind) -> rows, of labelled rows."""
    wrong: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The same of good rows that were rejected and bad rows that were accepted."""

    def add(self, row: Row) -> None:
        """Count a judged row."""
        self.num_rows += 1
        self.num_accepted += row["accepted"]
        self.reasons.update(row["reasons"])
        if (label := row.get("label")) in LABELS:
            kind = (label, str(row.get("kind") or label))
            self.kinds[kind] += 1
            self.wrong[kind] += row["accepted"] != (label == "good")

    def lines(self) -> list[str]:
        """As a table by reason, and by kind where rows are labelled."""
        lines = [f"{self.num_accepted:,} of {self.num_rows:,} rewrites accepted "
                 f"({_percent(self.num_accepted, self.num_rows)})"]
        lines += [f"  {reason:<20} {count:>8,}  {_percent(count, self.num_rows)}"
                  for reason, count in sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))]
        for label, fault in (("good", "rejected"), ("bad", "accepted")):
            kinds = sorted(kind for kind in self.kinds if kind[0] == label)
            if kinds:
                wrong, total = sum(self.wrong[kind] for kind in kinds), sum(self.kinds[kind] for kind in kinds)
                lines.append(f"{label}, but {fault}: {wrong:,} of {total:,} ({_percent(wrong, total)})")
                lines += [f"  {kind[1]:<28} {self.wrong[kind]:>6,} of {self.kinds[kind]:,}" for kind in kinds]
        return lines


def judge_pairs(file: Path, output: Path, language: str, tokenizer: Path | None = None,
                thresholds_file: Path | None = None, num_processes: int = 1) -> Tally:
    """Judge the rows of a JSONL or Parquet file.

    They are written to `output` (JSONL), in their order, each with `accepted`, `reasons`, `text` as it would be kept,
    and the measures (none for an empty text). Lengths are compared in tokens of `tokenizer`, without one in bytes of
    UTF-8. A column `finish_reason` other than "stop" speaks against a row.

    Raises UserError for a file that cannot be read, a missing column or value, and an unknown language.
    """
    load_lexicon(language), load_thresholds([], thresholds_file, language)  # mistakes are told before work begins
    judge = partial(_judge_rows, language=language, tokenizer=tokenizer, thresholds_file=thresholds_file)
    tally = Tally()
    temporary = output.with_name(output.name + ".tmp")
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "w", encoding="utf-8", errors="replace") as stream:
        for row in _in_processes(judge, _batches(read_pairs(file)), num_processes):
            tally.add(row)
            stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    os.replace(temporary, output)
    return tally


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of a JSONL or Parquet file. Raises UserError for what is none."""
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    if file.suffix == ".parquet":
        yield from _read_parquet(file)
        return
    with open(file, encoding="utf-8", errors="strict") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _parse(line, f"{file}, line {number}")
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: is not UTF-8 text ({error}); give JSONL or Parquet (.parquet)") from None


def read_pairs(file: Path) -> Iterator[Row]:
    """The rows of a JSONL or Parquet file that have what is required; the first mistakes together in one UserError."""
    mistakes: list[str] = []
    for number, row in enumerate(read_rows(file), start=1):
        wrong = [name for name in REQUIRED if not isinstance(row.get(name), str)]
        if wrong:
            mistakes.append(f"row {number}: {', '.join(wrong)} must be text")
        elif not row["source"].strip():
            mistakes.append(f"row {number}: source is empty")
        elif not mistakes:
            yield row | {name: storable(row[name]) for name in REQUIRED}
        if len(mistakes) == _SHOWN_MISTAKES:
            break
    if mistakes:
        raise UserError(f"{file}: columns {', '.join(REQUIRED)} are needed; " + "; ".join(mistakes))


def verdict_columns(verdict: Verdict) -> Row:
    """What a verdict adds to a row."""
    return {"accepted": not verdict.reasons, "reasons": list(verdict.reasons), "text": verdict.text,
            **(asdict(verdict.measures) if verdict.measures else {})}


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_ROWS_A_TASK):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise UserError(f"{file}: is no Parquet file ({error})") from None


def _parse(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be an object with {', '.join(REQUIRED)}")
    return row


def _judge_rows(rows: list[Row], language: str, tokenizer: Path | None, thresholds_file: Path | None) -> list[Row]:
    lexicon = load_lexicon(language)
    thresholds = load_thresholds(sorted({row["style"] for row in rows}), thresholds_file, language)
    count = _counter(tokenizer)
    stripped = count([strip_wrapping(row["text"], row["source"], lexicon) for row in rows])
    sources = count([row["source"] for row in rows])
    return [row | verdict_columns(check(
        row["source"], row["text"], finish_reason=row.get("finish_reason") or "stop",
        length_ratio=int(size) / max(1, int(source_size)), thresholds=thresholds[row["style"]], lexicon=lexicon))
        for row, size, source_size in zip(rows, stripped, sources, strict=True)]


def _counter(tokenizer: Path | None) -> CountTokens:
    if tokenizer is None:
        return lambda texts: [len(text.encode("utf-8", "surrogatepass")) for text in texts]
    from megatron_ext.data.rewriting.helpers import token_counter

    return token_counter(tokenizer)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    return iter(lambda: list(islice(rows, _ROWS_A_TASK)), [])


def _in_processes(judge: partial[list[Row]], batches: Iterator[list[Row]], num_processes: int) -> Iterator[Row]:
    if num_processes == 1:
        for batch in batches:
            yield from judge(batch)
        return
    with get_context("spawn").Pool(num_processes) as pool:
        for judged in pool.imap(judge, batches):
            yield from judged


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else "–"
