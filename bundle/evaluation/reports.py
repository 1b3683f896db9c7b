"""Reports on disk, whole or not at all; and as a table to read."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.io import replace_when_complete


def refuse_existing(paths: Iterable[str | os.PathLike[str]], overwrite: bool) -> None:
    """Stop before work is done whose result could not be written.

    Raises:
        ValueError: names the first of ``paths`` that exists, unless ``overwrite`` is set.
    """
    existing = [] if overwrite else [str(p) for p in paths if Path(p).exists()]
    if existing:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise ValueError(f"{existing[0]}{more} exists and overwrite is not set")


def write_json(path: str | os.PathLike[str], content: Any, overwrite: bool = False) -> None:
    """Write strict JSON: numbers that are not finite are an error, not an invalid file."""
    with replace_when_complete(path, overwrite=overwrite) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], overwrite: bool = False) -> None:
    """Write rows under the columns of all of them, in order of appearance; None is an empty field."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (
        replace_when_complete(path, overwrite=overwrite) as unfinished,
        unfinished.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Text columns: words to the left, numbers to the right; None is a dash."""
    cells = [list(header)] + [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    numeric = [all(_is_number(row[k]) for row in cells[1:]) for k in range(len(header))]
    lines = [
        "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric)).rstrip() for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) and abs(value) < 1e-2 else _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 2 else f"{value:.2f}"
    return str(value)


def _is_number(text: str) -> bool:
    return text == "-" or text.lstrip("-").replace(".", "", 1).isdigit()
