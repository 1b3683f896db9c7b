"""Where the slices of a CT scan lie. Axes inside the project: slices, rows to posterior, columns to left."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nibabel import orientations
from torch import Tensor

from bundle.physics import FanBeamGeometry

#: NIfTI array order of the project's axes before they are turned to slices first: left, posterior, superior.
PROJECT_AXES = "LPS"
#: Gantries lean up to 30 degrees, and then the leaning plane is the one that the source runs in.
LARGEST_TILT = 31.0
#: How far a slice may lean to the patient's side before it is no axial slice any more.
LARGEST_SIDE_LEAN = 10.0


@dataclass(frozen=True, kw_only=True)
class ScanFrame:
    """Where a stack of slices lies in its file: all that writing a result back needs, without the pixels.

    Args:
        affine: voxel index to RAS position in mm of the file as it is, four rows of four.
        axes: where the file's array axes point to, such as ``LPS``.
        shape: array shape of the file.
        pixel_size: side of a square pixel in the slice, mm.
        patient: who was scanned; never shared by a training and a validation set.
        source: the file read, or the first of a series.
        header: the NIfTI header in base64, so that its own coding of the affine survives; None for other files.
    """

    affine: tuple[tuple[float, ...], ...]
    axes: str
    shape: tuple[int, ...]
    pixel_size: float
    patient: str
    source: str
    header: str | None = None

    def __post_init__(self) -> None:
        # JSON has no tuples; without this two equal frames would compare unequal.
        object.__setattr__(self, "affine", tuple(tuple(float(v) for v in row) for row in self.affine))
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @property
    def stack_shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns of the stack in the project's axes."""
        length = {"RL": 0, "AP": 0, "IS": 0}
        for axis, count in zip(self.axes, three(self.shape)):
            length[next(ends for ends in length if axis in ends)] = count
        columns, rows, slices = length.values()
        return slices, rows, columns

    def with_slices(self, first: int, step: int, count: int) -> ScanFrame:
        """The frame of ``count`` of its slices: ``first``, ``first + step``, ... in the project's axes."""
        slices, rows, columns = self.stack_shape
        if (first, step, count) == (0, 1, slices):
            return self
        turned = np.asarray(self.affine) @ orientations.inv_ornt_aff(turn(self.axes, PROJECT_AXES), three(self.shape))
        pick = np.eye(4)
        pick[2, 2], pick[2, 3] = step, first
        return dataclasses.replace(
            self, affine=turned @ pick, axes=PROJECT_AXES, shape=(columns, rows, count), header=None
        )

    def to_json(self) -> str:
        """The frame as a JSON object: a string passes through every collate function."""
        return json.dumps({field.name: getattr(self, field.name) for field in dataclasses.fields(ScanFrame)})

    @classmethod
    def from_json(cls, text: str) -> ScanFrame:
        """The frame that :meth:`to_json` wrote."""
        return ScanFrame(**json.loads(text))

    @classmethod
    def from_geometry(cls, geometry: FanBeamGeometry, num_slices: int, patient: str, source: str) -> ScanFrame:
        """The frame of an image that has only a scan geometry: centred on the rotation centre, slices 1 mm apart."""
        x, y = geometry.pixel_coordinates()
        affine = np.diag([-geometry.pixel_size, -geometry.pixel_size, 1.0, 1.0])
        # RAS turns the project's x (to the left) and y (to posterior) around.
        affine[:3, 3] = -x[0], -y[0], -(num_slices - 1) / 2
        return ScanFrame(
            affine=affine,
            axes=PROJECT_AXES,
            shape=(*geometry.image_shape[::-1], num_slices),
            pixel_size=geometry.pixel_size,
            patient=patient,
            source=source,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class CTVolume(ScanFrame):
    """A CT scan: its frame and its pixels.

    Args:
        image_hu: HU, float32 ``(S, H, W)``: slices to superior, rows to posterior, columns to the patient's left.
    """

    image_hu: Tensor


def make_volume(
    data: np.ndarray, affine: np.ndarray, *, shape: Sequence[int], patient: str, source: Path, header: str | None
) -> CTVolume:
    """The volume of an array as the file has it, if its slices are axial, its pixels square, its values finite."""
    if 0 in data.shape:
        raise ValueError(f"{source}: the image is empty, its shape is {tuple(shape)}")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError(f"{source}: the affine does not place the voxels in space: {affine.tolist()}")
    if not np.isfinite(data).all():
        raise ValueError(f"{source}: the image has NaN or infinite values, expected HU")
    axes = "".join(orientations.aff2axcodes(affine))
    to_project = turn(axes, PROJECT_AXES)
    data = data.reshape(three(shape))
    pixel_size = _checked_plane(affine @ orientations.inv_ornt_aff(to_project, data.shape), source)
    image = np.ascontiguousarray(orientations.apply_orientation(data, to_project).transpose(2, 1, 0))
    return CTVolume(
        image_hu=torch.from_numpy(image),
        affine=affine,
        axes=axes,
        shape=shape,
        pixel_size=pixel_size,
        patient=patient,
        source=str(source),
        header=header,
    )


def check_axial(across: np.ndarray, down: np.ndarray, source: Path) -> None:
    """Whether two directions in the slice, LPS or RAS, span a plane that a CT gantry can run in."""
    normal = np.cross(across, down)
    normal = np.abs(normal) / np.linalg.norm(normal)
    tilt = math.degrees(math.acos(min(1.0, normal[2])))
    lean = math.degrees(math.asin(min(1.0, normal[0])))
    if tilt > LARGEST_TILT or lean > LARGEST_SIDE_LEAN:
        raise ValueError(
            f"{source}: expected axial slices, got a slice plane {tilt:.1f} degrees off the axial plane "
            f"({lean:.1f} to the side); a gantry tilt up to 30 degrees is accepted"
        )


def turn(axes: str, wanted: str) -> np.ndarray:
    """nibabel's orientation that turns an array with ``axes`` to ``wanted``."""
    return orientations.ornt_transform(orientations.axcodes2ornt(tuple(axes)), orientations.axcodes2ornt(tuple(wanted)))


def three(shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape with its third axis, which a single slice may lack."""
    first, second, *rest = shape
    return first, second, (rest[0] if rest else 1)


def _checked_plane(affine: np.ndarray, source: Path) -> float:
    """Pixel size of an affine in the project's axes, if its slices are axial and its pixels square."""
    to_left, to_posterior = affine[:3, 0], affine[:3, 1]
    across, down = np.linalg.norm(to_left), np.linalg.norm(to_posterior)
    if abs(across - down) > 1e-3 * max(across, down):
        raise ValueError(f"{source}: expected square pixels, got {across:.5g} mm by {down:.5g} mm")
    if abs(to_left @ to_posterior) > 2e-3 * across * down:
        raise ValueError(f"{source}: expected rows and columns at right angles, the affine shears the slice")
    check_axial(to_left, to_posterior, source)
    return float(across + down) / 2
