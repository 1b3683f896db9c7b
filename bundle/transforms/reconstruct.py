"""FBP of noisy and of denoised line integrals: the inputs and targets of the image stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from monai.transforms import RandomizableTransform, Transform
from torch import Tensor, nn

from bundle.physics import attenuation_to_hu, log_bias

from .operators import filtered_backprojection, in_batches, parsed_geometry

#: Incident photons a ray of the sinogram under each key, where they are known.
PHOTONS_KEYS = {"sinogram": "incident_photons", "input_sinogram": "input_photons", "target_sinogram": "target_photons"}


class ReconstructPaird(Transform):
    """Reconstruct a sinogram as it is (``fbp``), and the same or another one denoised (``prior``), both in HU.

    In the paper both come from ``sinogram``. With the two parts of :class:`ThinCountsd` the noise of ``prior`` is
    independent of that of ``fbp``. ``(1, V, D)`` gives ``(1, H, W)``, ``(1, S, V, D)`` gives ``(1, S, H, W)``, on
    the image grid of the item's ``geometry``. No gradient; the denoiser is set to evaluation, and the work is done on
    its device.

    Args:
        denoiser: maps ``(B, 1, V, D)`` line integrals to denoised ones. It is told ``incident_photons`` and
            ``electronic_variance`` wherever the item knows its photons (:data:`PHOTONS_KEYS`).
        window: ramp window of both reconstructions.
        slices_per_batch: how many slices of a stack are worked on at a time.
        input_key: the sinogram of ``fbp``.
        target_key: the sinogram of ``prior``.
        input_prior_key: where the denoised input goes, for inputs that mix it in (:class:`RandMixd`); None: nowhere.
        backend: of the backprojection, see :class:`bundle.physics.FanBeamProjector`.
        electronic_variance: of the detector, photons squared. Given, the bias that the logarithm of few counts has is
            taken out of both reconstructions wherever the item knows its photons; None: never. An item's own wins.

    Raises:
        ValueError: a sinogram does not fit its ``geometry``, a negative ``electronic_variance``, an
            ``input_prior_key`` though input and target are one sinogram.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        window: str = "ram-lak",
        slices_per_batch: int = 4,
        input_key: str = "sinogram",
        target_key: str = "sinogram",
        input_prior_key: str | None = None,
        backend: str = "auto",
        electronic_variance: float | None = None,
    ) -> None:
        if electronic_variance is not None and not (math.isfinite(electronic_variance) and electronic_variance >= 0):
            raise ValueError(f"electronic_variance must be None, zero or more, got {electronic_variance}")
        if input_prior_key is not None and input_key == target_key:
            raise ValueError(f"input_prior_key {input_prior_key!r} would be the target: both are made of {input_key!r}")
        self.denoiser = denoiser
        self.window = window
        self.slices_per_batch = slices_per_batch
        self.input_key = input_key
        self.target_key = target_key
        self.input_prior_key = input_prior_key
        self.backend = backend
        self.electronic_variance = electronic_variance

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        geometry = parsed_geometry(item["geometry"])
        reconstruct = filtered_backprojection(geometry, self.window, self.backend)
        self.denoiser.eval()
        device = next((parameter.device for parameter in self.denoiser.parameters()), item[self.input_key].device)
        # Every sinogram is denoised once, whatever is wanted of it.
        wanted: dict[str, dict[str, str]] = {self.input_key: {"noisy": "fbp"}}
        wanted.setdefault(self.target_key, {})["denoised"] = "prior"
        if self.input_prior_key is not None:
            wanted[self.input_key]["denoised"] = self.input_prior_key
        for source, keys in wanted.items():
            sinogram = item[source]
            if sinogram.ndim not in (3, 4) or tuple(sinogram.shape[-2:]) != geometry.sinogram_shape:
                raise ValueError(
                    f"{source} must be (1, V, D) or (1, S, V, D) with V, D = {geometry.sinogram_shape}, "
                    f"got shape {tuple(sinogram.shape)}"
                )
            photons = item.get(PHOTONS_KEYS.get(source))
            # A thinned part has its share of the electronic variance.
            share = 1.0 if photons is None else float(photons) / float(item.get("incident_photons", photons))
            known = item.get("electronic_variance", self.electronic_variance)
            variance = None if known is None else share * float(known)
            apply = self._reconstruction(tuple(keys), reconstruct, photons, variance)
            images = in_batches(apply, sinogram.reshape(-1, *geometry.sinogram_shape), self.slices_per_batch, device)
            for key, image in zip(keys.values(), images.unbind(1)):
                item[key] = attenuation_to_hu(image).reshape(*sinogram.shape[:-2], *geometry.image_shape)
        return item

    def _reconstruction(
        self, wanted: tuple[str, ...], reconstruct: nn.Module, photons: float | None, variance: float | None
    ) -> Callable[[Tensor], Tensor]:
        """From ``(B, 1, V, D)`` to the wanted images, side by side as ``(B, 1, N, H, W)`` in 1/mm."""
        noise = {} if photons is None else {"incident_photons": float(photons), "electronic_variance": variance}
        biased = self.electronic_variance is not None and photons is not None

        def apply(noisy: Tensor) -> Tensor:
            sinograms = {"noisy": noisy}
            if biased or "denoised" in wanted:
                sinograms["denoised"] = self.denoiser(noisy, **noise)
            if biased:
                bias = log_bias(sinograms["denoised"], float(photons), electronic_variance=variance)
                sinograms = {name: sinogram - bias for name, sinogram in sinograms.items()}
            return torch.stack([reconstruct(sinograms[name]) for name in wanted], dim=2)

        return apply


class RemovedNoised(Transform):
    """Add ``noise``: what stage 1 took for noise, ``image - prior`` of the same photons, HU.

    It holds the noise of the image, and what detail stage 1 lost: the refiner is told both.

    Args:
        image_key: the noisy image, HU.
        prior_key: its prior, HU, the same shape.
        noise_key: where the noise goes.
    """

    def __init__(self, image_key: str = "fbp", prior_key: str = "prior", noise_key: str = "noise") -> None:
        self.image_key = image_key
        self.prior_key = prior_key
        self.noise_key = noise_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, self.noise_key: data[self.image_key] - data[self.prior_key]}


class RandMixd(RandomizableTransform):
    """Mix a noisy image and its prior at random, as the fusion does at inference: what the refiner meets, it has seen.

    ``fbp`` becomes ``weight * fbp + (1 - weight) * prior of the same photons``; that prior leaves the item. The weight
    is drawn from 0 to 1, and is 0 with probability ``prob_prior``: where the prior is good, fusion takes it alone.

    Args:
        key: the noisy image, HU.
        prior_key: its prior, HU, the same shape.
        prob_prior: probability of the weight 0.
    """

    def __init__(self, key: str = "fbp", prior_key: str = "input_prior", prob_prior: float = 0.5) -> None:
        super().__init__(prob=1.0)
        if not 0 <= prob_prior <= 1:
            raise ValueError(f"prob_prior must be between 0 and 1, got {prob_prior}")
        self.key = key
        self.prior_key = prior_key
        self.prob_prior = prob_prior

    def randomize(self, data: Any = None) -> None:
        """Draw the weight of the noisy image."""
        super().randomize(data)
        self._weight = float(self.R.uniform()) * float(self.R.uniform() >= self.prob_prior)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize()
        prior = item.pop(self.prior_key)
        item[self.key] = self._weight * item[self.key] + (1 - self._weight) * prior
        return item
