"""FBP of noisy and of denoised line integrals: the inputs and targets of the image stages."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Transform
from torch import Tensor, nn

from bundle.physics import attenuation_to_hu

from .operators import filtered_backprojection, in_batches, parsed_geometry


class ReconstructPaird(Transform):
    """Reconstruct a sinogram as it is (``fbp``), and the same or another one denoised (``prior``), both in HU.

    In the paper both come from ``sinogram``. With the two parts of :class:`ThinCountsd` the noise of ``prior`` is
    independent of that of ``fbp``. ``(1, V, D)`` gives ``(1, H, W)``, ``(1, S, V, D)`` gives ``(1, S, H, W)``, on the image grid of the
    item's ``geometry``. No gradient; the denoiser is set to evaluation, and the work is done on its device.

    Args:
        denoiser: maps ``(B, 1, V, D)`` line integrals to denoised ones.
        window: ramp window of both reconstructions.
        slices_per_batch: how many slices of a stack are worked on at a time.
        input_key: the sinogram of ``fbp``.
        target_key: the sinogram of ``prior``.

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
    ) -> None:
        self.denoiser = denoiser
        self.window = window
        self.slices_per_batch = slices_per_batch
        self.input_key = input_key
        self.target_key = target_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        geometry = parsed_geometry(item["geometry"])
        reconstruct = filtered_backprojection(geometry, self.window)
        self.denoiser.eval()
        device = next((parameter.device for parameter in self.denoiser.parameters()), item[self.input_key].device)

        def prior(noisy: Tensor) -> Tensor:
            return reconstruct(self.denoiser(noisy))

        for key, source, apply in (("fbp", self.input_key, reconstruct), ("prior", self.target_key, prior)):
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
