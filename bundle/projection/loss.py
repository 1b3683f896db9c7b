"""What the denoiser is taught with: the paper's similarity-masked loss (Eq. 9)."""

# Shapes in this file: B batch, h w views and cells of a sub-sinogram.

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict

from bundle.physics import noise_level


class SubPairTarget(TypedDict):
    """What the loss holds a prediction against; line integrals (B, 1, h, w), without gradient.

    ``input`` and ``target`` are two sub-sinograms of the noisy ``y``; ``denoised_input`` and ``denoised_target`` are
    those of ``f(y)`` under the same masks. ``incident_photons`` and ``electronic_variance`` of the target,
    (B, 1, 1, 1), are there where the scans say them.
    """

    input: Tensor
    target: Tensor
    denoised_input: Tensor
    denoised_target: Tensor
    incident_photons: NotRequired[Tensor]
    electronic_variance: NotRequired[Tensor]


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
        dose: fraction of the normal dose that ``y`` was taken with.
        electronic_variance: variance of the electronic noise, photons squared. It, photons and dose are asked only
            where the target does not say.
        ramp_weight: weight of a third term, :func:`ramp_power` of the (standardised) residual: what the ramp filter of
            the reconstruction makes of it. 0: none, as in the paper.
        standardise: divide both residuals by the local standard deviation, so that thin rays, which are quiet, count
            as much as thick ones. Needs the noise model.

    Raises:
        ValueError: a negative ``alpha``, ``electronic_variance`` or ``ramp_weight``; ``tau``, ``photons`` or ``dose``
            not positive; ``standardise`` without ``photons``.

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
        ramp_weight: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("tau", tau), ("photons", photons), ("dose", dose)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value}")
        for name, value in (
            ("alpha", alpha),
            ("electronic_variance", electronic_variance),
            ("ramp_weight", ramp_weight),
        ):
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
        self.ramp_weight = float(ramp_weight)

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
        sigma = self.noise_level(prediction, target.get("incident_photons"), target.get("electronic_variance"))
        residual = prediction - target["target"]
        denoised = target["denoised_input"] - target["denoised_target"]
        if self.tau is not None:
            limit = self.tau if sigma is None else self.tau * math.sqrt(2) * sigma
            residual = residual * _similarity(target["input"] - target["target"], limit)
            denoised = denoised * _similarity(denoised, limit)
        consistency = residual - denoised
        if self.standardise:
            residual, consistency = residual / sigma, consistency / sigma
        loss = residual.square().mean() + self.alpha * consistency.square().mean()
        return loss + self.ramp_weight * ramp_power(residual) if self.ramp_weight else loss

    def noise_level(
        self,
        prediction: Tensor,
        incident_photons: float | Tensor | None = None,
        electronic_variance: float | Tensor | None = None,
    ) -> Tensor | None:
        """Standard deviation of the noise in ``y`` where the line integrals are ``prediction``; None without a model.

        ``incident_photons`` and ``electronic_variance`` of the scan win over those of the loss. Without gradient.
        """
        if self.photons is None:
            return None
        return noise_level(
            prediction,
            self.photons * self.dose if incident_photons is None else incident_photons,
            electronic_variance=self.electronic_variance if electronic_variance is None else electronic_variance,
        )


def ramp_power(residual: Tensor) -> Tensor:
    """Mean power of a residual (B, 1, V, D) behind the square root of the ramp filter along the cells, a scalar.

    The error that a sinogram's error makes in the reconstructed image has the ramp as its weight, by Parseval's theorem
    and the Fourier slice theorem: broad errors hardly matter there, sharp ones do. White noise keeps its power. Cells
    outside count as zero.
    """
    cells = residual.shape[-1]
    spectrum = torch.fft.rfft(residual.float(), n=2 * cells, dim=-1).abs().square()
    frequency = torch.arange(cells + 1, device=residual.device) / cells
    # Both signs of every frequency but the first and the last; the mean of the ramp is one half.
    both = torch.full_like(frequency, 2.0)
    both[0] = both[-1] = 1.0
    return (spectrum * (2 * frequency * both)).sum(-1).mean() / (2 * cells * cells)


def _similarity(difference: Tensor, limit: float | Tensor) -> Tensor:
    """``1 - e``: 1 for equal neighbours, 0 where they differ by ``limit`` or more."""
    return 1 - (difference.abs() / limit).clamp(max=1)
