"""A stack of slices through the restorer, in MONAI's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.engines import PrepareBatch
from monai.inferers import Inferer
from torch import Tensor
from tqdm import tqdm

from .pipeline import LowDoseRestorer, Prepared, Restoration

# Shapes in this file: S slices, V views, D detector cells, H W image. The batch size is 1: stacks differ in length.

#: What the channels of :class:`StackInferer`'s output are.
STAGES = Restoration._fields[:4]


class StackInferer(Inferer):
    """Restore a stack slice chunk by slice chunk; the output's channels are :data:`STAGES`.

    After a call, ``seconds`` holds the seconds of every stage over the whole stack, ``num_slices`` its length.

    Args:
        slices_per_batch: slices restored at once.
        progress: show a bar, counted in slices.
        neighbours: let the slices above and below help each other (held-out fusion searches them); the stack must be
            in order. Slices that are too far apart to be alike cost time, not quality.

    Raises:
        ValueError: ``slices_per_batch`` below 1.
    """

    def __init__(self, slices_per_batch: int = 4, progress: bool = True, neighbours: bool = True) -> None:
        if slices_per_batch < 1:
            raise ValueError(f"slices_per_batch must be 1 or more, got {slices_per_batch}")
        self.slices_per_batch = int(slices_per_batch)
        self.progress = progress
        self.neighbours = bool(neighbours)
        self.seconds: dict[str, float] = {}
        self.num_slices = 0

    def __call__(
        self,
        inputs: Tensor,
        network: LowDoseRestorer,
        *args: Any,
        geometry: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Restore ``(1, 1, S, V, D)`` to HU ``(1, 4, S, H, W)``, on the CPU.

        Args:
            inputs: noisy line integrals of one stack; may stay on the CPU, each chunk is moved to the network's device.
            network: restorer with the methods ``prepare`` and ``finish``.
            args: passed on to ``prepare`` after the geometry.
            geometry: JSON of the scan's geometry, alone or in a list of one as a batch holds it; None: the network's.
            kwargs: passed on to ``prepare``.

        Raises:
            ValueError: inputs of another shape, or more than one geometry.
        """
        if inputs.ndim != 5 or inputs.shape[0] != 1 or inputs.shape[1] != 1 or not inputs.shape[2]:
            raise ValueError(f"sinogram stack must be (1, 1, slices, views, cells), got {tuple(inputs.shape)}")
        if isinstance(geometry, (list, tuple)):
            if len(geometry) != 1:
                raise ValueError(f"expected one geometry for one stack, got {len(geometry)}")
            geometry = geometry[0]
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.num_slices = inputs.shape[2]
        device = next((p.device for p in network.parameters()), inputs.device)
        output: Tensor | None = None
        starts = range(0, self.num_slices, self.slices_per_batch)
        # A lone slice has no neighbours.
        searched = self.neighbours and self.num_slices > 1
        with tqdm(total=self.num_slices, desc="restore", unit="slice", disable=not self.progress) as bar:
            waiting: Prepared | None = None
            before: Prepared | None = None
            done = 0
            # One chunk behind: a slice is finished when the one after it is prepared.
            for start in (*starts, self.num_slices):
                prepared = None
                if start < self.num_slices:
                    chunk = inputs[0, 0, start : start + self.slices_per_batch, None].to(device)
                    prepared = network.prepare(chunk, geometry, *args, **kwargs)
                if waiting is not None:
                    first, last = waiting.slices(slice(0, 1)), waiting.slices(slice(-1, None))
                    # At an end of the stack the slice stands for the one that is not there.
                    after = last if prepared is None else prepared.slices(slice(0, 1))
                    around = (first if before is None else before, after) if searched else None
                    result = network.finish(waiting, around)
                    before = last
                    images = torch.cat([getattr(result, stage) for stage in STAGES], dim=1).transpose(0, 1).cpu()
                    if output is None:
                        output = images.new_empty((1, len(STAGES), self.num_slices, *images.shape[2:]))
                    output[0, :, done : done + images.shape[1]] = images
                    done += images.shape[1]
                    for stage in STAGES:
                        self.seconds[stage] += result.seconds[stage]
                    bar.update(images.shape[1])
                waiting = prepared
        return output


class PrepareScan(PrepareBatch):
    """What the engine gives :class:`StackInferer`: sinogram, reference (None for a measured scan), geometry, noise.

    Neither tensor is moved to the device: the inferer moves one chunk of slices at a time.

    Raises:
        ValueError: a batch without a sinogram.
    """

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, tuple, dict[str, Any]]:
        if "sinogram" not in batchdata:
            raise ValueError(f"the batch must hold a 'sinogram', got {sorted(batchdata)}")
        reference = batchdata.get("reference")
        reference = reference if isinstance(reference, Tensor) else None
        keywords = {"geometry": batchdata.get("geometry")}
        for key in ("incident_photons", "electronic_variance"):
            value = batchdata.get(key)
            keywords[key] = None if value is None else float(torch.as_tensor(value).reshape(()))
        return batchdata["sinogram"], reference, (), keywords
