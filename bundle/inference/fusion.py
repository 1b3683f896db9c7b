"""How the low-dose image and its prior become one: pixel-wise self-correcting fusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers import separable_filtering
from torch import Tensor, nn

from .smoothing import gauss

# Shapes in this file: B batch, H W image. All images are in HU.

FUSION_MODES = ("adaptive", "updown", "fixed", "noise_match")

#: Above this a smoothed pixel counts as body, HU; as far from air as from water.
BODY_HU = -500.0

#: Of the noise scales that are this close to the best, in units of the noise's variance, the least is taken: the error
#: hardly knows them apart at the dose of calibration, and at higher doses raw data are worth more.
NOISE_TOLERANCE = 1e-3

#: Candidates for ``noise_scale``: half to sixteen times, in steps of a fifth.
NOISE_SCALES = tuple(2 ** (k / 4) for k in range(-4, 17))


class SelfCorrectingFusion(nn.Module):
    """Mix the low-dose image and the prior pixel by pixel: ``fused = lambda x_ld + (1 - lambda) xhat``.

    Where the low-dose image is noisier than at the reference dose, the prior gains weight; where it is cleaner, or
    where the prior shows an edge, the low-dose image does. With ``N`` the local noise of ``x_ld`` and ``N_25`` its
    value at the reference dose::

        N      = local std of (x_ld - box(x_ld)), both in a window of ``window_size`` pixels
        C_n    = 1 / (1 + (s N / N_25)^2)
        C_e    = clip((g - 2 g_25) / (p99(g) - 2 g_25), 0, 1),  g = |Sobel(gauss1(xhat))|
        lambda = clip(C_n + (1 - C_n) C_n C_e, 0, 1)

    ``N_25``, ``g_25`` and ``s`` are the buffers ``noise_25``, ``gradient_25`` (HU, HU/pixel; NaN until calibrated) and
    ``noise_scale``, measured by :meth:`calibrate` and stored in the state dict. In the paper ``s`` is 1: at the
    reference dose both images count the same. Where the prior is the better image, ``s`` above 1 says so. Gradients
    flow through both images, not through ``lambda``. Every image of a batch is treated alone.

    Args:
        mode: ``adaptive``, as above. ``updown``: one decision an image: above the reference dose (median ``N`` below
            ``N_25``) the low-dose image is favoured, below it the prior is, each with the weight
            ``c + (1 - c) c C_e``, ``c = 1 / (1 + min(N / N_25, N_25 / N)^2)``, which is .5 or more. ``fixed``:
            ``fixed_lambda`` everywhere. ``noise_match``: ``min(1, N_25 / N)``.
        fixed_lambda: weight of the low-dose image in the mode ``fixed``, 0 to 1.
        window_size: side of the noise window in pixels, odd.
        exclude_edges: leave the prior's edges (``C_e > 0``) out of ``N``. With False, as in the equations above, an
            edge of the anatomy counts as noise, which lowers ``lambda`` right where ``C_e`` should raise it. Calibrate
            with the value that is used.

    Raises:
        ValueError: an argument that cannot be.

    Source: EGenDiff, arXiv 2509.23885, Eqs. 17 and 18 (``updown``: its second version).
    """

    noise_25: Tensor
    gradient_25: Tensor
    noise_scale: Tensor

    def __init__(
        self, mode: str = "adaptive", fixed_lambda: float = 0.5, window_size: int = 7, exclude_edges: bool = False
    ) -> None:
        super().__init__()
        if mode not in FUSION_MODES:
            raise ValueError(f"mode must be one of {FUSION_MODES}, got {mode!r}")
        if not 0 <= fixed_lambda <= 1:
            raise ValueError(f"fixed_lambda must be between 0 and 1, got {fixed_lambda}")
        if window_size < 3 or window_size % 2 == 0:
            raise ValueError(f"window_size must be odd and at least 3 pixels, got {window_size}")
        self.mode = mode
        self.fixed_lambda = float(fixed_lambda)
        self.window_size = int(window_size)
        self.exclude_edges = bool(exclude_edges)
        self.register_buffer("noise_25", torch.tensor(float("nan")))
        self.register_buffer("gradient_25", torch.tensor(float("nan")))
        self.register_buffer("noise_scale", torch.tensor(1.0))

    def forward(self, low_dose_hu: Tensor, prior_hu: Tensor, detailed_hu: Tensor | None = None) -> Tensor:
        """Fuse ``(B, 1, H, W)`` and ``(B, 1, H, W)``, HU, to ``(B, 1, H, W)``, HU.

        ``detailed_hu`` takes the low-dose image's place in the mixture; the noise is still measured on the low-dose
        image. The output fusion of :class:`LowDoseRestorer` weighs the fused image against the refined one that way.
        """
        weight = self.weight(low_dose_hu, prior_hu)
        return weight * (low_dose_hu if detailed_hu is None else detailed_hu) + (1 - weight) * prior_hu

    @torch.no_grad()
    def weight(self, low_dose_hu: Tensor, prior_hu: Tensor) -> Tensor:
        """Weight of the low-dose image, ``lambda``, ``(B, 1, H, W)``, 0 to 1.

        Raises:
            ValueError: shapes that differ or are not ``(B, 1, H, W)``; not calibrated, where the mode needs it.
        """
        _check_pair(low_dose_hu, prior_hu)
        if self.mode == "fixed":
            return torch.full_like(low_dose_hu, self.fixed_lambda)
        noise = self.local_noise(low_dose_hu, prior_hu)
        noise_25 = self._calibrated("noise_25").to(noise)
        noise = noise * self.noise_scale.to(noise)
        if self.mode == "noise_match":
            return (noise_25 / noise.clamp_min(torch.finfo(noise.dtype).tiny)).clamp_max(1)
        edges = self._edge_confidence(prior_hu)
        ratio = noise / noise_25
        if self.mode == "adaptive":
            return _with_edges(1 / (1 + ratio**2), edges)
        body = self._body(low_dose_hu)
        medians = torch.stack([_median_over(n, b) for n, b in zip(noise, body)])
        above = (medians <= noise_25).view(-1, 1, 1, 1)
        favoured = _with_edges(1 / (1 + torch.minimum(ratio, 1 / ratio) ** 2), edges)
        return torch.where(above, favoured, 1 - favoured)

    @torch.no_grad()
    def calibrate(
        self,
        low_dose_hu: Tensor | Sequence[Tensor],
        prior_hu: Tensor | Sequence[Tensor],
        independent_hu: Tensor | Sequence[Tensor] | None = None,
        detailed_hu: Tensor | Sequence[Tensor] | None = None,
    ) -> SelfCorrectingFusion:
        """Measure ``noise_25`` and ``gradient_25`` on images of the reference dose (25 % in the paper).

        ``noise_25`` is the median of the local noise over the body pixels of all low-dose images; ``gradient_25`` the
        median of the gradient ``g`` over the body pixels of all priors: most of the body is flat, so this is the
        gradient that the noise left in the prior makes.

        With ``independent_hu``, images of the same slices whose noise is independent (the FBP of the photons that a
        thinning left over), ``noise_scale`` becomes the one whose fusion predicts them best (the least that is as good,
        see :data:`NOISE_TOLERANCE`): their noise adds the same to every candidate's error, so the least error is that
        of the best fusion, without any clean image. Every slice counts the same, its errors in units of its noise.
        Without, ``noise_scale`` is left as it is.

        Args:
            low_dose_hu: FBP of the noisy sinograms, ``(B, 1, H, W)``, or a sequence of such (shapes may differ).
            prior_hu: the prior of each, likewise.
            independent_hu: likewise.
            detailed_hu: what is fused in place of the low-dose images, likewise; None: they themselves.

        Returns:
            itself, calibrated.

        Raises:
            ValueError: no image, lists of unequal length, shapes that differ, no body in any image, no noise.
        """
        low_dose = [low_dose_hu] if isinstance(low_dose_hu, Tensor) else list(low_dose_hu)
        priors = [prior_hu] if isinstance(prior_hu, Tensor) else list(prior_hu)
        if not low_dose or len(low_dose) != len(priors):
            raise ValueError(
                f"calibrate needs as many priors as low-dose images, got {len(low_dose)} low_dose_hu, "
                f"{len(priors)} prior_hu"
            )
        for image, prior in zip(low_dose, priors):
            _check_pair(image, prior)
        bodies = [self._body(image) for image in low_dose]
        if not any(body.any() for body in bodies):
            raise ValueError(f"no body (above {BODY_HU:g} HU) in any of the {len(low_dose)} images of low_dose_hu")
        # The gradient first: it tells edges from noise, where the noise needs to know.
        gradient = torch.cat([_gradient(prior)[body] for prior, body in zip(priors, bodies)]).median()
        _check_measured("prior_hu", "a gradient in HU/pixel", gradient, zero=True)
        self.gradient_25.copy_(gradient)
        noises = [self.local_noise(image, prior) for image, prior in zip(low_dose, priors)]
        noise_25 = torch.cat([noise[body] for noise, body in zip(noises, bodies)]).median()
        _check_measured("low_dose_hu", "a noise in HU", noise_25, zero=False)
        self.noise_25.copy_(noise_25)
        if independent_hu is not None:
            others = [independent_hu] if isinstance(independent_hu, Tensor) else list(independent_hu)
            if len(others) != len(low_dose):
                raise ValueError(f"independent_hu must have {len(low_dose)} images, got {len(others)}")
            details = [detailed_hu] if isinstance(detailed_hu, Tensor) else list(detailed_hu or low_dose)
            if len(details) != len(low_dose):
                raise ValueError(f"detailed_hu must have {len(low_dose)} images, got {len(details)}")
            for image, other, detail in zip(low_dose, others, details):
                _check_pair(image, other)
                _check_pair(image, detail)
            errors = []
            for scale in NOISE_SCALES:
                self.noise_scale.fill_(scale)
                fused = [self(*images) for images in zip(low_dose, priors, details)]
                errors.append(sum(_error_in_noise(f, o, n, b) for f, o, n, b in zip(fused, others, noises, bodies)))
            enough = min(errors) + NOISE_TOLERANCE * sum(len(image) for image in low_dose)
            self.noise_scale.fill_(next(scale for scale, e in zip(NOISE_SCALES, errors) if e <= enough))
        return self

    @torch.no_grad()
    def local_noise(self, image_hu: Tensor, prior_hu: Tensor | None = None) -> Tensor:
        """Local noise ``N`` of ``(B, 1, H, W)``, HU: std in the window, of what the window's mean leaves.

        With ``exclude_edges`` the prior says which pixels of the window count; where less than a tenth of the window
        is left, the image's median stands in.
        """
        residual = image_hu - self._box(image_hu)
        if not self.exclude_edges or prior_hu is None:
            return (self._box(residual**2) - self._box(residual) ** 2).clamp_min(0).sqrt()
        flat = (self._edge_confidence(prior_hu) == 0).to(residual)
        share = self._box(flat)
        weight = 1 / share.clamp_min(1e-6)
        mean = self._box(flat * residual) * weight
        noise = (self._box(flat * residual**2) * weight - mean**2).clamp_min(0).sqrt()
        enough = share >= 0.1
        medians = [_median_over(n, e & b) for n, e, b in zip(noise, enough, self._body(image_hu))]
        return torch.where(enough, noise, torch.stack(medians).view(-1, 1, 1, 1))

    def extra_repr(self) -> str:
        return (
            f"mode={self.mode}, fixed_lambda={self.fixed_lambda}, window_size={self.window_size}, "
            f"exclude_edges={self.exclude_edges}"
        )

    def _box(self, image: Tensor) -> Tensor:
        kernel = image.new_full((self.window_size,), 1 / self.window_size)
        return separable_filtering(image, [kernel, kernel], mode="replicate")

    def _body(self, image_hu: Tensor) -> Tensor:
        return self._box(image_hu) > BODY_HU

    def _edge_confidence(self, prior_hu: Tensor) -> Tensor:
        gradient = _gradient(prior_hu)
        floor = 2 * self._calibrated("gradient_25").to(gradient)
        flat = gradient.flatten(1)
        # kthvalue, not quantile: torch.quantile refuses more than 2^24 values.
        rank = max(1, round(0.99 * int(flat.shape[1])))
        highest = flat.kthvalue(rank, dim=1).values.view(-1, 1, 1, 1)
        return ((gradient - floor) / (highest - floor).clamp_min(1e-6)).clamp(0, 1)

    def _calibrated(self, name: str) -> Tensor:
        value = getattr(self, name)
        # gradient_25 may be 0: a prior without any noise gates nothing.
        if not torch.isfinite(value) or value < 0 or (name == "noise_25" and value == 0):
            raise ValueError(
                f"{name} of the fusion is {value.item():g}: not calibrated. Load weights that hold it, call "
                "calibrate(low_dose_hu, prior_hu) on images of the reference dose, or use mode='fixed'"
            )
        return value


def _with_edges(confidence: Tensor, edges: Tensor) -> Tensor:
    return (confidence + (1 - confidence) * confidence * edges).clamp(0, 1)


def _gradient(image_hu: Tensor) -> Tensor:
    """Sobel gradient of the image smoothed by a Gaussian of 1 pixel, HU/pixel."""
    smooth, slope = image_hu.new_tensor([0.25, 0.5, 0.25]), image_hu.new_tensor([-0.5, 0.0, 0.5])
    smoothed = gauss(image_hu, 1.0)
    rows = separable_filtering(smoothed, [slope, smooth], mode="replicate")
    columns = separable_filtering(smoothed, [smooth, slope], mode="replicate")
    return torch.hypot(rows, columns)


def _median_over(values: Tensor, mask: Tensor) -> Tensor:
    return values[mask].median() if mask.any() else values.median()


def _error_in_noise(fused: Tensor, independent: Tensor, noise: Tensor, body: Tensor) -> float:
    """Sum over slices of the mean squared difference over the body, in units of the slice's median noise."""
    total = 0.0
    for image, other, level, where in zip(fused, independent, noise, body):
        if where.any():
            total += float(((image - other)[where] / level[where].median()).double().square().mean())
    return total


def _check_measured(name: str, what: str, value: Tensor, zero: bool) -> None:
    if not torch.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be finite and have {what}, got one of {value.item():g}")


def _check_pair(low_dose_hu: Tensor, prior_hu: Tensor) -> None:
    if low_dose_hu.ndim != 4 or low_dose_hu.shape[1] != 1 or low_dose_hu.shape != prior_hu.shape:
        raise ValueError(
            "low_dose_hu and prior_hu must both be (B, 1, H, W), "
            f"got {tuple(low_dose_hu.shape)} and {tuple(prior_hu.shape)}"
        )
