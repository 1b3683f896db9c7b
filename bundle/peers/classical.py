"""Peers that learn nothing: filtered backprojection, and filters on its image."""

# Shapes in this file: S slices, H W image, V views, D detector cells.

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle
from torch import Tensor

from bundle.physics import FanBeamGeometry, FilteredBackprojection, attenuation_to_hu

from .noise2inverse import split_views
from .scan import Scan

# A scan needs three operators a window: all views, even ones, odd ones.
_reconstruction = lru_cache(maxsize=32)(FilteredBackprojection)

# What is denser counts as body, HU: the noise of the air around it says nothing about the image.
_BODY_HU = -500.0


class FbpPeer:
    """Filtered backprojection.

    Args:
        window: ramp window.
        cutoff: where the window ends, as a fraction of the cells' Nyquist frequency.
        backend: of the backprojection, see :class:`bundle.physics.FanBeamProjector`.
    """

    def __init__(self, window: str = "ram-lak", cutoff: float = 1.0, backend: str = "auto") -> None:
        self.window = window
        self.cutoff = cutoff
        self.backend = backend

    def __call__(self, scan: Scan) -> Tensor:
        """HU ``(S, 1, H, W)``."""
        return self._images(scan, scan.sinogram, scan.geometry)

    def with_noise(self, scan: Scan) -> tuple[Tensor, Tensor]:
        """Images ``(S, 1, H, W)`` and the standard deviation of the noise in the body of each, ``(S,)``; both HU.

        Even and odd views make an image each. Their mean is the FBP of all views; half their difference holds noise as
        strong and no anatomy. Both noises are independent, so the body may be looked for in the mean.
        """
        even, odd = (
            self._images(scan, part, geometry) for part, geometry in split_views(scan.sinogram, scan.geometry, 2)
        )
        image, noise = (even + odd) / 2, (even - odd) / 2
        body = image > _BODY_HU
        # An empty scanner has no body: its whole image is looked at.
        body |= ~body.flatten(1).any(dim=1).reshape(-1, 1, 1, 1)
        return image, ((noise.square() * body).flatten(1).sum(1) / body.flatten(1).sum(1)).sqrt()

    @torch.no_grad()
    def _images(self, scan: Scan, sinogram: Tensor, geometry: FanBeamGeometry) -> Tensor:
        reconstruct = _reconstruction(geometry, self.window, self.backend, self.cutoff).to(sinogram.device)
        return attenuation_to_hu(reconstruct(sinogram.contiguous()), scan.mu_water)


class FilterPeer(ABC):
    """FBP, then a filter on each slice's image, as strong as that slice's noise asks for.

    Args:
        strength: of the filter, in standard deviations of the noise (:meth:`FbpPeer.with_noise`); 0: no filter.
        window: ramp window of the FBP.
        cutoff: of that window.
        backend: of the backprojection.

    Raises:
        ValueError: a negative strength.
    """

    def __init__(self, strength: float, window: str = "hann", cutoff: float = 1.0, backend: str = "auto") -> None:
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"strength must be zero or more, got {strength}")
        self.strength = strength
        self.base = FbpPeer(window, cutoff, backend)

    def __call__(self, scan: Scan) -> Tensor:
        """HU ``(S, 1, H, W)``."""
        images, noise = self.base.with_noise(scan)
        return self.filtered(images, noise)

    def filtered(self, images: Tensor, noise: Sequence[float] | Tensor) -> Tensor:
        """Filter images ``(S, 1, H, W)`` of known noise ``(S,)``; all HU."""
        done = [self._filtered(image, float(level)) for image, level in zip(images[:, 0], noise)]
        return torch.stack(done)[:, None]

    def _filtered(self, image: Tensor, noise: float) -> Tensor:
        if self.strength * noise == 0:
            return image.clone()
        # Float32 holds HU to a ten-thousandth; the filters take what they are given.
        out = self.filter_image(image.cpu().numpy(), self.strength * noise)
        return torch.from_numpy(np.ascontiguousarray(out, dtype=np.float32)).to(image.device)

    @abstractmethod
    def filter_image(self, image: np.ndarray, strength_hu: float) -> np.ndarray:
        """Filter ``(H, W)``, HU, by a strength in HU above 0."""


class NlmPeer(FilterPeer):
    """Non-local means: a pixel becomes the mean of those whose surroundings look alike. ``strength`` is its h.

    Args:
        strength: as in :class:`FilterPeer`.
        window: likewise.
        cutoff: likewise.
        patch_size: side of what is compared, pixels.
        patch_distance: how far alike pixels are looked for, pixels.
        backend: of the backprojection.

    Source: Buades et al., CVPR 2005; Darbon et al., ISBI 2008 (fast form), by scikit-image.
    """

    def __init__(
        self,
        strength: float,
        window: str = "hann",
        cutoff: float = 1.0,
        patch_size: int = 5,
        patch_distance: int = 7,
        backend: str = "auto",
    ) -> None:
        super().__init__(strength, window, cutoff, backend)
        self.patch_size = patch_size
        self.patch_distance = patch_distance

    def filter_image(self, image: np.ndarray, strength_hu: float) -> np.ndarray:
        """See :meth:`FilterPeer.filter_image`."""
        return denoise_nl_means(
            image, patch_size=self.patch_size, patch_distance=self.patch_distance, h=strength_hu, fast_mode=True
        )


class TvPeer(FilterPeer):
    """Total variation: the image of least slope near the given one. ``strength`` is the weight of the slope.

    Args:
        strength: as in :class:`FilterPeer`.
        window: likewise.
        cutoff: likewise.
        iterations: at most so many.
        backend: of the backprojection.

    Source: Rudin et al., Physica D 60, 1992; Chambolle, J. Math. Imaging Vis. 20, 2004, by scikit-image.
    """

    def __init__(
        self,
        strength: float,
        window: str = "hann",
        cutoff: float = 1.0,
        iterations: int = 100,
        backend: str = "auto",
    ) -> None:
        super().__init__(strength, window, cutoff, backend)
        self.iterations = iterations

    def filter_image(self, image: np.ndarray, strength_hu: float) -> np.ndarray:
        """See :meth:`FilterPeer.filter_image`."""
        return denoise_tv_chambolle(image, weight=strength_hu, max_num_iter=self.iterations)


class Bm3dPeer(FilterPeer):
    """BM3D: alike patches are stacked and shrunk together. ``strength`` is its sigma.

    Needs the package ``bm3d``, whose licence allows non-commercial use only (requirements-bm3d.txt).

    Args:
        strength: as in :class:`FilterPeer`.
        window: likewise.
        cutoff: likewise.
        backend: of the backprojection.

    Raises:
        ModuleNotFoundError: the package is not there.

    Source: Dabov et al., IEEE Trans. Image Process. 16, 2007, in the form of Mäkinen et al., ibid. 29, 2020.
    """

    def __init__(self, strength: float, window: str = "hann", cutoff: float = 1.0, backend: str = "auto") -> None:
        super().__init__(strength, window, cutoff, backend)
        try:
            import bm3d
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{error}; pip install -r requirements-bm3d.txt brings bm3d (licence: non-commercial use)"
            ) from error
        self._bm3d = bm3d.bm3d

    def filter_image(self, image: np.ndarray, strength_hu: float) -> np.ndarray:
        """See :meth:`FilterPeer.filter_image`."""
        return self._bm3d(image, sigma_psd=strength_hu)


class TunedPeer:
    """For each slice the peer that was tuned at the noise nearest to the slice's own, by ratio.

    Strengths that are best at one dose depend on the patient: a thick one at 25 % is as noisy as a thin one at 5 %.
    Noise is what both share, and it can be measured on any scan (:meth:`FbpPeer.with_noise`).

    Args:
        peers: a peer for each noise level; the level in HU, on the FBP of ``window``, as it was when tuned.
        window: ramp window of the FBP that noise is measured on, at the full band.
        backend: of the backprojection.

    Raises:
        ValueError: no peers, or a level that is not positive.
    """

    def __init__(
        self, peers: Mapping[float, Callable[[Scan], Tensor]], window: str = "hann", backend: str = "auto"
    ) -> None:
        if not peers or not all(math.isfinite(level) and level > 0 for level in peers):
            raise ValueError(f"peers must have positive noise levels (HU), got {sorted(peers)}")
        self.peers = dict(peers)
        self._measure = FbpPeer(window, backend=backend)

    def __call__(self, scan: Scan) -> Tensor:
        """HU ``(S, 1, H, W)``."""
        _, noise = self._measure.with_noise(scan)
        images = []
        for index, level in enumerate(noise.tolist()):
            one = Scan(
                sinogram=scan.sinogram[index : index + 1],
                geometry=scan.geometry,
                incident_photons=scan.incident_photons,
                electronic_variance=scan.electronic_variance,
                mu_water=scan.mu_water,
            )
            images.append(self.nearest(level)(one))
        return torch.cat(images)

    def nearest(self, noise: float) -> Callable[[Scan], Tensor]:
        """The peer of the level nearest to ``noise``, HU, by ratio."""
        # A noise-free scan has no logarithm; it takes the lowest level.
        return self.peers[min(self.peers, key=lambda level: abs(math.log(level / max(noise, 1e-6))))]
