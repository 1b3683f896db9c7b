"""The distillation loss of stage 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn


class DistillationLoss(nn.Module):
    """``image_loss(xtilde, xhat) + epsilon_weight * mean|aim - answer|^2``.

    xtilde is the refined image, xhat the prior it is distilled towards. Answer and aim are the denoiser's, at a random
    step: the noise if it predicts noise (``epsilon``), as in the paper, and the clean latent if it predicts that
    (``sample``). There the squared error of z_0 is the noise's times ``(1 - alpha_bar) / alpha_bar``: early, noisy
    steps weigh more than they do in the paper.

    Args:
        image_loss: a scalar from two images in HU.
        epsilon_weight: weight of the denoiser's own error, zero or more.

    Raises:
        ValueError: ``epsilon_weight`` is negative.

    Source: EGenDiff (arXiv 2509.23885), Eq. 14.
    """

    def __init__(self, image_loss: Callable[[Tensor, Tensor], Tensor], epsilon_weight: float = 0.1) -> None:
        super().__init__()
        if not epsilon_weight >= 0:
            raise ValueError(f"epsilon_weight must be zero or more, got {epsilon_weight}")
        self.image_loss = image_loss
        self.epsilon_weight = epsilon_weight

    def forward(self, refined: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """A scalar from what :class:`~bundle.diffusion.LatentRefiner` returns with a target, and that target in HU.

        Raises:
            ValueError: ``refined`` is an image alone: the refiner was called without a target.
        """
        if not isinstance(refined, Mapping):
            raise ValueError(
                "refined must hold image, prediction and prediction_target, got "
                f"{type(refined).__name__}: call the refiner with a target"
            )
        denoising = F.mse_loss(refined["prediction"], refined["prediction_target"])
        return self.image_loss(refined["image"], target) + self.epsilon_weight * denoising
