"""A scan as a Parquet table, one row per slope, for pandas, DuckDB and Polars."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["write_table"]

_ROWS = 20_000
"""In one group of the file."""


def write_table(scan: Path, out: Path) -> int:
    """Write the table; returns the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("isosig", pa.string()),
            ("manifold", pa.string()),
            ("genus", pa.int32()),
            ("weights", pa.list_(pa.int32())),
            ("key", pa.list_(pa.int32())),
            ("separating", pa.bool_()),
            ("verdict", pa.string()),
            ("proof", pa.string()),
            ("moves", pa.int32()),
        ]
    )
    count = 0
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for row in _rows(scan):
            batch.append(row)
            count += 1
            if len(batch) == _ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema))
    return count


def _rows(scan: Path) -> Iterator[dict[str, Any]]:
    about: dict[str, Any] = {}
    with scan.open() as file:
        for line in file:
            record = json.loads(line)
            if record["kind"] == "manifold":
                about = {"isosig": record["isosig"], "manifold": record["id"], "genus": record["genus"]}
            elif record["kind"] == "slope":
                kept = {name: record[name] for name in ("weights", "key", "separating", "verdict")}
                proof = next((name for name in ("angles", "group") if name in record), None)
                yield about | kept | {"proof": proof, "moves": len(record.get("moves", ())) // 3}
