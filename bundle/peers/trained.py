"""Peers and our own stages whose weights were learnt before."""

# Shapes in this file: S slices, H W image.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .classical import FbpPeer
from .noise2inverse import SplitAverageInferer, reconstruct_splits
from .scan import Scan


class DenoisedSinogramPeer:
    """A sinogram denoiser, then FBP; with the weights of ``neighbor2neighbor.json`` this is Neighbor2Neighbor.

    Args:
        denoiser: ``(B, 1, V, D)`` to the same.
        window: ramp window.
        backend: of the backprojection.
    """

    def __init__(self, denoiser: nn.Module, window: str = "ram-lak", backend: str = "auto") -> None:
        self.denoiser = denoiser.eval()
        self.base = FbpPeer(window, backend=backend)

    @torch.no_grad()
    def __call__(self, scan: Scan) -> Tensor:
        """HU ``(S, 1, H, W)``."""
        device = _device_of(self.denoiser, scan)
        denoised = torch.cat([self.denoiser(one.to(device)) for one in scan.sinogram.split(1)])
        clean = Scan(sinogram=denoised.to(scan.sinogram.device), geometry=scan.geometry, mu_water=scan.mu_water)
        return self.base(clean)


class Noise2InversePeer:
    """FBP of the views in K parts, the network's answers averaged over all of them.

    Args:
        network: ``(B, 1, H, W)`` to the same, HU.
        splits: K, as in training.
        strategy: as in training.
        window: ramp window.
        backend: of the backprojection.

    Raises:
        ValueError: an unknown strategy.

    Source: Hendriksen et al., IEEE Trans. Comput. Imaging 6, 2020 (arXiv 2001.11801).
    """

    def __init__(
        self,
        network: nn.Module,
        splits: int = 4,
        strategy: str = "X:1",
        window: str = "ram-lak",
        backend: str = "auto",
    ) -> None:
        self.network = network.eval()
        self.splits = splits
        self.window = window
        self.backend = backend
        self._average = SplitAverageInferer(strategy)

    @torch.no_grad()
    def __call__(self, scan: Scan) -> Tensor:
        """HU ``(S, 1, H, W)``."""
        device = _device_of(self.network, scan)
        images = []
        for one in scan.sinogram.to(device).split(1):
            parts = reconstruct_splits(one, scan.geometry, self.splits, self.window, self.backend, scan.mu_water)
            images.append(self._average(parts, self.network))
        return torch.cat(images).to(scan.sinogram.device)


class StagedPeer:
    """Every stage of a restorer as a method of its own; a scan is restored once for all of them.

    Args:
        restorer: has ``restore(sinogram, geometry, incident_photons)``, whose result has the stages as attributes,
            HU ``(B, 1, H, W)`` (:class:`bundle.inference.LowDoseRestorer`).
        slices_per_batch: slices restored at once.
    """

    def __init__(self, restorer: Any, slices_per_batch: int = 2) -> None:
        self.restorer = restorer.eval()
        self.slices_per_batch = slices_per_batch
        self._last: tuple[Scan, list[Any]] | None = None

    def stage(self, name: str) -> Callable[[Scan], Tensor]:
        """The method that gives this stage: ``fbp``, ``prior``, ``fused`` or ``restored``; HU ``(S, 1, H, W)``."""

        def method(scan: Scan) -> Tensor:
            images = torch.cat([getattr(part, name) for part in self._restored(scan)])
            return images.to(scan.sinogram.device)

        return method

    def _restored(self, scan: Scan) -> list[Any]:
        # The scan itself is kept, not its id: a new scan might get the id of one that is gone.
        if self._last is None or self._last[0] is not scan:
            device = _device_of(self.restorer, scan)
            parts = scan.sinogram.split(self.slices_per_batch)
            results = [self.restorer.restore(p.to(device), scan.geometry, scan.incident_photons) for p in parts]
            self._last = scan, results
        return self._last[1]


def _device_of(network: nn.Module, scan: Scan) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), scan.sinogram.device)
