"""FBP of noisy and of denoised line integrals: the inputs and targets of the image stages."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Transform
from torch import Tensor, nn

from bundle.physics import attenuation_to_hu

from .operators import filtered_backprojection, in_batches, parsed_geometry


class ReconstructPaird(Transform):
    """Reconstruct ``sinogram`` as it is (``fbp``) and denoised (``prior``), both in HU.

    ``sinogram`` ``(1, V, D)`` gives ``(1, H, W)``, ``(1, S, V, D)`` gives ``(1, S, H, W)``, on the image grid of the
    item's ``geometry``. No gradient; the denoiser is set to evaluation, and the work is done on its device.

    Args:
        denoiser: maps ``(B, 1, V, D)`` line integrals to denoised ones.
        window: ramp window of both reconstructions.
        slices_per_batch: how many slices of a stack are worked on at a time.

    Raises:
        ValueError: ``sinogram`` does not fit its ``geometry``.
    """

    def __init__(self, denoiser: nn.Module, window: str = "ram-lak", slices_per_batch: int = 4) -> None:
        self.denoiser = denoiser
        self.window = window
        self.slices_per_batch = slices_per_batch

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        sinogram = item["sinogram"]
        geometry = parsed_geometry(item["geometry"])
        if sinogram.ndim not in (3, 4) or tuple(sinogram.shape[-2:]) != geometry.sinogram_shape:
            raise ValueError(
                f"sinogram must be (1, V, D) or (1, S, V, D) with V, D = {geometry.sinogram_shape}, "
                f"got shape {tuple(sinogram.shape)}"
            )
        reconstruct = filtered_backprojection(geometry, self.window)
        self.denoiser.eval()
        device = next((parameter.device for parameter in self.denoiser.parameters()), sinogram.device)
        stack = sinogram.reshape(-1, *geometry.sinogram_shape)
        shape = (*sinogram.shape[:-2], *geometry.image_shape)

        def prior(noisy: Tensor) -> Tensor:
            return reconstruct(self.denoiser(noisy))

        for key, apply in (("fbp", reconstruct), ("prior", prior)):
            image = in_batches(apply, stack, self.slices_per_batch, device)
            item[key] = attenuation_to_hu(image).reshape(shape)
        return item
