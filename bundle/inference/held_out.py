"""Fusion that every scan calibrates by itself: a part of its photons is held out and judges the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from scipy.optimize import lsq_linear
from torch import Tensor, nn

from bundle.physics import thin_line_integrals

from .bone import bone_contours, bone_level
from .collaborative import collaborative_wiener
from .nonlocal_means import guided_nonlocal_means
from .smoothing import gauss, slope
from .wiener import local_wiener

# Shapes in this file: B batch, V views, D detector cells, H W image, K terms. All images are in HU.

#: Where: at edges so steep that noise hardly matters beside blur, at other edges, in flat places of the patient, in
#: flat air.
PLACES = ("steep", "edge", "flat", "air")

#: What is added to the refined image whatever the strengths, in each place with its own weight. ``fused - refined`` is
#: what the refiner took away, coarse and fine (parted by a Gaussian of :data:`COARSE` pixels); ``x_ld - fused`` is what
#: is left in the raw data.
PARTS = ("coarse", "fine", "raw")

#: Standard deviation of the Gaussian that parts coarse from fine, pixels.
COARSE = 1.5

#: Gradient of the refined image that counts half as an edge, and half as a steep one, HU/pixel.
EDGE_GRADIENT = 15.0
STEEP_GRADIENT = 50.0

#: What is below counts as air, HU: nothing faint is to be lost there. Lung is above. The second: how gradually.
AIR_HU = -950.0
AIR_SOFTNESS = 10.0

#: Fewer pixels of the patient than these can't judge.
LEAST_PIXELS = 3000

#: Noise below counts as this much, HU: no pixel may decide alone.
LEAST_NOISE = 5.0

#: Precision of the weights before any pixel is seen (their standard deviation is 1).
WEIGHT_PRECISION = 1.0

#: Width of the Gaussian mean that is the fused image's, pixels.
LEVEL_WIDTH = 8.0

#: Width of the Gaussian over which the noise that stage 1 took away is measured for the guide, pixels; its least, HU.
GUIDE_WIDTH = 6.0
LEAST_GUIDE_NOISE = 3.0


class Candidates(NamedTuple):
    """What one scan, or a part of its photons, became; each ``(B, 1, H, W)`` in HU.

    Args:
        low_dose: backprojection, ``x_ld``.
        prior: that of stage 1, ``xhat``.
        fused: the two, fused.
        refined: by stages 2 and 3.
        noise: a realisation of the noise of ``low_dose``, from photons alone (:meth:`HeldOutFusion.noise`).
    """

    low_dose: Tensor
    prior: Tensor
    fused: Tensor
    refined: Tensor
    noise: Tensor


class Term(NamedTuple):
    """What is mixed in, and where: ``place`` is one of :data:`PLACES`."""

    part: str
    place: str


class HeldOutFusion(nn.Module):
    """Mix raw, fused, refined and filtered images with the weights that predict photons best which none has seen::

        restored = refined + sum_k w_k t_k,    w = argmin sum_pixels ((refined' + sum_k w_k t'_k - o) / N)^2

    The photons of the scan are parted (:func:`bundle.physics.thin_line_integrals`); the whole pipeline restores the
    larger part (primes), the FBP of the other is ``o``, with local noise ``N``. Its noise is independent, so the least
    squares find what is true of the patient: where the refiner smooths detail away, detail comes back; where it is
    right, nothing does. Away from steep edges no weight is negative: detail is brought back or left out, never taken
    away twice. At steep edges only the raw data's is bound so: there the refined image is the sharper one, and what is
    to be taken away is the blur of the fused image. No clean image, no training, no calibration on other scans.

    The Gaussian mean of :data:`LEVEL_WIDTH` pixels is that of the fused image: what is that broad is HU, and no detail.
    Bone is narrower, and stage 1 blurs it: along its contours it is as sharp as the raw data (:func:`bone_contours`),
    and inside it its level is theirs (:func:`bone_level`).

    What the squares are blind to is a single faint lesion: it has too few pixels to be worth its noise. So in flat
    places of the patient ``least_detail`` of what the refiner took away stays, whatever they say; an observer finds it
    there. More of it is coarse than fine: a faint lesion has its contrast there, and an image little of its noise.
    Edges and air, where nothing is faint, are free of it.

    The terms ``t_k`` are named by :attr:`terms`, each taken at steep edges, at other edges, in flat places of the
    patient and in air alone, what is broad by itself and what is fine: what the refiner took away; what is left in the
    raw data; and, each less the refined image, three filters of the raw data. Non-local means
    (:func:`guided_nonlocal_means`) find what repeats in the patient, in slices above and below, too;
    :func:`collaborative_wiener` finds what alike patches share, there as well; :func:`local_wiener` lets through what
    stands out of the noise of its place and direction. All take the refined image as a guide alone, so they find in the
    raw data what no network has seen in training.

    All this restores what the backprojection of this scan would show without noise, with the blur, the ringing and the
    aliasing of its cells and its filter: those are the same in every part of the photons, and held-out photons take
    them for the patient. :meth:`of_object` takes them out, too.

    Args:
        fraction: share of the photons that the weights are measured with; the rest judges.
        seed: of the parting.
        strengths: of the non-local means, in units of the local noise of ``x_ld``; none: no such terms.
        patch_size: of the non-local means, pixels.
        radius: of their search, pixels.
        least_detail: least weights of what the refiner took away from flat places, coarse and fine, 0 to 1; two zeros
            make the squares least.
        wiener_strengths: of the local Wiener filter, what the noise counts by there; none: no such terms.
        group_strengths: likewise of the collaborative one.

    Raises:
        ValueError: ``fraction`` not inside (0, 1), a strength that is not positive, ``least_detail`` not two numbers in
            [0, 1].

    Source: this project's. Cross-validation by independent photons after Neufeld et al., Data thinning, JMLR 25, 2024;
    weights of predictors by non-negative least squares after Breiman, Stacked regressions, Machine Learning 24, 1996.
    """

    def __init__(
        self,
        fraction: float = 0.8,
        seed: int = 0,
        strengths: Sequence[float] = (0.15, 0.5, 1.5),
        patch_size: int = 5,
        radius: int = 7,
        least_detail: Sequence[float] = (0.8, 0.2),
        wiener_strengths: Sequence[float] = (0.1, 1.0),
        group_strengths: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
        filters = {"strengths": strengths, "wiener_strengths": wiener_strengths, "group_strengths": group_strengths}
        for name, values in filters.items():
            if not all(math.isfinite(strength) and strength > 0 for strength in values):
                raise ValueError(f"{name} must be positive, got {tuple(values)}")
        if not (
            isinstance(least_detail, Sequence)
            and len(least_detail) == 2
            and all(0 <= least <= 1 for least in least_detail)
        ):
            raise ValueError(f"least_detail must be two numbers between 0 and 1, coarse and fine, got {least_detail}")
        self.fraction = float(fraction)
        self.seed = int(seed)
        self.strengths = tuple(float(strength) for strength in strengths)
        self.patch_size = int(patch_size)
        self.radius = int(radius)
        self.least_detail = tuple(float(least) for least in least_detail)
        self.wiener_strengths = tuple(float(strength) for strength in wiener_strengths)
        self.group_strengths = tuple(float(strength) for strength in group_strengths)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms in the order of their weights."""
        filters = [f"alike {strength:g}" for strength in self.strengths]
        filters += [f"wiener {strength:g}" for strength in self.wiener_strengths]
        filters += [f"group {strength:g}" for strength in self.group_strengths]
        parts = (*PARTS, *(f"{name} {size}" for name in filters for size in PARTS[:2]))
        return tuple(Term(part, place) for part in parts for place in PLACES)

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

    def noise(self, part: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor]:
        """Realisations of the noise of all photons and of the larger part: nothing of the patient is in them.

        ``part`` and ``held_out`` are the backprojections of the parts, ``(B, 1, H, W)`` in HU. Their noise is
        independent, with variances as the inverse of their shares; that of their difference is the sum.
        """
        difference = part - held_out
        return difference * math.sqrt(self.fraction * (1 - self.fraction)), difference * math.sqrt(1 - self.fraction)

    @torch.no_grad()
    def weights(self, part: Candidates, held_out: Tensor, around: Sequence[Candidates] = ()) -> Tensor:
        """Weights ``(B, K)`` from the larger part's candidates and the FBP of the other, ``(B, 1, H, W)``.

        ``around`` holds the same part of the slices above, and of those below.
        """
        return self._fitted(part.refined, self._terms(part, around), held_out, self._bounds())

    @torch.no_grad()
    def forward(self, whole: Candidates, weights: Tensor, around: Sequence[Candidates] = ()) -> Tensor:
        """The restored image ``(B, 1, H, W)`` of all photons, with weights ``(B, K)``."""
        return _mixed(whole, self._terms(whole, around), weights)

    @torch.no_grad()
    def of_object(
        self,
        whole: Candidates,
        part: Candidates,
        held_out: Tensor,
        reproject: Callable[[Tensor], Tensor],
        around: tuple[Sequence[Candidates], Sequence[Candidates]] = ((), ()),
    ) -> Tensor:
        """The object instead of its backprojection: the error of the backprojection is taken out, to first order.

        What the backprojection makes of the restored image, less that image, is nearly what it made of the object, less
        the object. The judge is relieved of it, and it is one more term, whose one weight for all places the relieved
        judge finds::

            e = B A x - x,    restored = refined + sum_k w_k t_k - w e,    judge: o - e'

        Once: what backprojection took away altogether does not come back by doing it again, and noise would.

        Args:
            whole: candidates of all photons.
            part: those of the larger part.
            held_out: backprojection of the other, ``(B, 1, H, W)``.
            reproject: ``B A``, an image ``(B, 1, H, W)`` projected and backprojected without noise, all in HU.
            around: slices above and below of ``whole``, and of ``part``.

        Source: this project's; one step of van Cittert, Z. Phys. 69, 1931, with a judge for the length of the step.
        """
        terms, judged = (self._terms(*pair) for pair in zip((whole, part), around))
        weights = self._fitted(part.refined, judged, held_out, self._bounds())
        error, judged_error = (
            reproject(image) - image for image in (_mixed(whole, terms, weights), _mixed(part, judged, weights))
        )
        # A whole step where too little is seen to judge it.
        weights = self._fitted(
            part.refined, torch.cat([judged, -judged_error], 1), held_out - judged_error, [*self._bounds(), 0.0], 1.0
        )
        # Bone is as the raw data have it, relieved likewise.
        relieved = whole._replace(low_dose=whole.low_dose - weights[:, -1:, None, None] * error)
        return _mixed(relieved, torch.cat([terms, -error], 1), weights)

    def _fitted(
        self, refined: Tensor, terms: Tensor, held_out: Tensor, bounds: Sequence[float], *unjudged: float
    ) -> Tensor:
        """Weights ``(B, K)`` of ``terms`` ``(B, K, H, W)``, none below its bound.

        Where there is too little to judge they are those bounds, or zero; ``unjudged`` are those of the last terms.
        """
        # Few counts shift the judge as a whole; a constant in each place takes that up, and is not applied.
        designs = torch.cat([terms, _places(refined)], dim=1)
        least = torch.tensor(bounds)
        unseen = torch.cat([least[: len(least) - len(unjudged)].clamp_min(0), torch.tensor(unjudged)])
        free = torch.cat([least, torch.full((len(PLACES),), -math.inf)])
        body = (gauss(refined, 3.0) > AIR_HU).sum((1, 2, 3))
        smooth = gauss(held_out, 3.0)
        noise = gauss((held_out - smooth) ** 2, 3.0).sqrt().clamp_min(LEAST_NOISE)
        weights = []
        for index in range(len(held_out)):
            if int(body[index]) < LEAST_PIXELS:
                weights.append(unseen.to(held_out))
                continue
            scale = 1 / noise[index].flatten().double()
            design = designs[index].flatten(1).double() * scale
            aim = (held_out - refined)[index].flatten().double() * scale
            weights.append(_least_squares(design, aim, free)[: len(least)].to(held_out))
        return torch.stack(weights)

    def _bounds(self) -> list[float]:
        return [self._least_weight(term) for term in self.terms]

    def extra_repr(self) -> str:
        return (
            f"fraction={self.fraction}, seed={self.seed}, strengths={self.strengths}, patch_size={self.patch_size}, "
            f"radius={self.radius}, least_detail={self.least_detail}, wiener_strengths={self.wiener_strengths}, "
            f"group_strengths={self.group_strengths}"
        )

    def _least_weight(self, term: Term) -> float:
        if term.place == "steep" and term.part != "raw":
            return -math.inf
        if term.place != "flat":
            return 0.0
        return dict(zip(PARTS, self.least_detail)).get(term.part, 0.0)

    def _terms(self, candidates: Candidates, around: Sequence[Candidates] = ()) -> Tensor:
        """The terms, ``(B, K, H, W)``."""
        low_dose, prior, fused, refined, photon_noise = candidates
        parts = [*_coarse_and_fine(fused - refined), low_dose - fused]
        if self.strengths:
            noise = gauss((low_dose - prior) ** 2, GUIDE_WIDTH).sqrt().clamp_min(LEAST_GUIDE_NOISE)
            means = guided_nonlocal_means(
                low_dose,
                refined / noise,
                self.strengths,
                self.patch_size,
                self.radius,
                [(other.low_dose, other.refined / noise) for other in around],
            )
            parts += [part for mean in means for part in _coarse_and_fine(mean - refined)]
        if self.wiener_strengths:
            filtered = local_wiener(low_dose - refined, refined, low_dose - prior, self.wiener_strengths)
            parts += [part for image in filtered for part in _coarse_and_fine(image)]
        pairs = [(other.low_dose, other.refined) for other in around]
        for strength in self.group_strengths:
            grouped = collaborative_wiener(low_dose, refined, photon_noise, strength, around=pairs)
            parts += _coarse_and_fine(grouped - refined)
        places = _places(refined)
        return torch.cat([part * places for part in parts], dim=1)


def _mixed(candidates: Candidates, terms: Tensor, weights: Tensor) -> Tensor:
    mixed = candidates.refined + (weights[:, :, None, None] * terms).sum(1, keepdim=True)
    # A weight that ends where its place does shifts the level: what sharpens a vessel is cut off around it.
    mixed = mixed + gauss(candidates.fused - mixed, LEVEL_WIDTH)
    mixed = mixed + bone_contours(candidates.low_dose - mixed, candidates.refined, candidates.noise)
    return mixed + bone_level(candidates.low_dose - mixed, candidates.refined)


def _coarse_and_fine(image: Tensor) -> tuple[Tensor, Tensor]:
    coarse = gauss(image, COARSE)
    return coarse, image - coarse


def _places(refined: Tensor) -> Tensor:
    """How much each pixel belongs to each of :data:`PLACES`, ``(B, 4, H, W)``, summing to 1."""
    gradient = slope(refined)
    edge = gradient / (gradient + EDGE_GRADIENT)
    steep = gradient**2 / (gradient**2 + STEEP_GRADIENT**2)
    air = torch.sigmoid((AIR_HU - gauss(refined, 3.0)) / AIR_SOFTNESS)
    flat = (1 - steep) * (1 - edge)
    return torch.cat([steep, (1 - steep) * edge, flat * (1 - air), flat * air], dim=1)


def _least_squares(design: Tensor, aim: Tensor, least: Tensor) -> Tensor:
    """Weights of the rows of ``(K, N)`` that sum to ``(N,)`` best, none below ``least`` ``(K,)``."""
    gram, right = design @ design.T, design @ aim
    # A term that is hardly there gets no weight instead of any.
    ridge = 1e-3 * gram.diagonal() + WEIGHT_PRECISION
    # A square root of K rows has the same least squares as all pixels.
    root = torch.linalg.cholesky(gram + torch.diag(ridge), upper=True)
    point = torch.linalg.solve_triangular(root.T, right[:, None], upper=False)[:, 0]
    found = lsq_linear(root.cpu().numpy(), point.cpu().numpy(), (least.cpu().numpy(), math.inf), method="bvls")
    return torch.from_numpy(found.x)
