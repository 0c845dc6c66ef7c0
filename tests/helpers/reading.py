"""Read raw records of one file, as the script read_records.py does, and write them in every format of files."""

import csv
import json

from distill.records.read_records import Reading, read_records

FORMATS = ("json", "jsonl", "parquet", "arrow")  # those that hold lists


def read_alpaca(category, path, system, out, label_fields=()):
    return read_records(category, path, out, Reading("alpaca", system, label_fields=label_fields))


def write_rows(path, rows):
    """Write rows to a file of the format that its ending names; return its path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = path.suffix.removeprefix(".")
    if kind == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif kind == "csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        table = pa.Table.from_pylist(rows)
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=2)
        else:
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table)
    return path
