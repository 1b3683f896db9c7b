"""CT images, whatever the format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .dicom import only_series, read_series
from .frame import CTVolume
from .names import NIFTI_SUFFIXES
from .nifti import read_nifti


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
            return read_series(only_series(path))
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            return read_nifti(path)
        return read_series([path])
    return read_series([Path(file) for file in path])
