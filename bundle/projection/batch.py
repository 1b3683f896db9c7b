"""How stage 1 meets MONAI's engines: what a step sees, how a validation image is made, how alpha grows."""

# Shapes in this file: B batch, H W image, V views, D detector cells.

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import PrepareBatch
from monai.inferers import Inferer, SimpleInferer
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

#: Entries of a batch that say how noisy each of its scans is, (B): photons a ray, and photons squared.
NOISE_KEYS = ("incident_photons", "electronic_variance")


class PrepareSubPair(PrepareBatch):
    """Turn a batch of noisy sinograms into input and target of stage 1; nothing but sinograms and doses is read.

    Args:
        sampler: draws the masks, anew for every batch.
        denoiser: ``f``, the network in training; ``f(y)`` is computed without gradient.
        key: entry of the batch that holds the noisy line integrals (B, 1, V, D). Where the batch says them, its
            ``incident_photons`` (B) and ``electronic_variance`` (B) reach denoiser and loss.
    """

    def __init__(self, sampler: ContextualSubsampler, denoiser: Callable[..., Tensor], key: str = "sinogram") -> None:
        self.sampler = sampler
        self.denoiser = denoiser
        self.key = key

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, SubPairTarget, tuple, dict[str, Tensor]]:
        """``s1 y``, what the loss needs beside it, no more arguments, and the noise by name for the denoiser.

        Raises:
            ValueError: the batch has no sinogram, or it is not (B, 1, V, D).
        """
        sinogram = _sinogram(batchdata, self.key, device, non_blocking, **kwargs)
        noise = _noise(batchdata, sinogram)
        plan = self.sampler(sinogram)
        sub_input, sub_target = plan(sinogram)
        with torch.no_grad():
            denoised_input, denoised_target = plan(self.denoiser(sinogram, **noise))
        target = SubPairTarget(
            input=sub_input, target=sub_target, denoised_input=denoised_input, denoised_target=denoised_target, **noise
        )
        return sub_input, target, (), noise


class PrepareThinnedPair(PrepareBatch):
    """Turn a batch of noisy sinograms into input and target of independent photons, both at full resolution.

    The photons of each sinogram are parted at random (:func:`bundle.physics.thin_line_integrals`), anew for every
    batch: what the network learns from the target cannot be the noise of its input. No neighbour stands in for a ray,
    so no edge is blurred and no mask is needed: ``tau`` of the loss is null. The logarithm of few counts is biased,
    and more so in the part with fewer; the target is given the bias of the input, as the prediction tells it, so that
    the network learns the mean of scans of the dose that it is shown.

    Args:
        denoiser: ``f``, the network in training; it is run without gradient to tell the biases.
        fractions: least and greatest share of the photons that the input is given, drawn log-uniformly.
        key: entry of the batch that holds the noisy line integrals (B, 1, V, D), beside their ``incident_photons`` (B)
            and ``electronic_variance`` (B).

    Raises:
        ValueError: ``fractions`` are not two growing numbers between 0 and 1.

    Source: this project; the pairs are those of Noise2Noise (ICML 2018) out of one scan.
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        fractions: Sequence[float] = (0.1, 0.8),
        key: str = "sinogram",
    ) -> None:
        self.fractions = check_fractions(fractions)
        self.denoiser = denoiser
        self.key = key

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, SubPairTarget, tuple, dict[str, Tensor]]:
        """The input, what the loss needs beside it, no more arguments, and the noise of the input by name.

        Raises:
            ValueError: the batch has no sinogram, or it is not (B, 1, V, D), or its photons are not known.
        """
        sinogram = _sinogram(batchdata, self.key, device, non_blocking, **kwargs)
        noise = _noise(batchdata, sinogram)
        if len(noise) != len(NOISE_KEYS):
            raise ValueError(f"the batch must have {NOISE_KEYS} to part the photons, got {sorted(batchdata)}")
        low, high = self.fractions
        # Drawn on the CPU: the same seed parts alike on every device.
        fractions = (low * (high / low) ** torch.rand(len(sinogram), 1, 1, 1, dtype=torch.float64)).to(sinogram)
        noises = [{name: share * value for name, value in noise.items()} for share in (fractions, 1 - fractions)]
        parts = [
            thin_line_integrals(
                noisy, photons=photons.item(), fraction=fraction.item(), electronic_variance=variance.item()
            )
            for noisy, fraction, photons, variance in zip(sinogram, fractions, *(noise[name] for name in NOISE_KEYS))
        ]
        first, second = (torch.stack(part) for part in zip(*parts))
        with torch.no_grad():
            means = self.denoiser(first, **noises[0])
        for index, (mean, aim) in enumerate(zip(means.float(), second)):
            own, others = (
                {
                    "photons": part["incident_photons"][index].item(),
                    "electronic_variance": part["electronic_variance"][index].item(),
                }
                for part in noises
            )
            bias = log_bias(mean, **own)
            aim += bias - expected_log_bias(mean - bias, **others)
        none = torch.zeros_like(second)
        target = SubPairTarget(input=first, target=second, denoised_input=none, denoised_target=none, **noises[1])
        return first, target, (), noises[0]


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
        """Sinogram, reference, no more arguments, and by name the geometry and what is known of the noise.

        Raises:
            ValueError: an entry is missing, or the sinogram is not (B, 1, V, D).
        """
        sinogram = _sinogram(batchdata, self.key, device, non_blocking, **kwargs)
        reference = _entry(batchdata, self.reference_key)
        reference = convert_to_tensor(reference, track_meta=False).to(device, non_blocking=non_blocking, **kwargs)
        return (
            sinogram,
            reference,
            (),
            {"geometry": _entry(batchdata, self.geometry_key), **_noise(batchdata, sinogram)},
        )


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


class MixedPrecisionInferer(SimpleInferer):
    """Run the network in another precision than its weights and the loss have, on whatever device its input is.

    Half the bits are twice the speed where the processor has instructions for them. The loss and the gradients of the
    weights stay in float32, so ``bfloat16`` needs no scaling; MONAI's own ``amp`` is for CUDA alone.

    Args:
        precision: ``float32`` or ``bfloat16``.

    Raises:
        ValueError: another precision.
    """

    def __init__(self, precision: str = "float32") -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, got {precision!r}")
        self.precision = precision

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The network's answer, in float32: a tensor, or a dictionary of them."""
        if self.precision == "float32":
            return super().__call__(inputs, network, *args, **kwargs)
        with torch.autocast(inputs.device.type, torch.bfloat16):
            answer = super().__call__(inputs, network, *args, **kwargs)
        if isinstance(answer, Mapping):
            return {name: value.float() for name, value in answer.items()}
        return answer.float()


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


def _noise(batchdata: Mapping[str, Any], like: Tensor) -> dict[str, Tensor]:
    """What the batch says of its noise, each (B, 1, 1, 1)."""
    return {
        key: convert_to_tensor(batchdata[key], track_meta=False).to(like).reshape(-1, 1, 1, 1)
        for key in NOISE_KEYS
        if key in batchdata
    }


def _sinogram(batchdata: Mapping[str, Any], key: str, device: Any, non_blocking: bool, **kwargs: Any) -> Tensor:
    # A plain tensor: metadata would be carried through every operation of the step.
    sinogram = convert_to_tensor(_entry(batchdata, key), track_meta=False)
    if sinogram.ndim != 4 or sinogram.shape[1] != 1:
        raise ValueError(f"{key} must be (B, 1, V, D), got {tuple(sinogram.shape)}")
    return sinogram.to(device, non_blocking=non_blocking, **kwargs)
