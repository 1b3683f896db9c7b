"""Hounsfield units and attenuation: the only place where one becomes the other."""

from __future__ import annotations

from torch import Tensor

#: Attenuation of water, 1/mm, at the effective energy of a 120 kV scan (CoreDiff, arXiv 2304.01814: .0192).
MU_WATER = 0.0192


def hu_to_attenuation(image_hu: Tensor, mu_water: float = MU_WATER) -> Tensor:
    """Attenuation in 1/mm of an image in HU, any shape. Below -1000 HU there is no matter: such values become 0."""
    return ((image_hu / 1000 + 1) * _checked(mu_water)).clamp_min(0)


def attenuation_to_hu(image: Tensor, mu_water: float = MU_WATER) -> Tensor:
    """HU of an attenuation image in 1/mm, any shape: water 0, air -1000."""
    return (image / _checked(mu_water) - 1) * 1000


def _checked(mu_water: float) -> float:
    if not mu_water > 0:
        raise ValueError(f"mu_water must be positive (1/mm), got {mu_water}")
    return mu_water
