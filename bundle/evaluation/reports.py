"""Reports on disk, whole or not at all; and as a table to read."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
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


def insert_between_markers(page: str | os.PathLike[str], name: str, text: str) -> None:
    """Put ``text`` (Markdown) between ``<!-- name -->`` and ``<!-- /name -->`` of a page, in place of what is there.

    The rest of the page stays as it is, to the byte; a page that says so already is not touched.

    Raises:
        ValueError: names the page that does not exist, or does not hold each marker once, in this order.
    """
    page = Path(page)
    if not page.is_file():
        raise ValueError(f"{page} does not exist: expected a page with the marker <!-- {name} -->")
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = page.read_bytes().decode("utf-8")
    before, _, rest = old.partition(opening)
    _, _, after = rest.partition(closing)
    if old.count(opening) != 1 or old.count(closing) != 1 or closing in before:
        raise ValueError(f"{page} must hold {opening} and {closing} once each, in this order")
    if opening in text or closing in text:
        raise ValueError(f"the text for {page} must not hold its own marker {name!r}")
    new = f"{before}{opening}\n{text.strip()}\n{closing}{after}"
    if new != old:
        with replace_when_complete(page, overwrite=True) as unfinished:
            unfinished.write_bytes(new.encode("utf-8"))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of text cells: the first column to the left, the others to the right.

    Raises:
        ValueError: a row of another length than the header.
    """
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row must have {len(header)} cells as the header {list(header)}, got {list(row)}")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


def spread(values: Iterable[float | None], digits: int = 2) -> str:
    """``mean (lowest to highest)`` of what is not None; without brackets for one value, a dash for none."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    if len(known) == 1:
        return f"{known[0]:.{digits}f}"
    return f"{fmean(known):.{digits}f} ({min(known):.{digits}f} to {max(known):.{digits}f})"


def patient_means(rows: Iterable[Mapping[str, Any]], metric: str) -> dict[str, float | None]:
    """Mean of a metric over each patient's rows, by ``patient``; None where none of them has it."""
    by_patient: dict[str, list[float]] = {}
    for row in rows:
        values = by_patient.setdefault(row["patient"], [])
        if row.get(metric) is not None:
            values.append(row[metric])
    return {patient: fmean(values) if values else None for patient, values in sorted(by_patient.items())}


def paired_gains(
    ours: Iterable[Mapping[str, Any]], peer: Iterable[Mapping[str, Any]], error: str = "rmse_hu"
) -> dict[str, dict[str, Any]]:
    """How much less error we have than a peer on the slices that both were measured on, by ``patient``.

    Rows pair by ``patient``, ``case``, ``slice`` and ``dose``.

    Args:
        ours: rows of our method.
        peer: rows of the peer.
        error: column of an error, positive, less is better.

    Returns:
        By patient ``gain_db``, 20 log10 of the ratio of the mean errors, positive where ours is less (for the RMSE a
        gain in PSNR whatever its range); ``wins``, slices where ours is less; ``n``, slices compared.

    Raises:
        ValueError: one side holds a slice twice.
    """
    sides: list[dict[tuple, float]] = []
    for rows in (ours, peer):
        errors: dict[tuple, float] = {}
        for row in rows:
            key = tuple(row.get(name) for name in ("patient", "case", "slice", "dose"))
            if key in errors:
                raise ValueError(f"a slice must be measured once to be compared, got {key} more than once")
            if row.get(error) is not None:
                errors[key] = row[error]
        sides.append(errors)
    gains: dict[str, dict[str, Any]] = {}
    for patient in sorted({key[0] for key in sides[0]}):
        pairs = [(value, sides[1][key]) for key, value in sides[0].items() if key[0] == patient and key in sides[1]]
        if pairs:
            mine, other = (fmean(column) for column in zip(*pairs))
            gains[patient] = {
                "gain_db": 20 * math.log10(other / mine),
                "wins": sum(a < b for a, b in pairs),
                "n": len(pairs),
            }
    return gains


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
