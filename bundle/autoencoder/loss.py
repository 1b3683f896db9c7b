"""How far an image is from its distillation target, in values and in structure."""

from __future__ import annotations

from torch import Tensor, nn


class StructureLoss(nn.Module):
    """``mean|d| + gradient_weight (mean|Dx d| + mean|Dy d|)`` of ``d = (image - target) / scale_hu``.

    Dx and Dy are differences between neighbours along columns and rows. No unit; 0 for equal images.

    Args:
        gradient_weight: weight of the two gradient terms.
        scale_hu: HU of difference that count as 1.

    Raises:
        ValueError: ``gradient_weight`` is negative or ``scale_hu`` is not positive.

    Source: the image terms of EGenDiff's distillation loss (arXiv 2509.23885, Eq. 14); the weights are this project's.
    """

    def __init__(self, gradient_weight: float = 0.5, scale_hu: float = 100.0) -> None:
        super().__init__()
        if not gradient_weight >= 0:
            raise ValueError(f"gradient_weight must be zero or more, got {gradient_weight}")
        if not scale_hu > 0:
            raise ValueError(f"scale_hu must be positive, got {scale_hu}")
        self.gradient_weight = gradient_weight
        self.scale_hu = scale_hu

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """A scalar from two images ``(B, 1, H, W)`` in HU, each at least 2 x 2.

        Raises:
            ValueError: the shapes differ.
        """
        if image.shape != target.shape:
            raise ValueError(f"target must have the shape of image, {tuple(image.shape)}, got {tuple(target.shape)}")
        difference = (image - target) / self.scale_hu
        gradients = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        return difference.abs().mean() + self.gradient_weight * gradients
