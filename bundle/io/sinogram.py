"""Measured sinograms: NPZ with the line integrals and the geometry that they were taken in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bundle.physics import FanBeamGeometry

from .writing import replace_when_complete


def read_sinogram(path: str | Path) -> tuple[Tensor, FanBeamGeometry]:
    """Read line integrals and their geometry.

    The file holds ``sinogram``, ``(V, D)`` or ``(S, V, D)``, and ``geometry``, the JSON of :class:`FanBeamGeometry`.

    Returns:
        Line integrals, float32 ``(S, V, D)``, and the geometry.

    Raises:
        ValueError: names the file and the field that is missing, broken, of the wrong shape or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    fields = {}
    try:
        # No pickles: a file from elsewhere must not run code here.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("expected an NPZ archive, got a single array")
            present = sorted(archive.files)
            for name in ("sinogram", "geometry"):
                fields[name] = archive[name] if name in present else None
    except Exception as error:
        field = "" if "sinogram" not in fields else " (field geometry)"
        raise ValueError(f"{path}{field}: cannot be read as NPZ: {error}") from error
    for name, value in fields.items():
        if value is None:
            raise ValueError(f"{path}: the field {name} is missing, the file has {present}")
    try:
        geometry = FanBeamGeometry.from_json(str(fields["geometry"].item()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: field geometry: {error}") from error
    sinogram = fields["sinogram"]
    if sinogram.dtype.kind not in "iuf":
        raise ValueError(f"{path}: field sinogram: expected numbers, got {sinogram.dtype}")
    if sinogram.ndim not in (2, 3) or sinogram.shape[-2:] != geometry.sinogram_shape or 0 in sinogram.shape:
        views, cells = geometry.sinogram_shape
        raise ValueError(
            f"{path}: field sinogram has shape {sinogram.shape}, its geometry expects ({views}, {cells}) "
            f"or (slices, {views}, {cells})"
        )
    if not np.isfinite(sinogram).all():
        raise ValueError(f"{path}: field sinogram has NaN or infinite values, expected line integrals")
    stack = sinogram.astype(np.float32).reshape(-1, *geometry.sinogram_shape)
    return torch.from_numpy(stack), geometry


def write_sinogram(path: str | Path, sinogram: Tensor, geometry: FanBeamGeometry, *, overwrite: bool = False) -> Path:
    """Write line integrals ``(V, D)`` or ``(S, V, D)`` and their geometry as NPZ.

    Raises:
        ValueError: wrong suffix or shape, values not finite, or the file exists and must not be overwritten.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise ValueError(f"{path}: expected a name that ends in .npz")
    if sinogram.ndim not in (2, 3) or tuple(sinogram.shape[-2:]) != geometry.sinogram_shape:
        raise ValueError(
            f"sinogram has shape {tuple(sinogram.shape)}, its geometry expects {geometry.sinogram_shape} a slice"
        )
    values = sinogram.detach().to("cpu", torch.float32).numpy()
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: sinogram has NaN or infinite values, nothing was written")
    with replace_when_complete(path, overwrite=overwrite) as partial, partial.open("wb") as file:
        np.savez_compressed(file, sinogram=values, geometry=np.array(geometry.to_json()))
    return path
