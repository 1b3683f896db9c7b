"""Rows of a long measurement on disk, so that it goes on where it was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RowStore:
    """Rows in a file, one line of JSON each: what is in it need not be measured again.

    A run that is killed while it writes leaves at most its last line unfinished: that row counts as not measured, and
    the next :meth:`add` takes its place. The file and its folder are made by the first :meth:`add`. One process writes
    at a time; what another added since is kept.

    Args:
        path: of the file, ``*.jsonl`` by custom.

    Raises:
        ValueError: names the file and the line that is no row, or the path that is a folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._rows: list[dict[str, Any]] = []
        # Bytes that hold whole rows; what lies behind them is the unfinished one.
        self._whole = 0
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder, expected a file of rows")
        self._read()

    def has(self, /, **key: Any) -> bool:
        """Whether a row holds all these values; a value that it lacks counts as None."""
        return bool(self.rows(**key))

    def rows(self, /, **key: Any) -> list[dict[str, Any]]:
        """Copies of the rows that hold all these values, in the order in which they were added; all without any."""
        key = _as_json(key, "key")
        return [dict(row) for row in self._rows if all(row.get(name) == value for name, value in key.items())]

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; when this returns, it is on disk.

        Raises:
            ValueError: names the field that JSON can't say (numbers must be finite).
        """
        row = _as_json(row, "row")
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._read()
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            file.truncate(self._whole)
            file.seek(self._whole)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._whole += len(line)
        self._rows.append(row)

    def __len__(self) -> int:
        return len(self._rows)

    def _read(self) -> None:
        """Take in the whole rows that the file holds beyond the known ones."""
        if not self.path.exists():
            self._whole = 0
            return
        with self.path.open("rb") as file:
            file.seek(self._whole)
            unread = file.read()
        *lines, _ = unread.split(b"\n")
        for number, line in enumerate(lines, start=len(self._rows) + 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{self.path}, line {number}, is no row of JSON: {line[:60]!r}")
            self._rows.append(row)
            self._whole += len(line) + 1


def _as_json(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The values as they come back from the file: tuples as lists, keys as text."""
    result = {}
    for name, value in values.items():
        try:
            result[str(name)] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{what} field {name!r} can't be written as JSON, got {value!r}: {error}") from None
    return result
