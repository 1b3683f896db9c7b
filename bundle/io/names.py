"""Names of files, and what an error says."""

from __future__ import annotations

from pathlib import Path

NIFTI_SUFFIXES = (".nii.gz", ".nii")


def scan_name(path: Path) -> str:
    """File name without the ending that tells its format."""
    lower = path.name.lower()
    for suffix in (*NIFTI_SUFFIXES, ".npz", ".dcm", ".dicom", ".ima"):
        if lower.endswith(suffix) and len(lower) > len(suffix):
            return path.name[: -len(suffix)]
    return path.name


def error_text(error: Exception) -> str:
    """The message, or the kind of error where it has none."""
    return str(error) or type(error).__name__
