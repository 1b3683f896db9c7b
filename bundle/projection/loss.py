"""What the denoiser is taught with: the paper's similarity-masked loss (Eq. 9)."""

# Shapes in this file: B batch, h w views and cells of a sub-sinogram.

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict

from bundle.physics import line_integral_variance


class SubPairTarget(TypedDict):
    """What the loss holds a prediction against; line integrals (B, 1, h, w), without gradient.

    ``input`` and ``target`` are two sub-sinograms of the noisy ``y``; ``denoised_input`` and ``denoised_target`` are
    those of ``f(y)`` under the same masks. ``dose``, (B, 1, 1, 1), is there where the items of a batch differ in it.
    """

    input: Tensor
    target: Tensor
    denoised_input: Tensor
    denoised_target: Tensor
    dose: NotRequired[Tensor]


_SUB_SINOGRAMS = ("input", "target", "denoised_input", "denoised_target")


class SimilarityLoss(nn.Module):
    """Neighbours teach each other, except where they differ::

        r = (f(s1 y) - s2 y)(1 - e1)
        L = mean(r^2) + alpha mean((r - (s1 f(y) - s2 f(y))(1 - e2))^2)
        e1 = clip(|s1 y - s2 y| / tau, 0, 1),   e2 = clip(|s1 f(y) - s2 f(y)| / tau, 0, 1)

    ``s1 y`` is the input and ``s2 y`` the target sub-sinogram. Without ``tau`` there is no mask (e = 0), and the loss
    is Neighbor2Neighbor's.

    With a noise model (``photons`` given), ``tau`` counts standard deviations of the noise in a difference of two
    samples, so that one number suits thin and thick rays. ``e1`` sees the target's own noise: where that happens to
    lie close to the input's, the pair weighs more, and ``f`` learns to keep a part of the input's noise. That part
    falls as 1 / tau and is small from ``tau = 20`` on. The noise level itself is taken at the prediction, which knows
    the input only: weights that know the target would pull ``f`` towards the values they favour.

    Args:
        alpha: weight of the second term; may be set anew at any time (:class:`bundle.projection.AlphaRamp` does).
        tau: difference from which on a pair is left out; ``None`` for no mask. In standard deviations with a noise
            model, in line integrals without.
        photons: incident photons a ray at normal dose; ``None`` for no noise model.
        dose: fraction of the normal dose that ``y`` was taken with, where the target does not say.
        electronic_variance: variance of the electronic noise, photons squared.
        standardise: divide both residuals by the local standard deviation, so that thin rays, which are quiet, count
            as much as thick ones. Needs the noise model.

    Raises:
        ValueError: a negative ``alpha`` or ``electronic_variance``; ``tau``, ``photons`` or ``dose`` not positive;
            ``standardise`` without ``photons``.

    Source: EGenDiff, arXiv 2509.23885, Eq. 9; Neighbor2Neighbor, CVPR 2021, Eq. 10. The form of e and the noise model
    are this project's.
    """

    def __init__(
        self,
        alpha: float = 1.5,
        tau: float | None = 20.0,
        photons: float | None = 1.5e5,
        dose: float = 0.25,
        electronic_variance: float = 10.0,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("tau", tau), ("photons", photons), ("dose", dose)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value}")
        for name, value in (("alpha", alpha), ("electronic_variance", electronic_variance)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be zero or more, got {value}")
        if standardise and photons is None:
            raise ValueError("standardise needs a noise model: give photons, got None")
        self.alpha = float(alpha)
        self.tau = tau
        self.photons = photons
        self.dose = dose
        self.electronic_variance = electronic_variance
        self.standardise = standardise

    def forward(self, prediction: Tensor, target: SubPairTarget) -> Tensor:
        """Mean loss of ``f(s1 y)``, (B, 1, h, w), against what :class:`SubPairTarget` holds.

        Raises:
            ValueError: a tensor of ``target`` is missing or not shaped as the prediction.
        """
        for name in _SUB_SINOGRAMS:
            shape = tuple(target[name].shape) if name in target else None  # type: ignore[literal-required]
            if shape != tuple(prediction.shape):
                raise ValueError(
                    f"target[{name!r}] must be shaped as the prediction {tuple(prediction.shape)}, got {shape}"
                )
        sigma = self.noise_level(prediction, target.get("dose"))
        residual = prediction - target["target"]
        denoised = target["denoised_input"] - target["denoised_target"]
        if self.tau is not None:
            limit = self.tau if sigma is None else self.tau * math.sqrt(2) * sigma
            residual = residual * _similarity(target["input"] - target["target"], limit)
            denoised = denoised * _similarity(denoised, limit)
        consistency = residual - denoised
        if self.standardise:
            residual, consistency = residual / sigma, consistency / sigma
        return residual.square().mean() + self.alpha * consistency.square().mean()

    def noise_level(self, prediction: Tensor, dose: float | Tensor | None = None) -> Tensor | None:
        """Standard deviation of the noise in ``y`` where the line integrals are ``prediction``; None without a model.

        Never below one photon's worth of signal, and without gradient.
        """
        if self.photons is None:
            return None
        dose = self.dose if dose is None else dose
        # A ray of less than one photon on average tells nothing; this also bounds the exponential.
        starved = torch.as_tensor(self.photons * dose).to(prediction).log().clamp_min(0)
        return line_integral_variance(
            torch.minimum(prediction.detach(), starved),
            self.photons,
            dose=dose,
            electronic_variance=self.electronic_variance,
        ).sqrt()


def _similarity(difference: Tensor, limit: float | Tensor) -> Tensor:
    """``1 - e``: 1 for equal neighbours, 0 where they differ by ``limit`` or more."""
    return 1 - (difference.abs() / limit).clamp(max=1)
