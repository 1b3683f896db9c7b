"""FBP of noisy and of denoised line integrals: the inputs and targets of the image stages."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import RandomizableTransform, Transform
from torch import Tensor, nn

from bundle.physics import attenuation_to_hu

from .operators import filtered_backprojection, in_batches, parsed_geometry


class ReconstructPaird(Transform):
    """Reconstruct a sinogram as it is (``fbp``), and the same or another one denoised (``prior``), both in HU.

    In the paper both come from ``sinogram``. With the two parts of :class:`ThinCountsd` the noise of ``prior`` is
    independent of that of ``fbp``. ``(1, V, D)`` gives ``(1, H, W)``, ``(1, S, V, D)`` gives ``(1, S, H, W)``, on
    the image grid of the item's ``geometry``. No gradient; the denoiser is set to evaluation, and the work is done on
    its device.

    Args:
        denoiser: maps ``(B, 1, V, D)`` line integrals to denoised ones.
        window: ramp window of both reconstructions.
        slices_per_batch: how many slices of a stack are worked on at a time.
        input_key: the sinogram of ``fbp``.
        target_key: the sinogram of ``prior``.
        input_prior_key: where the denoised input goes, for inputs that mix it in (:class:`RandMixd`); None: nowhere.
        backend: of the backprojection, see :class:`bundle.physics.FanBeamProjector`.

    Raises:
        ValueError: ``sinogram`` does not fit its ``geometry``.
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
    ) -> None:
        self.denoiser = denoiser
        self.window = window
        self.slices_per_batch = slices_per_batch
        self.input_key = input_key
        self.target_key = target_key
        self.input_prior_key = input_prior_key
        self.backend = backend

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        geometry = parsed_geometry(item["geometry"])
        reconstruct = filtered_backprojection(geometry, self.window, self.backend)
        self.denoiser.eval()
        device = next((parameter.device for parameter in self.denoiser.parameters()), item[self.input_key].device)

        def prior(noisy: Tensor) -> Tensor:
            return reconstruct(self.denoiser(noisy))

        wanted = [("fbp", self.input_key, reconstruct), ("prior", self.target_key, prior)]
        if self.input_prior_key is not None:
            wanted.append((self.input_prior_key, self.input_key, prior))
        for key, source, apply in wanted:
            sinogram = item[source]
            if sinogram.ndim not in (3, 4) or tuple(sinogram.shape[-2:]) != geometry.sinogram_shape:
                raise ValueError(
                    f"{source} must be (1, V, D) or (1, S, V, D) with V, D = {geometry.sinogram_shape}, "
                    f"got shape {tuple(sinogram.shape)}"
                )
            stack = sinogram.reshape(-1, *geometry.sinogram_shape)
            image = in_batches(apply, stack, self.slices_per_batch, device)
            item[key] = attenuation_to_hu(image).reshape(*sinogram.shape[:-2], *geometry.image_shape)
        return item


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
