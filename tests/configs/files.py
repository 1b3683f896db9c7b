"""The configs as they lie on disk, and what can be asked of them without running them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
TRAIN = ("train_projection.json", "train_autoencoder.json", "train_diffusion.json")
INFER = ("inference.json", "evaluate.json")
#: Overrides: each with the configs that it is made for.
OVERRIDES = {
    path.name: TRAIN[1:] if path.name == "cross_fit.json" else TRAIN
    for path in sorted(CONFIGS.glob("*.json"))
    if path.name not in (*TRAIN, *INFER, "metadata.json")
}
REFERENCE = re.compile(r"[@%]([A-Za-z_][\w#:]*)")


def read(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / name).read_text(encoding="utf-8"))


def merged(name: str, override: str) -> dict[str, Any]:
    """The config under an override that names only keys of the top level."""
    return {**read(name), **read(override)}


def strings(block: Any) -> Iterator[str]:
    """Every text value at any depth; comments (keys that begin with _, but for targets and switches) are no values."""
    if isinstance(block, dict):
        for key, value in block.items():
            if not key.startswith("_") or key in ("_target_", "_disabled_"):
                yield from strings(value)
    elif isinstance(block, list):
        for value in block:
            yield from strings(value)
    elif isinstance(block, str):
        yield block


def targets(block: Any) -> Iterator[str]:
    if isinstance(block, dict):
        if "_target_" in block:
            yield block["_target_"]
        for value in block.values():
            yield from targets(value)
    elif isinstance(block, list):
        for value in block:
            yield from targets(value)


def references(block: Any) -> set[str]:
    """Ids that a block refers to, such as ``train#dataset``."""
    return {found for text in strings(block) if text[:1] in "@$%" for found in REFERENCE.findall(text)}


def without_comments(block: Any) -> Any:
    if isinstance(block, dict):
        return {k: without_comments(v) for k, v in block.items() if k not in ("_desc_", "_about_")}
    return [without_comments(v) for v in block] if isinstance(block, list) else block
