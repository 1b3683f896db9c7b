"""What every method of a comparison is given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bundle.physics import MU_WATER, FanBeamGeometry


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """Some slices of one scan as a method sees them: nothing clean is in it.

    Args:
        sinogram: noisy line integrals, float32 ``(S, 1, V, D)``.
        geometry: scan and image grid.
        incident_photons: incident photons a ray of this scan, its dose included; None where not known.
        electronic_variance: of the detector, photons squared.
        mu_water: attenuation of water, 1/mm.

    Raises:
        ValueError: names the argument that cannot be, and what came.
    """

    sinogram: Tensor
    geometry: FanBeamGeometry
    incident_photons: float | None = None
    electronic_variance: float = 0.0
    mu_water: float = MU_WATER

    def __post_init__(self) -> None:
        # Plain: a MetaTensor would carry its history through every method.
        plain = self.sinogram.as_tensor() if hasattr(self.sinogram, "as_tensor") else self.sinogram
        object.__setattr__(self, "sinogram", plain)
        shape, views_cells = tuple(plain.shape), self.geometry.sinogram_shape
        if len(shape) != 4 or shape[0] < 1 or shape[1] != 1 or shape[2:] != views_cells:
            raise ValueError(f"sinogram must be (S, 1, V, D) with V, D = {views_cells}, got shape {shape}")
        if plain.dtype != torch.float32:
            raise ValueError(f"sinogram must be float32, got {plain.dtype}")
        if not torch.isfinite(plain).all():
            raise ValueError("sinogram has NaN or infinite values")
        for name, value, least in (
            ("incident_photons", self.incident_photons, 1e-300),
            ("electronic_variance", self.electronic_variance, 0.0),
            ("mu_water", self.mu_water, 1e-300),
        ):
            if value is not None and not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} must be {'positive' if least else 'zero or more'}, got {value}")


#: A method of a comparison: a scan of S slices to their images, HU ``(S, 1, H, W)``.
Peer = Callable[[Scan], Tensor]
