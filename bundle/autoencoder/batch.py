"""What one step of stages 2 and 3 may see of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import PrepareBatch
from monai.utils import convert_to_tensor
from torch import Tensor

#: The normal-dose image: for measuring only, never to learn from.
REFERENCE_KEY = "reference"


class PrepareDistillationPair(PrepareBatch):
    """The noisy image and the prior it is distilled towards, from a dictionary of images ``(B, 1, H, W)`` in HU.

    Without ``reference_key`` (training) it returns ``(input, target, (), {"target": target})``, both detached, with the
    input's ``noise`` among the keywords where ``noise_key`` names it, and reads no other item of the batch: what else
    the batch holds can not reach a loss. With ``reference_key`` (validation) the second item becomes the reference, so
    that metrics measure against it.

    Args:
        input_key: the noisy reconstruction, x_ld.
        target_key: the reconstruction of the denoised sinogram, xhat.
        reference_key: what metrics compare with; None while training.
        noise_key: what stage 1 took for noise in the input, HU, for a network that is told; None: it is not told.
        pass_target: whether a network in validation gets the target too. The autoencoder needs it (its latent is the
            target's), the refiner restores without it.

    Raises:
        ValueError: a training pair names the reference, ``input_key`` equals ``target_key``, or training without
            passing the target.
    """

    def __init__(
        self,
        input_key: str = "fbp",
        target_key: str = "prior",
        reference_key: str | None = None,
        pass_target: bool = True,
        noise_key: str | None = None,
    ) -> None:
        for name, key in (("input_key", input_key), ("target_key", target_key), ("noise_key", noise_key)):
            if key == REFERENCE_KEY:
                raise ValueError(f"{name} must not be {REFERENCE_KEY!r}: the stages learn from low-dose data alone")
        if input_key == target_key:
            raise ValueError(f"input_key and target_key must differ, both are {input_key!r}")
        if reference_key is None and not pass_target:
            raise ValueError("pass_target=False needs a reference_key: in training the network sees its target")
        self.input_key = input_key
        self.target_key = target_key
        self.reference_key = reference_key
        self.pass_target = pass_target
        self.noise_key = noise_key

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple, dict[str, Tensor]]:
        """``(input, target or reference, (), network keywords)`` on ``device``; ``kwargs`` go to ``Tensor.to``.

        Raises:
            ValueError: an item is missing, is not ``(B, 1, H, W)``, or its shape differs from the input's.
        """

        def read(key: str) -> Tensor:
            if key not in batchdata:
                raise ValueError(f"the batch has no {key!r}, only {sorted(batchdata)}")
            image = convert_to_tensor(batchdata[key], track_meta=False).detach()
            if image.ndim != 4 or image.shape[1] != 1:
                raise ValueError(f"{key!r} must be (B, 1, H, W) in HU, got shape {tuple(image.shape)}")
            return image.to(device=device, non_blocking=non_blocking, **kwargs)

        image = read(self.input_key)
        keywords = {"target": read(self.target_key)} if self.pass_target else {}
        if self.noise_key is not None:
            keywords["noise"] = read(self.noise_key)
        label = keywords["target"] if self.reference_key is None else read(self.reference_key)
        for name, other in (*keywords.items(), ("label", label)):
            if other.shape != image.shape:
                raise ValueError(
                    f"{name} must have the shape of {self.input_key!r}, {tuple(image.shape)}, got {tuple(other.shape)}"
                )
        return image, label, (), keywords
