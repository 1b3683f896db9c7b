"""How stage 1 meets MONAI's engines: what a step sees, how a validation image is made, how alpha grows."""

# Shapes in this file: B batch, H W image, V views, D detector cells.

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import PrepareBatch
from monai.inferers import Inferer
from monai.utils import CommonKeys, convert_to_tensor
from torch import Tensor

from bundle.physics import (
    FanBeamGeometry,
    FilteredBackprojection,
    attenuation_to_hu,
    check_fractions,
    expected_log_bias,
    log_bias,
    thin_line_integrals,
)

from .loss import SimilarityLoss, SubPairTarget
from .sampler import ContextualSubsampler


class PrepareSubPair(PrepareBatch):
    """Turn a batch of noisy sinograms into input and target of stage 1; nothing but sinograms and doses is read.

    Args:
        sampler: draws the masks, anew for every batch.
        denoiser: ``f``, the network in training; ``f(y)`` is computed without gradient.
        key: entry of the batch that holds the noisy line integrals (B, 1, V, D).
        dose_key: entry that holds each item's dose (B), if there is one; the loss uses it.
    """

    def __init__(
        self,
        sampler: ContextualSubsampler,
        denoiser: Callable[[Tensor], Tensor],
        key: str = "sinogram",
        dose_key: str = "dose",
    ) -> None:
        self.sampler = sampler
        self.denoiser = denoiser
        self.key = key
        self.dose_key = dose_key

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, SubPairTarget]:
        """``s1 y`` and what the loss needs beside it.

        Raises:
            ValueError: the batch has no sinogram, or it is not (B, 1, V, D).
        """
        sinogram = _sinogram(batchdata, self.key, device, non_blocking, **kwargs)
        plan = self.sampler(sinogram)
        sub_input, sub_target = plan(sinogram)
        with torch.no_grad():
            denoised_input, denoised_target = plan(self.denoiser(sinogram))
        target = SubPairTarget(
            input=sub_input, target=sub_target, denoised_input=denoised_input, denoised_target=denoised_target
        )
        if self.dose_key in batchdata:
            target["dose"] = torch.as_tensor(batchdata[self.dose_key]).to(sinogram).reshape(-1, 1, 1, 1)
        return sub_input, target


class PrepareThinnedPair(PrepareBatch):
    """Turn a batch of noisy sinograms into input and target of independent photons, both at full resolution.

    The photons of each sinogram are parted at random (:func:`bundle.physics.thin_line_integrals`), anew for every
    batch: what the network learns from the target cannot be the noise of its input. No neighbour stands in for a ray,
    so no edge is blurred and no mask is needed: ``tau`` of the loss is null. The logarithm of few counts is biased,
    and more so in the part with fewer; the target is given the bias of the input, as the prediction tells it, so that
    the network learns the mean of scans of the dose that it is shown.

    Args:
        denoiser: ``f``, the network in training; it is run without gradient to tell the biases.
        photons: incident photons a ray at normal dose.
        dose: fraction of the normal dose, where the batch does not say.
        electronic_variance: of the detector, photons squared.
        fractions: least and greatest share of the photons that the input is given, drawn log-uniformly.
        key: entry of the batch that holds the noisy line integrals (B, 1, V, D).
        dose_key: entry that holds each item's dose (B), if there is one.

    Raises:
        ValueError: ``fractions`` are not two growing numbers between 0 and 1.

    Source: this project; the pairs are those of Noise2Noise (ICML 2018) out of one scan.
    """

    def __init__(
        self,
        denoiser: Callable[[Tensor], Tensor],
        photons: float,
        dose: float,
        electronic_variance: float,
        fractions: Sequence[float] = (0.04, 0.85),
        key: str = "sinogram",
        dose_key: str = "dose",
    ) -> None:
        self.fractions = check_fractions(fractions)
        self.denoiser = denoiser
        self.photons = photons
        self.dose = dose
        self.electronic_variance = electronic_variance
        self.key = key
        self.dose_key = dose_key

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, SubPairTarget]:
        """The input and what the loss needs beside it; ``dose`` is that of the target.

        Raises:
            ValueError: the batch has no sinogram, or it is not (B, 1, V, D).
        """
        sinogram = _sinogram(batchdata, self.key, device, non_blocking, **kwargs)
        doses = torch.as_tensor(batchdata.get(self.dose_key, self.dose), dtype=torch.float64).expand(len(sinogram))
        low, high = self.fractions
        fractions = (low * (high / low) ** torch.rand(len(sinogram), dtype=torch.float64)).tolist()
        noise = {"photons": self.photons, "electronic_variance": self.electronic_variance}
        parts = [
            thin_line_integrals(noisy, fraction=fraction, dose=dose, **noise)
            for noisy, fraction, dose in zip(sinogram, fractions, doses.tolist())
        ]
        first, second = (torch.stack(part) for part in zip(*parts))
        with torch.no_grad():
            means = self.denoiser(first)
        for mean, aim, fraction, dose in zip(means, second, fractions, doses.tolist()):
            bias = log_bias(mean, **_share(noise, fraction), dose=dose)
            aim += bias - expected_log_bias(mean - bias, **_share(noise, 1 - fraction), dose=dose)
        none = torch.zeros_like(second)
        dose_of_target = doses * (1 - torch.tensor(fractions, dtype=torch.float64))
        return first, SubPairTarget(
            input=first,
            target=second,
            denoised_input=none,
            denoised_target=none,
            dose=dose_of_target.to(sinogram).reshape(-1, 1, 1, 1),
        )


def _share(noise: Mapping[str, float], fraction: float) -> dict[str, float]:
    """Photons and electronic variance of a part."""
    return {name: fraction * value for name, value in noise.items()}


class PrepareReconstruction(PrepareBatch):
    """Hand a validation batch over as sinogram, reference image in HU and geometry, for :class:`ReconstructionInferer`.

    Args:
        key: entry of the batch that holds the noisy line integrals (B, 1, V, D).
        reference_key: entry that holds the normal-dose image (B, 1, H, W), HU.
        geometry_key: entry that holds the geometry of every item as a JSON string.
    """

    def __init__(self, key: str = "sinogram", reference_key: str = "reference", geometry_key: str = "geometry"):
        self.key = key
        self.reference_key = reference_key
        self.geometry_key = geometry_key

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple, dict[str, Any]]:
        """Sinogram, reference, no more arguments, and the geometry by name.

        Raises:
            ValueError: an entry is missing, or the sinogram is not (B, 1, V, D).
        """
        sinogram = _sinogram(batchdata, self.key, device, non_blocking, **kwargs)
        reference = _entry(batchdata, self.reference_key)
        reference = convert_to_tensor(reference, track_meta=False).to(device, non_blocking=non_blocking, **kwargs)
        return sinogram, reference, (), {"geometry": _entry(batchdata, self.geometry_key)}


class ReconstructionInferer(Inferer):
    """Denoise sinograms and reconstruct them, so that stage 1 is judged by its images.

    Args:
        window: ramp window of the filtered backprojection.
        backend: of the backprojection, see :class:`bundle.physics.FanBeamProjector`.
    """

    def __init__(self, window: str = "ram-lak", backend: str = "auto") -> None:
        self.window = window
        self.backend = backend

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Tensor],
        *args: Any,
        geometry: str | Sequence[str],
        **kwargs: Any,
    ) -> Tensor:
        """Image (B, 1, H, W) in HU of sinograms (B, 1, V, D).

        Args:
            inputs: noisy line integrals.
            network: the denoiser.
            args: further arguments of ``network``.
            geometry: one JSON string, or one for every item of the batch.
            kwargs: further arguments of ``network``.

        Raises:
            ValueError: the items have different geometries, or the sinograms do not fit the geometry.
        """
        geometries = {geometry} if isinstance(geometry, str) else set(geometry)
        if len(geometries) != 1:
            raise ValueError(f"geometry must be the same for the whole batch, got {len(geometries)} different ones")
        reconstruct = _reconstruction(geometries.pop(), self.window, self.backend, inputs.device)
        return attenuation_to_hu(reconstruct(network(inputs, *args, **kwargs)))


class AlphaRamp:
    """Handler: at the start of every epoch, ``loss.alpha = maximum * epoch / max_epochs``.

    The epoch is the engine's own, counted from 1, so that a resumed training goes on where it stopped.

    Args:
        loss: the loss to steer.
        maximum: alpha in the last epoch.

    Source: Neighbor2Neighbor, CVPR 2021, its training's regularisation weight.
    """

    def __init__(self, loss: SimilarityLoss, maximum: float = 2.0) -> None:
        if maximum < 0:
            raise ValueError(f"maximum must be zero or more, got {maximum}")
        self.loss = loss
        self.maximum = maximum

    def attach(self, engine: Engine) -> None:
        """Follow this engine's epochs."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        self.loss.alpha = self.maximum * engine.state.epoch / engine.state.max_epochs


class FiniteLoss:
    """Handler: stop a training whose loss is no number any more, instead of training on nothing to the end."""

    def attach(self, engine: Engine) -> None:
        """Watch every step of a MONAI trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Raises:
        ValueError: names the step and the loss.
        """
        loss = torch.as_tensor(engine.state.output[CommonKeys.LOSS])
        if not torch.isfinite(loss).all():
            raise ValueError(
                f"the loss must be finite, got {loss.tolist()} in step {engine.state.iteration} (epoch "
                f"{engine.state.epoch}): lower learning_rate, or go on from an earlier checkpoint"
            )


@functools.lru_cache(maxsize=8)
def _reconstruction(geometry: str, window: str, backend: str, device: torch.device) -> FilteredBackprojection:
    return FilteredBackprojection(FanBeamGeometry.from_json(geometry), window, backend).to(device)


def _entry(batchdata: Mapping[str, Any], key: str) -> Any:
    if key not in batchdata:
        raise ValueError(f"the batch must have an entry {key!r}, got {sorted(batchdata)}")
    return batchdata[key]


def _sinogram(batchdata: Mapping[str, Any], key: str, device: Any, non_blocking: bool, **kwargs: Any) -> Tensor:
    # A plain tensor: metadata would be carried through every operation of the step.
    sinogram = convert_to_tensor(_entry(batchdata, key), track_meta=False)
    if sinogram.ndim != 4 or sinogram.shape[1] != 1:
        raise ValueError(f"{key} must be (B, 1, V, D), got {tuple(sinogram.shape)}")
    return sinogram.to(device, non_blocking=non_blocking, **kwargs)
