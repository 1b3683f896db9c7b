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
#: Trained for comparison only.
PEERS = ("train_noise2inverse.json",)
#: Overrides, each with what it is made for: a config, and the overrides that come before it.
OVERRIDES = {
    "smoke.json": [(name,) for name in (*TRAIN, *PEERS)],
    "cross_fit.json": [(name,) for name in TRAIN[1:]],
    "supervised.json": [(name, "cross_fit.json") for name in TRAIN[1:]],
    "neighbor2neighbor.json": [TRAIN[:1]],
    "thinned_projection.json": [TRAIN[:1]],
    "fine_tune.json": [(name,) for name in TRAIN],
}
REFERENCE = re.compile(r"[@%]([A-Za-z_][\w#:]*)")


def whole_configs() -> list[str]:
    """Every config that runs by itself."""
    names = sorted(path.name for path in CONFIGS.glob("*.json"))
    return [name for name in names if "run" in read(name)]


def read(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / name).read_text(encoding="utf-8"))


def merged(*names: str) -> dict[str, Any]:
    """A config under overrides that name only keys of the top level."""
    return {key: value for name in names for key, value in read(name).items()}


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
