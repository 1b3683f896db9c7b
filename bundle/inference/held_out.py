"""Fusion that every scan calibrates by itself: a part of its photons is held out and judges the rest."""

from __future__ import annotations

from typing import NamedTuple

import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor, nn

from bundle.physics import thin_line_integrals

# Shapes in this file: B batch, V views, D detector cells, H W image, K terms. All images are in HU.

#: Where: at edges so steep that noise hardly matters beside blur, at other edges, in flat places.
PLACES = ("steep", "edge", "flat")

#: What is added to the refined image, each in each place with its own weight. ``fused - refined`` is what the refiner
#: took away, coarse and fine (parted by a Gaussian of :data:`COARSE` pixels); ``x_ld - fused`` what is left in the raw
#: data.
TERMS = tuple(f"{part} {place}" for part in ("coarse", "fine", "raw") for place in PLACES)

#: Standard deviation of the Gaussian that parts coarse from fine, pixels.
COARSE = 1.5

#: Gradient of the refined image that counts half as an edge, and half as a steep one, HU/pixel.
EDGE_GRADIENT = 15.0
STEEP_GRADIENT = 50.0

#: Body, HU: where weights are measured. Lung counts; the air around the patient has nothing to tell.
BODY_HU = -950.0

#: Noise below counts as this much, HU: no pixel may decide alone.
LEAST_NOISE = 5.0


class Candidates(NamedTuple):
    """What one scan, or a part of its photons, became; each ``(B, 1, H, W)`` in HU."""

    low_dose: Tensor
    fused: Tensor
    refined: Tensor


class HeldOutFusion(nn.Module):
    """Mix raw, fused and refined image with the weights that predict photons best which none of them has seen::

        restored = refined + sum_k w_k t_k,    w = argmin sum_pixels ((refined' + sum_k w_k t'_k - o) / N)^2

    The photons of the scan are parted (:func:`bundle.physics.thin_line_integrals`); the whole pipeline restores the
    larger part (primes), the FBP of the other is ``o``, with local noise ``N``. Its noise is independent, so the least
    squares find what is true of the patient: where the refiner smooths detail away, detail comes back; where it is
    right, nothing does. No clean image, no training, no calibration on other scans. The terms ``t_k`` are
    :data:`TERMS`. Raw data never count negatively.

    Args:
        fraction: share of the photons that the weights are measured with; the rest judges.
        seed: of the parting.

    Raises:
        ValueError: ``fraction`` not inside (0, 1).

    Source: this project's. Cross-validation by independent photons after Neufeld et al., Data thinning, JMLR 25, 2024;
    weights of predictors by least squares after Breiman, Stacked regressions, Machine Learning 24, 1996.
    """

    def __init__(self, fraction: float = 0.8, seed: int = 0) -> None:
        super().__init__()
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
        self.fraction = float(fraction)
        self.seed = int(seed)

    def part(
        self, sinogram: Tensor, incident_photons: float, electronic_variance: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """The sinogram of ``fraction`` of the photons and that of the rest, each ``(B, 1, V, D)``.

        Every slice is parted alike whatever batch it comes in.
        """
        parts = []
        for slice_ in sinogram.split(1):
            # Drawn on the CPU: a CUDA generator would part differently for the same seed.
            generator = torch.Generator().manual_seed(self.seed)
            parts.append(
                thin_line_integrals(
                    slice_.cpu(),
                    incident_photons,
                    self.fraction,
                    electronic_variance=electronic_variance,
                    generator=generator,
                )
            )
        kept, held_out = (torch.cat(column).to(sinogram.device) for column in zip(*parts))
        return kept, held_out

    @torch.no_grad()
    def weights(self, part: Candidates, held_out: Tensor) -> Tensor:
        """Weights ``(B, K)`` from the larger part's candidates and the FBP of the other, ``(B, 1, H, W)``."""
        # Few counts shift the judge as a whole; a constant in each place takes that up, and is not applied.
        terms = torch.cat([_terms(part), _places(part.refined)], dim=1)
        body = _gauss(part.refined, 3.0) > BODY_HU
        smooth = _gauss(held_out, 3.0)
        noise = _gauss((held_out - smooth) ** 2, 3.0).sqrt().clamp_min(LEAST_NOISE)
        weights = []
        for index in range(len(held_out)):
            inside = body[index, 0]
            if int(inside.sum()) < 100 * len(TERMS):
                weights.append(held_out.new_zeros(len(TERMS)))
                continue
            scale = 1 / noise[index, 0][inside].double()
            design = terms[index][:, inside].double() * scale
            aim = (held_out - part.refined)[index, 0][inside].double() * scale
            weights.append(_least_squares(design, aim)[: len(TERMS)].to(held_out))
        return torch.stack(weights)

    @torch.no_grad()
    def forward(self, whole: Candidates, weights: Tensor) -> Tensor:
        """The restored image ``(B, 1, H, W)`` of all photons, with weights ``(B, K)``."""
        return whole.refined + (weights[:, :, None, None] * _terms(whole)).sum(1, keepdim=True)

    def extra_repr(self) -> str:
        return f"fraction={self.fraction}, seed={self.seed}"


def _terms(candidates: Candidates) -> Tensor:
    """The terms, ``(B, K, H, W)``."""
    removed = candidates.fused - candidates.refined
    coarse = _gauss(removed, COARSE)
    raw = candidates.low_dose - candidates.fused
    places = _places(candidates.refined)
    return torch.cat([part * places for part in (coarse, removed - coarse, raw)], dim=1)


def _places(refined: Tensor) -> Tensor:
    """How much each pixel belongs to each of :data:`PLACES`, ``(B, 3, H, W)``, summing to 1."""
    rows, columns = torch.gradient(_gauss(refined, 1.0), dim=(2, 3))
    gradient = torch.hypot(rows, columns)
    edge = gradient / (gradient + EDGE_GRADIENT)
    steep = gradient**2 / (gradient**2 + STEEP_GRADIENT**2)
    return torch.cat([steep, (1 - steep) * edge, (1 - steep) * (1 - edge)], dim=1)


def _least_squares(design: Tensor, aim: Tensor) -> Tensor:
    """Weights of the rows of ``(K, N)`` that sum to ``(N,)`` best; those of raw data zero or more."""
    gram, right = design @ design.T, design @ aim
    # Terms that are not there (a pipeline without a fusion, say) get no weight instead of any.
    ridge = 1e-3 * gram.diagonal() + 1e-12 * gram.diagonal().sum() + 1e-12
    free = list(range(len(gram)))
    raw = {index for index, name in enumerate(TERMS) if name.startswith("raw")}
    while True:
        solution = torch.linalg.solve((gram + torch.diag(ridge))[free][:, free], right[free])
        negative = [index for index, value in zip(free, solution.tolist()) if index in raw and value < 0]
        if not negative:
            break
        free = [index for index in free if index not in negative]
    weights = gram.new_zeros(len(gram))
    weights[free] = solution
    return weights


def _gauss(image: Tensor, sigma: float) -> Tensor:
    kernel = gaussian_1d(torch.tensor(sigma), truncated=3.0, normalize=True).to(image)
    return separable_filtering(image, [kernel, kernel], mode="replicate")
