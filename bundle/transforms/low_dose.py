"""Retake a CT image as a low-dose scan."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import RandomizableTransform, Transform
from monai.utils import convert_to_tensor
from torch import Tensor

from bundle.physics import (
    MU_WATER,
    FanBeamGeometry,
    attenuation_to_hu,
    check_fractions,
    hu_to_attenuation,
    simulate_low_dose,
    thin_line_integrals,
)

from .operators import filtered_backprojection, in_batches, projector

#: What a reference image shows.
REFERENCES = ("backprojection", "object")


class SimulateScand(Transform):
    """Project ``image_hu`` and add the noise of a low dose: gives ``sinogram`` and ``geometry``.

    Works on one slice, ``image_hu`` ``(1, H, W)`` to ``sinogram`` ``(1, V, D)`` with ``slice`` an int, and on a stack,
    ``(1, S, H, W)`` to ``(1, S, V, D)`` with ``slice`` ``(S,)``. The image grid is the image's own (its shape and
    ``pixel_size``), the scanner stays. Adds ``dose``, ``incident_photons`` (``photons * dose``, a ray) and
    ``electronic_variance``, and with ``reference`` what a restored image is measured by, HU, in the shape of the
    image: the Ram-Lak FBP of the noise-free line integrals, or the image that was projected. Neither the noise-free
    line integrals nor ``image_hu`` stay in the item.

    The noise belongs to (``seed``, ``name``, slice, dose): the same slice has the same noise in every epoch, worker
    and order. Items without ``image_hu``, such as a measured ``sinogram``, pass through.

    Args:
        geometry: the scanner.
        photons: incident photons a ray at normal dose.
        electronic_variance: variance of the electronic noise, photons squared.
        dose: fraction of the normal dose; an item's own ``dose`` wins.
        seed: of the noise.
        slices_per_batch: how many slices of a stack are projected at a time.
        reference: whether to add ``reference``.
        reference_of: what it shows: the ``backprojection`` without noise, or the ``object``, the image itself.
        device: where to project and reconstruct; the noise is always drawn on the CPU, so it is the same everywhere.
        mu_water: attenuation of water, 1/mm.
        backend: of projection and backprojection, see :class:`bundle.physics.FanBeamProjector`.

    Raises:
        ValueError: a dose or photon number that is not positive, an unknown ``reference_of``, ``image_hu`` of another
            rank.
    """

    def __init__(
        self,
        geometry: FanBeamGeometry,
        photons: float,
        electronic_variance: float,
        dose: float = 1.0,
        seed: int = 0,
        slices_per_batch: int = 8,
        reference: bool = True,
        reference_of: str = "backprojection",
        device: torch.device | str = "cpu",
        mu_water: float = MU_WATER,
        backend: str = "auto",
    ) -> None:
        _positive("photons", photons)
        _positive("dose", dose)
        if slices_per_batch < 1:
            raise ValueError(f"slices_per_batch must be at least 1, got {slices_per_batch}")
        if reference_of not in REFERENCES:
            raise ValueError(
                f"reference_of (restore_to in the configs) must be one of {REFERENCES}, got {reference_of!r}"
            )
        self.geometry = geometry
        self.photons = photons
        self.electronic_variance = electronic_variance
        self.dose = dose
        self.seed = seed
        self.slices_per_batch = slices_per_batch
        self.reference = reference
        self.reference_of = reference_of
        self.device = device
        self.mu_water = mu_water
        self.backend = backend

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if "image_hu" not in item:
            return item
        image_hu = item.pop("image_hu")
        if image_hu.ndim not in (3, 4) or image_hu.shape[0] != 1:
            raise ValueError(f"image_hu must be (1, H, W) or (1, S, H, W), got shape {tuple(image_hu.shape)}")
        dose = float(item.get("dose", self.dose))
        _positive("dose", dose)
        slices = [int(index) for index in torch.as_tensor(item["slice"]).reshape(-1)]
        stack = image_hu.reshape(-1, *image_hu.shape[-2:])
        if len(slices) != len(stack):
            raise ValueError(f"slice has {len(slices)} indices for an image_hu of {len(stack)} slices")
        geometry = self.geometry.with_grid(tuple(stack.shape[1:]), float(item["pixel_size"]))
        clean = in_batches(
            projector(geometry, self.backend),
            hu_to_attenuation(stack, self.mu_water),
            self.slices_per_batch,
            self.device,
        )
        if self.reference and self.reference_of == "object":
            # As it was projected: there is no matter below -1000 HU.
            item["reference"] = image_hu.clamp_min(-1000)
        elif self.reference:
            reconstruct = filtered_backprojection(geometry, "ram-lak", self.backend)
            reference = in_batches(reconstruct, clean, self.slices_per_batch, self.device)
            item["reference"] = attenuation_to_hu(reference, self.mu_water).reshape(image_hu.shape)
        noisy = [self._scan(p, item["name"], index, dose) for p, index in zip(clean, slices)]
        item["sinogram"] = torch.stack(noisy).reshape(*image_hu.shape[:-2], *geometry.sinogram_shape)
        item["geometry"] = geometry.to_json()
        item["dose"] = dose
        item["incident_photons"] = self.photons * dose
        item["electronic_variance"] = self.electronic_variance
        return item

    def _scan(self, clean: Tensor, name: str, index: int, dose: float) -> Tensor:
        generator = torch.Generator().manual_seed(noise_seed(self.seed, name, index, dose))
        return simulate_low_dose(
            clean,
            self.photons,
            dose=dose,
            electronic_variance=self.electronic_variance,
            generator=generator,
        )


class ThinCountsd(Transform):
    """Split the photons of ``sinogram`` into ``input_sinogram`` and ``target_sinogram``, of independent noise.

    What a network learns from such a pair (:class:`bundle.transforms.ReconstructPaird`) cannot be the noise of its
    input, for the target does not have it. The share of the input is drawn anew for each item, log-uniformly, so that
    lower doses than the scan's own, and thicker patients, are trained, too. The draw belongs to (``seed``, ``name``,
    slice, ``repeat``). ``input_photons`` and ``target_photons`` become the incident photons a ray of the two parts.
    An item's own ``incident_photons`` and ``electronic_variance`` win over the arguments.

    Args:
        photons: incident photons a ray at normal dose.
        dose: fraction of the normal dose, where the item does not say.
        fractions: least and greatest share of the photons that the input is given.
        seed: of the draw.
        electronic_variance: of the detector, photons squared; the parts are uncorrelated only where it is known.

    Raises:
        ValueError: ``fractions`` are not two growing numbers between 0 and 1.
    """

    def __init__(
        self,
        photons: float,
        dose: float,
        fractions: Sequence[float] = (0.04, 0.85),
        seed: int = 0,
        electronic_variance: float = 0.0,
    ) -> None:
        _positive("photons", photons)
        _positive("dose", dose)
        self.photons = photons
        self.dose = dose
        self.fractions = check_fractions(fractions)
        self.seed = seed
        self.electronic_variance = electronic_variance

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        incident = float(item.get("incident_photons", self.photons * float(item.get("dose", self.dose))))
        seed = noise_seed(self.seed, f"thin {item['name']}", int(item["slice"]), item.get("repeat", 0))
        generator = torch.Generator().manual_seed(seed)
        low, high = self.fractions
        fraction = low * (high / low) ** float(torch.rand((), generator=generator, dtype=torch.float64))
        item["input_sinogram"], item["target_sinogram"] = thin_line_integrals(
            item["sinogram"],
            incident,
            fraction,
            electronic_variance=float(item.get("electronic_variance", self.electronic_variance)),
            generator=generator,
        )
        item["incident_photons"] = incident
        item["input_photons"], item["target_photons"] = (incident * f for f in (fraction, 1 - fraction))
        return item


class RandThinCountsd(RandomizableTransform):
    """Sometimes keep only a part of the photons of ``sinogram``: one dose trains all below.

    The fraction kept is drawn log-uniformly. ``incident_photons`` and ``electronic_variance`` become those of what is
    kept, float32 scalar tensors, also where nothing was taken away.

    Args:
        photons: incident photons a ray at normal dose.
        dose: fraction of the normal dose. Both where the item does not say its ``incident_photons``.
        least: least fraction kept, between 0 and 1.
        prob: probability of thinning at all; 0 leaves every sinogram as it is.
        electronic_variance: of the detector, photons squared, where the item does not say.

    Raises:
        ValueError: an argument that cannot be.
    """

    def __init__(
        self, photons: float, dose: float, least: float = 0.1, prob: float = 0.5, electronic_variance: float = 0.0
    ) -> None:
        super().__init__(prob)
        _positive("photons", photons)
        _positive("dose", dose)
        if not 0 < least < 1:
            raise ValueError(f"least must be between 0 and 1, got {least}")
        self.photons = photons
        self.dose = dose
        self.least = least
        self.electronic_variance = electronic_variance

    def randomize(self, data: Any = None) -> None:
        """Draw whether to thin, the fraction kept, and the seed of the thinning."""
        super().randomize(data)
        self._fraction = self.least ** self.R.uniform()
        self._seed = int(self.R.randint(2**31))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize()
        photons = float(item.get("incident_photons", self.photons * self.dose))
        variance = float(item.get("electronic_variance", self.electronic_variance))
        # Plain, thinned or not: tensors with and without metadata can't be batched together.
        sinogram = convert_to_tensor(item["sinogram"], track_meta=False)
        if self._do_transform and self._fraction < 1:
            generator = torch.Generator().manual_seed(self._seed)
            sinogram, _ = thin_line_integrals(
                sinogram, photons, self._fraction, electronic_variance=variance, generator=generator
            )
            photons, variance = photons * self._fraction, variance * self._fraction
        noise = {"incident_photons": torch.tensor(photons), "electronic_variance": torch.tensor(variance)}
        return {**item, "sinogram": sinogram, **noise}


def noise_seed(seed: int, name: str, index: int, dose: float) -> int:
    """Seed of one slice's noise, the same on every machine (Python's own ``hash`` differs from run to run)."""
    text = f"{seed}|{name}|{index}|{dose:.6g}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value}")
