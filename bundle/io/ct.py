"""CT images: NIfTI and DICOM in, NIfTI out. Axes inside the project: slices, rows to posterior, columns to left."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import torch
from monai.data import NibabelReader, PydicomReader
from nibabel import orientations
from pydicom.errors import InvalidDicomError
from torch import Tensor

from bundle.physics import FanBeamGeometry

from .writing import replace_when_complete

NIFTI_SUFFIXES = (".nii.gz", ".nii")
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
        for axis, count in zip(self.axes, _three(self.shape)):
            length[next(ends for ends in length if axis in ends)] = count
        columns, rows, slices = length.values()
        return slices, rows, columns

    def with_slices(self, first: int, step: int, count: int) -> ScanFrame:
        """The frame of ``count`` of its slices: ``first``, ``first + step``, ... in the project's axes."""
        slices, rows, columns = self.stack_shape
        if (first, step, count) == (0, 1, slices):
            return self
        turned = np.asarray(self.affine) @ orientations.inv_ornt_aff(_turn(self.axes, PROJECT_AXES), _three(self.shape))
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


def read_ct(path: str | Path | Sequence[str | Path]) -> CTVolume:
    """Read one CT scan: a NIfTI file, a DICOM file, a folder with one DICOM series, or the files of a series.

    A leaning gantry is accepted: the slice plane is then the plane that the source ran in.

    Raises:
        ValueError: names the file; it is missing, broken, no CT, in colour, multi-frame or 4-D; its slices are not
            axial, its pixels not square, its values not finite; a folder holds no or several series.
    """
    if isinstance(path, (str, Path)):
        path = Path(path)
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        if path.is_dir():
            return _read_series(_only_series(path))
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            return _read_nifti(path)
        return _read_series([path])
    return _read_series([Path(file) for file in path])


def write_nifti(
    image_hu: Tensor, like: ScanFrame | FanBeamGeometry, path: str | Path, *, overwrite: bool = False
) -> Path:
    """Write a stack in HU as float32 NIfTI, in the array axes, shape and affine of the file that it came from.

    Args:
        image_hu: ``(S, H, W)`` in the project's axes.
        like: frame of the scan (a :class:`CTVolume` is one), or a geometry: centred, slices 1 mm apart.
        path: ends in ``.nii`` or ``.nii.gz``; missing folders are made.
        overwrite: whether an existing file may be replaced.

    Raises:
        ValueError: wrong suffix or shape, values not finite, or the file exists and must not be overwritten.
    """
    path = Path(path)
    if not path.name.lower().endswith(NIFTI_SUFFIXES):
        raise ValueError(f"{path}: expected a name that ends in .nii or .nii.gz")
    if image_hu.ndim != 3:
        raise ValueError(f"image_hu must be (slices, rows, columns), got shape {tuple(image_hu.shape)}")
    if isinstance(like, FanBeamGeometry):
        like = ScanFrame.from_geometry(like, image_hu.shape[0], "", "")
    if tuple(image_hu.shape) != like.stack_shape:
        raise ValueError(f"image_hu has shape {tuple(image_hu.shape)}, the scan it belongs to has {like.stack_shape}")
    values = image_hu.detach().to("cpu", torch.float32).numpy()
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: image_hu has NaN or infinite values, nothing was written")
    back = _turn(PROJECT_AXES, like.axes)
    data = orientations.apply_orientation(values.transpose(2, 1, 0), back).reshape(like.shape)
    if like.header is None:
        image = nib.Nifti1Image(data, np.asarray(like.affine))
    else:
        image = _with_header(data, base64.b64decode(like.header))
    image.set_data_dtype(np.float32)
    image.header.set_xyzt_units("mm", image.header.get_xyzt_units()[1])
    with replace_when_complete(path, overwrite=overwrite) as partial:
        nib.save(image, partial)
    return path


def _with_header(data: np.ndarray, block: bytes) -> nib.Nifti1Image:
    # Affine None: the header keeps its own two codings (sform, qform), so a reader finds the same affine to the bit.
    if len(block) == nib.Nifti2Header.template_dtype.itemsize:
        return nib.Nifti2Image(data, None, nib.Nifti2Header(block))
    return nib.Nifti1Image(data, None, nib.Nifti1Header(block))


def _read_nifti(path: Path) -> CTVolume:
    reader = NibabelReader(squeeze_non_spatial_dims=False)
    try:
        # The reader alone, not LoadImage: that would try its other readers on a broken file.
        image = reader.read(path)
        header = base64.b64encode(image.header.binaryblock).decode("ascii")
        shape = image.shape
        if image.get_data_dtype().kind not in "iuf":
            raise ValueError(f"expected one number a voxel, got {image.get_data_dtype()}")
        if not 2 <= len(shape) <= 3 and not (len(shape) > 3 and set(shape[3:]) == {1}):
            raise ValueError(f"expected a 2-D or 3-D image, got shape {shape}")
        data, meta = reader.get_data(image)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as a NIfTI CT image: {_text(error)}") from error
    return _volume(
        np.asarray(data, dtype=np.float32),
        np.asarray(meta["affine"], dtype=np.float64),
        shape=shape,
        patient=scan_name(path),
        source=path,
        header=header,
    )


def _read_series(files: Sequence[Path]) -> CTVolume:
    if not files:
        raise ValueError("expected at least one DICOM file, got an empty list")
    headers = {file: _checked_header(file) for file in files}
    first = headers[files[0]]
    for file, header in headers.items():
        for tag in ("SeriesInstanceUID", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
            ours, theirs = header[tag].value, first[tag].value
            if ours != theirs and not _nearly(ours, theirs):
                raise ValueError(f"{file}: {tag} is {ours}, but {theirs} in {files[0]}: not one stack of slices")
    across, down = np.asarray(first.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    normal = np.cross(across, down)
    if not 0.99 < np.linalg.norm(normal) < 1.01:
        raise ValueError(
            f"{files[0]}: ImageOrientationPatient must be two unit vectors at right angles, got "
            f"{first.ImageOrientationPatient}"
        )
    # Here already: a stack of coronal slices, turned, would be axial, but no gantry ever took such slices.
    _check_axial(across, down, files[0])
    position = {file: np.asarray(header.ImagePositionPatient, dtype=np.float64) for file, header in headers.items()}
    # By place, not by InstanceNumber as MONAI's own series reader sorts: numbers may be missing or run either way.
    files = sorted(files, key=lambda file: float(position[file] @ normal))
    step = _slice_step([position[file] for file in files], files, normal, first)

    # The affine is made here: MONAI's reader takes the identity, with a warning, where a number is written too long.
    affine = np.eye(4)
    row_spacing, column_spacing = (float(value) for value in first.PixelSpacing)
    columns = (across * column_spacing, down * row_spacing, step, position[files[0]])
    # RAS, where DICOM counts to left and to posterior; + 0 makes -0 0.
    affine[:3] = np.stack(columns, axis=1) * [[-1], [-1], [1]] + 0.0

    slices = []
    reader = PydicomReader()
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="PydicomReader: ImageOrientationPatient")
                pixels, _ = reader.get_data(reader.read(file))
        except Exception as error:
            raise ValueError(f"{file}: the pixels of this DICOM file cannot be read: {_text(error)}") from error
        slices.append(np.asarray(pixels, dtype=np.float32))
    data = np.stack(slices, axis=-1)
    patient = str(first.get("PatientID", "") or "").strip() or scan_name(files[0])
    return _volume(data, affine, shape=data.shape, patient=patient, source=files[0], header=None)


def _checked_header(file: Path) -> pydicom.Dataset:
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True)
    except InvalidDicomError:
        raise ValueError(f"{file}: expected a NIfTI or DICOM file, and it is neither") from None
    except Exception as error:
        raise ValueError(f"{file}: broken DICOM file: {_text(error)}") from error
    modality = header.get("Modality", "none")
    if modality != "CT":
        raise ValueError(f"{file}: expected modality CT, got {modality}")
    if header.get("SamplesPerPixel", 1) != 1:
        raise ValueError(f"{file}: expected one value a pixel, got a colour image ({header.SamplesPerPixel} samples)")
    if str(header.get("NumberOfFrames", 1) or 1) != "1":
        raise ValueError(f"{file}: expected one slice a file, got a multi-frame image of {header.NumberOfFrames}")
    needed = {
        "Rows": 1,
        "Columns": 1,
        "PixelSpacing": 2,
        "ImageOrientationPatient": 6,
        "ImagePositionPatient": 3,
        "RescaleSlope": 1,
        "RescaleIntercept": 1,
        "SeriesInstanceUID": 1,
    }
    for tag, count in needed.items():
        value = header.get(tag)
        if value is None or np.size(value) != count:
            raise ValueError(f"{file}: a CT slice needs {tag} with {count} value(s), got {value}")
    return header


def _slice_step(
    positions: list[np.ndarray], files: Sequence[Path], normal: np.ndarray, header: pydicom.Dataset
) -> np.ndarray:
    """Way from one slice to the next in mm, DICOM axes."""
    if len(positions) == 1:
        thickness = float(header.get("SliceThickness") or 1.0)
        return normal * (thickness if math.isfinite(thickness) and thickness > 0 else 1.0)
    places = np.stack(positions)
    step = (places[-1] - places[0]) / (len(places) - 1)
    gap = float(step @ normal)
    wrong = np.abs(np.diff(places @ normal) - gap)
    worst = int(wrong.argmax())
    if gap <= 1e-3 or wrong[worst] > 0.1 * gap + 0.01:
        raise ValueError(
            f"{files[worst]} and {files[worst + 1]}: slices must be evenly spaced, got a step of "
            f"{np.diff(places @ normal)[worst]:.3f} mm where the series has {gap:.3f} mm (a slice missing or twice?)"
        )
    return step


def _only_series(folder: Path) -> list[Path]:
    series = dicom_series(sorted(file for file in folder.iterdir() if file.is_file()))
    if len(series) != 1:
        raise ValueError(f"{folder}: expected one DICOM series, got {len(series)}")
    return [Path(file) for file in next(iter(series.values()))["files"]]


def dicom_series(files: Sequence[Path]) -> dict[str, dict]:
    """Group DICOM files by series: UID to ``files``, ``patient`` and ``modality``. Other files are left out."""
    series: dict[str, dict] = {}
    tags = ["SeriesInstanceUID", "PatientID", "Modality"]
    for file in files:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
        except InvalidDicomError:
            continue
        except Exception as error:
            raise ValueError(f"{file}: broken DICOM file: {_text(error)}") from error
        uid = header.get("SeriesInstanceUID")
        if uid is None:  # a DICOMDIR, not an image
            continue
        entry = series.setdefault(
            str(uid),
            {
                "files": [],
                "patient": str(header.get("PatientID", "") or "").strip(),
                "modality": str(header.get("Modality", "none")),
            },
        )
        entry["files"].append(str(file))
    return series


def scan_name(path: Path) -> str:
    """File name without the ending that tells its format."""
    lower = path.name.lower()
    for suffix in (*NIFTI_SUFFIXES, ".npz", ".dcm", ".dicom", ".ima"):
        if lower.endswith(suffix) and len(lower) > len(suffix):
            return path.name[: -len(suffix)]
    return path.name


def _volume(
    data: np.ndarray, affine: np.ndarray, *, shape: Sequence[int], patient: str, source: Path, header: str | None
) -> CTVolume:
    if 0 in data.shape:
        raise ValueError(f"{source}: the image is empty, its shape is {tuple(shape)}")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError(f"{source}: the affine does not place the voxels in space: {affine.tolist()}")
    if not np.isfinite(data).all():
        raise ValueError(f"{source}: the image has NaN or infinite values, expected HU")
    axes = "".join(orientations.aff2axcodes(affine))
    turn = _turn(axes, PROJECT_AXES)
    data = data.reshape(_three(shape))
    pixel_size = _checked_plane(affine @ orientations.inv_ornt_aff(turn, data.shape), source)
    image = np.ascontiguousarray(orientations.apply_orientation(data, turn).transpose(2, 1, 0))
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


def _checked_plane(affine: np.ndarray, source: Path) -> float:
    """Pixel size of an affine in the project's axes, if its slices are axial and its pixels square."""
    to_left, to_posterior = affine[:3, 0], affine[:3, 1]
    across, down = np.linalg.norm(to_left), np.linalg.norm(to_posterior)
    if abs(across - down) > 1e-3 * max(across, down):
        raise ValueError(f"{source}: expected square pixels, got {across:.5g} mm by {down:.5g} mm")
    if abs(to_left @ to_posterior) > 2e-3 * across * down:
        raise ValueError(f"{source}: expected rows and columns at right angles, the affine shears the slice")
    _check_axial(to_left, to_posterior, source)
    return float(across + down) / 2


def _check_axial(across: np.ndarray, down: np.ndarray, source: Path) -> None:
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


def _turn(axes: str, wanted: str) -> np.ndarray:
    """nibabel's orientation that turns an array with ``axes`` to ``wanted``."""
    return orientations.ornt_transform(orientations.axcodes2ornt(tuple(axes)), orientations.axcodes2ornt(tuple(wanted)))


def _three(shape: Sequence[int]) -> tuple[int, int, int]:
    first, second, *rest = shape
    return first, second, (rest[0] if rest else 1)


def _nearly(ours: object, theirs: object) -> bool:
    try:
        return np.allclose(np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float), atol=1e-4)
    except (TypeError, ValueError):
        return False


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
