"""Measured sinograms: NPZ with the line integrals, the geometry that they were taken in, and what is known of noise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bundle.physics import FanBeamGeometry

from .writing import replace_when_complete


class ScanNoise(NamedTuple):
    """What a file says of a scan's noise; None where it says nothing.

    Args:
        photons: incident photons a ray of this scan, so its dose is in it.
        electronic_variance: variance of the electronic noise, photons squared.
    """

    photons: float | None
    electronic_variance: float | None


def read_sinogram(path: str | Path) -> tuple[Tensor, FanBeamGeometry]:
    """Read line integrals and their geometry.

    The file holds ``sinogram``, ``(V, D)`` or ``(S, V, D)``, and ``geometry``, the JSON of :class:`FanBeamGeometry`;
    it may hold ``photons`` and ``electronic_variance``, one number each (:func:`read_scan_noise`).

    Returns:
        Line integrals, float32 ``(S, V, D)``, and the geometry.

    Raises:
        ValueError: names the file and the field that is missing, broken, of the wrong shape or not finite.
    """
    path = Path(path)
    fields = _read_fields(path, ("sinogram", "geometry"), ScanNoise._fields)
    try:
        geometry = FanBeamGeometry.from_json(str(fields["geometry"].item()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: field geometry: {error}") from error
    _scan_noise(path, fields)
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


def read_scan_noise(path: str | Path) -> ScanNoise:
    """Read what a file that :func:`read_sinogram` reads says of its noise, without its line integrals.

    Raises:
        ValueError: names the file; it cannot be read, ``photons`` is no positive number or ``electronic_variance`` a
            negative one.
    """
    path = Path(path)
    return _scan_noise(path, _read_fields(path, (), ScanNoise._fields))


def _read_fields(path: Path, needed: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    """Arrays of an NPZ archive by name; an optional one that is not there is not in the result."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    fields: dict[str, Any] = {}
    name = ""
    try:
        # No pickles: a file from elsewhere must not run code here.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("expected an NPZ archive, got a single array")
            present = sorted(archive.files)
            for name in (*needed, *optional):
                if name in present:
                    fields[name] = archive[name]
    except Exception as error:
        raise ValueError(f"{path}{f' (field {name})' if name else ''}: cannot be read as NPZ: {error}") from error
    for name in needed:
        if name not in fields:
            raise ValueError(f"{path}: the field {name} is missing, the file has {present}")
    return fields


def _scan_noise(path: Path, fields: dict[str, Any]) -> ScanNoise:
    values = {}
    for name in ScanNoise._fields:
        value = fields.get(name)
        if value is not None and (value.size != 1 or value.dtype.kind not in "iuf"):
            raise ValueError(f"{path}: field {name}: expected one number, got shape {value.shape} of {value.dtype}")
        values[name] = None if value is None else float(value.item())
    _check_noise(f"{path}: field ", **values)
    return ScanNoise(**values)


def _check_noise(where: str, photons: float | None, electronic_variance: float | None) -> None:
    if photons is not None and not (math.isfinite(photons) and photons > 0):
        raise ValueError(f"{where}photons: expected incident photons a ray, above 0, got {photons}")
    if electronic_variance is not None and not (math.isfinite(electronic_variance) and electronic_variance >= 0):
        raise ValueError(f"{where}electronic_variance: expected photons squared, 0 or more, got {electronic_variance}")


def write_sinogram(
    path: str | Path,
    sinogram: Tensor,
    geometry: FanBeamGeometry,
    *,
    photons: float | None = None,
    electronic_variance: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Write line integrals ``(V, D)`` or ``(S, V, D)`` and their geometry as NPZ, and what is known of their noise.

    Args:
        path: ends in ``.npz``.
        sinogram: line integrals.
        geometry: of the scan.
        photons: incident photons a ray of this scan, dose included; None: not known, nothing is written.
        electronic_variance: of the detector, photons squared; likewise.
        overwrite: replace a file that exists.

    Raises:
        ValueError: wrong suffix or shape, values not finite, ``photons`` or ``electronic_variance`` that cannot be, or
            the file exists and must not be overwritten.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise ValueError(f"{path}: expected a name that ends in .npz")
    if sinogram.ndim not in (2, 3) or tuple(sinogram.shape[-2:]) != geometry.sinogram_shape:
        raise ValueError(
            f"sinogram has shape {tuple(sinogram.shape)}, its geometry expects {geometry.sinogram_shape} a slice"
        )
    _check_noise("", photons, electronic_variance)
    values = sinogram.detach().to("cpu", torch.float32).numpy()
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: sinogram has NaN or infinite values, nothing was written")
    known = {"photons": photons, "electronic_variance": electronic_variance}
    noise = {name: np.float64(value) for name, value in known.items() if value is not None}
    with replace_when_complete(path, overwrite=overwrite) as partial, partial.open("wb") as file:
        np.savez_compressed(file, sinogram=values, geometry=np.array(geometry.to_json()), **noise)
    return path
