"""DICOM series in."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from monai.data import PydicomReader
from pydicom.errors import InvalidDicomError

from .frame import CTVolume, check_axial, make_volume
from .names import error_text, scan_name


def read_series(files: Sequence[Path]) -> CTVolume:
    """The CT image of one series, a slice a file; errors as :func:`bundle.io.read_ct`."""
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
    check_axial(across, down, files[0])
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
            raise ValueError(f"{file}: the pixels of this DICOM file cannot be read: {error_text(error)}") from error
        slices.append(np.asarray(pixels, dtype=np.float32))
    data = np.stack(slices, axis=-1)
    patient = str(first.get("PatientID", "") or "").strip() or scan_name(files[0])
    return make_volume(data, affine, shape=data.shape, patient=patient, source=files[0], header=None)


def only_series(folder: Path) -> list[Path]:
    """The files of the one series of a folder."""
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
            raise ValueError(f"{file}: broken DICOM file: {error_text(error)}") from error
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


def _checked_header(file: Path) -> pydicom.Dataset:
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True)
    except InvalidDicomError:
        raise ValueError(f"{file}: expected a NIfTI or DICOM file, and it is neither") from None
    except Exception as error:
        raise ValueError(f"{file}: broken DICOM file: {error_text(error)}") from error
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


def _nearly(ours: object, theirs: object) -> bool:
    try:
        return np.allclose(np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float), atol=1e-4)
    except (TypeError, ValueError):
        return False
