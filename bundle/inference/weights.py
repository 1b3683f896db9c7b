"""Weights from files: checked whole before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

#: How many keys an error names.
NAMED_KEYS = 5


def load_weights(network: Network, path: str | PathLike[str], key: str = "network", part: str | None = None) -> Network:
    """Fill ``network`` with the weights of a file, and hand it back.

    Takes a flat state dict, or a checkpoint that holds one under ``key`` beside other things (MONAI's CheckpointSaver
    with several entries). The network is changed only when every key and every shape fits.

    Args:
        network: what the weights are for; stays on its device.
        path: file written by ``torch.save``; read as weights only, so it can run no code.
        key: name of the state dict in a nested checkpoint.
        part: name of the part of a larger network that ``network`` is, such as ``projection``: only its weights are
            taken.

    Raises:
        ValueError: names the file: missing, truncated or no state dict, nothing of ``part``, first missing, unexpected
            or misshapen keys, weights that are NaN or infinite (a training that diverged).
    """
    path = Path(path)
    weights = read_weights(path, key)
    if part:
        weights = {k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(f"{part}.")}
        if not weights:
            raise ValueError(f"{path} has no weights of a part {part!r}")
    expected = network.state_dict()
    problems = {
        "missing": [k for k in expected if k not in weights],
        "unexpected": [k for k in weights if k not in expected],
        "of another shape": [
            f"{k} ({tuple(weights[k].shape)}, expected {tuple(v.shape)})"
            for k, v in expected.items()
            if k in weights and weights[k].shape != v.shape
        ],
        # Buffers may be NaN: that is how a fusion says that it is not calibrated.
        "not finite": [
            k for k, _ in network.named_parameters() if k in weights and not torch.isfinite(weights[k]).all()
        ],
    }
    if any(problems.values()):
        text = "; ".join(_named(label, keys) for label, keys in problems.items() if keys)
        raise ValueError(f"{path} does not fit {type(network).__name__}: {text}")
    network.load_state_dict(weights)
    return network


def read_weights(path: str | PathLike[str], key: str = "network") -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; arguments and errors as in :func:`load_weights`."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weight file {path} does not exist" if not path.exists() else f"{path} is not a file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle raises has no common base
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) can't be read as weights, it may be truncated: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    if _is_state_dict(content):
        return dict(content)
    if isinstance(content, Mapping) and _is_state_dict(content.get(key)):
        return dict(content[key])
    found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(f"{path} must hold a state dict, flat or under the key {key!r}, got {found}")


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def _named(label: str, keys: list[str]) -> str:
    more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
    return f"{len(keys)} keys {label}: {', '.join(keys[:NAMED_KEYS])}{more}"
