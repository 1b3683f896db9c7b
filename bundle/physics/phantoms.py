"""Objects of ellipses: their line integrals in closed form, their picture, and the discs that scanners are tested with.

Nothing here is seen through a pixel grid first, so a scan of such an object is as free of the reconstruction's own
errors as a scan of a patient: no method is measured by the operator it reconstructs with.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import FanBeamGeometry
from .projector import FanBeamProjector
from .units import MU_WATER

# Shapes in this file: V views, D detector cells, H W image. Lengths in mm, angles in radians.

MATERIALS = ("water", "bone", "metal")

#: Side in pixels and pixel of the grid that texture is drawn on: finer than any grid that images are made on, mm.
TEXTURE_GRID, TEXTURE_PIXEL = 1024, 0.375
# Wavelengths that texture is made of, mm, and how its power falls with the frequency: as anatomy's does.
_TEXTURE_BAND, _TEXTURE_POWER = (3.0, 60.0), 3.0
# Points that a pixel's side is cut into where texture is averaged over it.
_TEXTURE_SAMPLES = 4


@dataclass(frozen=True)
class Ellipse:
    """One ellipse that adds to what lies below it.

    Args:
        x: of the centre, mm; grows with the columns.
        y: of the centre, mm; grows with the rows.
        half_x: half axis along x before the turn, mm.
        half_y: half axis along y before the turn, mm.
        hu: what it adds, HU; water on air is 1000.
        turn: from x towards y, radians.
        edge: width over which the value falls to 0 at the end of the shorter half axis, mm (more at the longer one,
            in proportion); half of it lies outside. 0: a sharp edge.
        material: ``water``, ``bone`` or ``metal``: whose attenuation this is, for beams of more than one energy.
        name: what it is, for those who look for it.

    Raises:
        ValueError: numbers that are not finite, half axes that are not positive, an edge wider than the ellipse, an
            unknown material.
    """

    x: float
    y: float
    half_x: float
    half_y: float
    hu: float
    turn: float = 0.0
    edge: float = 0.0
    material: str = "water"
    name: str = ""

    def __post_init__(self) -> None:
        for name in ("x", "y", "half_x", "half_y", "hu", "turn", "edge"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)}")
        shorter = min(self.half_x, self.half_y)
        if shorter <= 0:
            raise ValueError(f"half_x and half_y must be positive (mm), got {self.half_x} and {self.half_y}")
        if not 0 <= self.edge <= 2 * shorter:
            raise ValueError(f"edge must be from 0 to the shorter axis, {2 * shorter} mm, got {self.edge}")
        if self.material not in MATERIALS:
            raise ValueError(f"material must be one of {MATERIALS}, got {self.material!r}")

    @property
    def softness(self) -> float:
        """Half the width of the edge as a fraction of the half axes."""
        return self.edge / (2 * min(self.half_x, self.half_y))

    @property
    def reach(self) -> float:
        """Distance from the centre beyond which there is nothing of it, mm."""
        return (1 + self.softness) * max(self.half_x, self.half_y)

    def to_circle(self) -> np.ndarray:
        """Matrix ``(2, 2)`` that turns and stretches a distance from the centre so that the rim has length 1."""
        cosine, sine = math.cos(self.turn), math.sin(self.turn)
        return np.array([[cosine / self.half_x, sine / self.half_x], [-sine / self.half_y, cosine / self.half_y]])


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """A sum of ellipses in air, and of texture whose strength is a sum of ellipses.

    Texture is a random field of wavelengths from 3 to 60 mm whose power falls with the third power of the frequency.
    It is drawn on a grid of its own, 0.375 mm fine, and projected from there: both picture and line integrals follow
    from the same drawing.

    Args:
        name: of the phantom.
        ellipses: what is added to air.
        texture: ellipses whose ``hu`` is the standard deviation that they add to the texture, HU.
        seed: of the texture.
        offset: x and y by which the object has moved, mm.

    Source: chords of ellipses: Kak and Slaney, Principles of Computerized Tomographic Imaging, 1988, section 3.1.
    Power law of anatomical texture: Burgess, Med. Phys. 28(4), 2001.
    """

    name: str
    ellipses: tuple[Ellipse, ...]
    texture: tuple[Ellipse, ...] = ()
    seed: int = 0
    offset: tuple[float, float] = (0.0, 0.0)

    def image_hu(self, geometry: FanBeamGeometry, samples: int = 8) -> Tensor:
        """Mean HU of every pixel, ``(1, 1, H, W)``, float32: the truth that a reconstruction is held beside.

        Exact along the rows; each pixel is cut into `samples` lines across them.

        Raises:
            ValueError: `samples` below 1.
        """
        if samples < 1:
            raise ValueError(f"samples must be 1 or more, got {samples}")
        image = _raster(self._placed(self.ellipses), geometry, samples) - 1000
        if self.texture:
            image += self._texture_on(geometry)
        return torch.from_numpy(image)[None, None].float()

    def line_integrals(
        self,
        geometry: FanBeamGeometry,
        material: str | None = None,
        *,
        mu_water: float = MU_WATER,
        backend: str = "auto",
    ) -> Tensor:
        """Noise-free line integrals along the ray to every cell's centre, ``(1, 1, V, D)``, float32, no unit.

        The image grid of the geometry plays no part.

        Args:
            geometry: the scan.
            material: only what this material adds (texture counts as water); None: everything.
            mu_water: attenuation of water, 1/mm.
            backend: of the projector that texture is projected by.

        Raises:
            ValueError: an unknown material; texture that does not fit its grid.
        """
        if material is not None and material not in MATERIALS:
            raise ValueError(f"material must be one of {MATERIALS}, got {material!r}")
        chosen = [e for e in self.ellipses if material in (None, e.material)]
        total = torch.from_numpy(_chords(self._placed(chosen), geometry) * (mu_water / 1000))
        if self.texture and material in (None, "water"):
            fine = dataclasses.replace(
                geometry.with_grid((TEXTURE_GRID, TEXTURE_GRID), TEXTURE_PIXEL), image_center=self.offset
            )
            total += FanBeamProjector(fine, backend)(self._texture_hu() * (mu_water / 1000))[0, 0].double()
        return total[None, None].float()

    def moved(self, x: float, y: float) -> Phantom:
        """The same object, moved by `x` and `y` mm."""
        return dataclasses.replace(self, offset=(self.offset[0] + x, self.offset[1] + y))

    def with_ellipses(self, *ellipses: Ellipse) -> Phantom:
        """The same object with more in it."""
        return dataclasses.replace(self, ellipses=self.ellipses + ellipses)

    def named(self, name: str) -> tuple[Ellipse, ...]:
        """Ellipses of that name, where they are now.

        Raises:
            ValueError: there are none.
        """
        found = tuple(self._placed([e for e in self.ellipses if e.name == name]))
        if not found:
            names = sorted({e.name for e in self.ellipses if e.name})
            raise ValueError(f"phantom {self.name!r} has no ellipse {name!r}; named are {names}")
        return found

    def _placed(self, ellipses: Sequence[Ellipse]) -> Iterator[Ellipse]:
        x, y = self.offset
        return (dataclasses.replace(e, x=e.x + x, y=e.y + y) for e in ellipses)

    def _texture_hu(self) -> Tensor:
        """Texture on its own grid, ``(1, 1, N, N)``, float32, HU."""
        half = TEXTURE_GRID * TEXTURE_PIXEL / 2
        far = max(max(abs(e.x), abs(e.y)) + e.reach for e in self.texture)
        if far > half:
            raise ValueError(f"texture must lie within {half} mm of the centre, it reaches to {far:.1f} mm")
        fine = _TEXTURE_SCAN.with_grid((TEXTURE_GRID, TEXTURE_GRID), TEXTURE_PIXEL)
        strength = _raster(self.texture, fine, 2)
        return torch.from_numpy(strength * _random_field(self.seed))[None, None].float()

    def _texture_on(self, geometry: FanBeamGeometry) -> np.ndarray:
        """Mean texture of every pixel, ``(H, W)``, HU: linear between the points of its own grid."""
        axes, count = [], _TEXTURE_SAMPLES
        for coordinates, offset in zip(geometry.pixel_coordinates(), self.offset):
            inside = ((np.arange(count) + 0.5) / count - 0.5) * geometry.pixel_size
            points = (coordinates[:, None] + inside).ravel() - offset
            axes.append(torch.from_numpy(points / (TEXTURE_GRID * TEXTURE_PIXEL / 2)).float())
        y, x = torch.meshgrid(axes[1], axes[0], indexing="ij")
        fine = F.grid_sample(self._texture_hu(), torch.stack((x, y), -1)[None], align_corners=False)
        return F.avg_pool2d(fine, count)[0, 0].double().numpy()


# Only its grid is used; a scanner has to be named.
_TEXTURE_SCAN = FanBeamGeometry(
    source_to_center=1000.0,
    source_to_detector=2000.0,
    num_views=2,
    num_cells=2,
    cell_pitch=1.0,
    pixel_size=1.0,
    image_shape=(2, 2),
)


def _raster(ellipses: Iterable[Ellipse], geometry: FanBeamGeometry, samples: int) -> np.ndarray:
    """Sum of the ellipses' HU, mean of every pixel, ``(H, W)``, float64."""
    from .phantom_kernels import add_means

    x, y = geometry.pixel_coordinates()
    half = geometry.pixel_size / 2
    image = np.zeros(geometry.image_shape)
    add_means(_table(ellipses), x[0] - half, y[0] - half, geometry.pixel_size, samples, image)
    return image


def _chords(ellipses: Iterable[Ellipse], geometry: FanBeamGeometry) -> np.ndarray:
    """Sum of the ellipses' HU times the length of the ray in them, ``(V, D)``, float64."""
    from .phantom_kernels import add_chords

    ellipses = list(ellipses)
    for e in ellipses:
        if math.hypot(e.x, e.y) + e.reach >= geometry.source_to_center:
            raise ValueError(f"the source would run through {e}, source_to_center is {geometry.source_to_center} mm")
    total = np.zeros(geometry.sinogram_shape)
    add_chords(_table(ellipses), geometry.view_angles, geometry.fan_angles, geometry.source_to_center, total)
    return total


def _table(ellipses: Iterable[Ellipse]) -> np.ndarray:
    """Ellipses as the kernels read them, ``(N, 9)``."""
    rows = [(e.x, e.y, *e.to_circle().ravel(), 1 - e.softness, 1 + e.softness, e.hu) for e in ellipses]
    return np.array(rows, dtype=np.float64).reshape(-1, 9)


def _random_field(seed: int) -> np.ndarray:
    """Texture of standard deviation 1 on its grid, ``(N, N)``, float64."""
    noise = np.random.default_rng(seed).standard_normal((TEXTURE_GRID, TEXTURE_GRID))
    axis = np.fft.fftfreq(TEXTURE_GRID, TEXTURE_PIXEL)
    frequency = np.hypot(axis[:, None], axis[None, : TEXTURE_GRID // 2 + 1])
    low, high = (1 / wavelength for wavelength in _TEXTURE_BAND[::-1])
    inside = (frequency >= low) & (frequency <= high)
    amplitude = np.where(inside, np.maximum(frequency, low) ** (-_TEXTURE_POWER / 2), 0)
    field = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, noise.shape)
    return field / field.std()


#: Diameter in mm and contrast in HU of the rods of the MITA low-contrast phantom (CCT189).
LOW_CONTRAST_RODS = ((3.0, 14.0), (5.0, 7.0), (7.0, 5.0), (10.0, 3.0))
#: Contrast to water of the inserts, HU: air, fat-like plastic, acrylic-like, bone-like.
INSERTS = (-1000.0, -100.0, 120.0, 350.0)

_ROD_RADIUS, _ROD_COPIES, _INSERT_RADIUS = 60.0, 2, 50.0


def low_contrast_phantom(rods: Sequence[tuple[float, float]] = LOW_CONTRAST_RODS) -> Phantom:
    """A water disc of 200 mm with low-contrast rods on a circle, twice each, named ``rod <diameter> mm``.

    The same disc without any rod, ``rods=()``, is what an observer is shown beside it, at the same places
    (:func:`rod_places`): noise, and whatever pattern a method leaves there, are then the same with and without a rod.

    Args:
        rods: diameter in mm and contrast in HU of each rod.

    Source: rods of the CCT189 phantom for NEMA/MITA XR-29 related task-based evaluation; FDA's LCD-CT
    (github.com/DIDSR/LCD-CT) measures the same four.
    """
    present = rod_places(len(rods))
    circles = [
        Ellipse(x, y, diameter / 2, diameter / 2, contrast, name=f"rod {diameter:g} mm")
        for (x, y), (diameter, contrast) in zip(present, list(rods) * _ROD_COPIES)
    ]
    return Phantom(name="low contrast", ellipses=(Ellipse(0, 0, 100, 100, 1000.0, name="body"), *circles))


def rod_places(num_rods: int = len(LOW_CONTRAST_RODS)) -> list[tuple[float, float]]:
    """x and y of the rods of :func:`low_contrast_phantom`, mm: all of them once around, and again."""
    count = _ROD_COPIES * num_rods
    angles = [2 * math.pi * (k + 0.25) / count for k in range(count)]
    return [(_ROD_RADIUS * math.cos(a), _ROD_RADIUS * math.sin(a)) for a in angles]


def insert_phantom(contrasts: Sequence[float] = INSERTS, diameter: float = 20.0) -> Phantom:
    """A water disc of 200 mm with sharp discs on a circle, named ``insert <contrast> HU``, for the task transfer.

    Args:
        contrasts: to water, HU.
        diameter: of the discs, mm.
    """
    discs = []
    for k, contrast in enumerate(contrasts):
        angle = 2 * math.pi * (k + 0.5) / len(contrasts)
        x, y = _INSERT_RADIUS * math.cos(angle), _INSERT_RADIUS * math.sin(angle)
        discs.append(Ellipse(x, y, diameter / 2, diameter / 2, contrast, name=f"insert {contrast:+g} HU"))
    return Phantom(name="inserts", ellipses=(Ellipse(0, 0, 100, 100, 1000.0, name="body"), *discs))
