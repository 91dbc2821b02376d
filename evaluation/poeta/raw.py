"""Reading raw data, once it is known where each piece lies on disk."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.poeta.table import TaskSpec
from megatron_ext.errors import UserError

Row = dict[str, Any]


class RawData:
    """The raw data of one task.

    Args:
        places: raw name (see `TaskSpec.raw_names`) -> file on disk.
    """

    def __init__(self, spec: TaskSpec, places: Mapping[str, Path]) -> None:
        self.spec = spec
        self.places = places

    def path(self, name: str) -> Path:
        """Where a raw file lies."""
        return self.places[name]

    def json(self, name: str) -> Any:
        """A JSON file."""
        try:
            return json.loads(self.places[name].read_bytes())
        except ValueError as error:
            raise UserError(f"{self.places[name]} is not valid JSON ({error}); delete it to fetch it again") from None

    def json_lines(self, name: str) -> list[Row]:
        """A file with one JSON object a line, gzipped or not."""
        path = self.places[name]
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return [json.loads(line) for line in content.split(b"\n") if line.strip()]

    def split(self, split: str) -> list[Row]:
        """The rows of a split of a hub data set, in its order."""
        name = next(name for name in self.spec.raw_names() if name.endswith(f"/{split}"))
        path = self.places[name]
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path).to_pylist()
        return self.json_lines(name)
