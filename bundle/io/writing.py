"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_when_complete(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a file beside ``path`` to write to, and move it there when the block ends well.

    Its name ends like that of ``path``, because writers choose their format by it.

    Raises:
        ValueError: ``path`` exists and must not be overwritten.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise ValueError(f"{path}: exists; pass overwrite to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}-partial-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
