"""Which scans lie under a path, and how they are parted into training and validation."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from .dicom import dicom_series
from .names import NIFTI_SUFFIXES, scan_name

logger = logging.getLogger(__name__)


def find_scans(path: str | Path) -> list[dict]:
    """Find every NIfTI, NPZ and DICOM series at or below a path.

    Files of other kinds are passed over, and so are series of other modalities when there is any scan beside them.

    Returns:
        One dict a scan, ordered by name: ``path`` (a file, or the files of a DICOM series), ``patient`` (DICOM
        PatientID, else the name), ``name`` (of output files, unique), ``kind`` (``ct`` or ``sinogram``).

    Raises:
        ValueError: names the path; nothing is there, no scan is in it, or the series in it are no CT.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    root = path if path.is_dir() else path.parent
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    files = [file for file in files if not file.name.startswith(".")]
    scans = []
    others = []
    for file in files:
        if file.name.lower().endswith(NIFTI_SUFFIXES):
            scans.append({"path": str(file), "patient": "", "kind": "ct", "at": file})
        elif file.suffix.lower() == ".npz":
            scans.append({"path": str(file), "patient": "", "kind": "sinogram", "at": file})
        else:
            others.append(file)
    skipped = Counter()
    for series in dicom_series(others).values():
        if series["modality"] != "CT":
            skipped[series["modality"]] += 1
            continue
        paths = series["files"]
        # A folder of slices is one scan and has the folder's name; a lone file has its own.
        at = Path(paths[0]) if len(paths) == 1 else Path(paths[0]).parent
        path_or_paths = paths[0] if len(paths) == 1 else paths
        scans.append({"path": path_or_paths, "patient": series["patient"], "kind": "ct", "at": at})
    if not scans:
        found = ", ".join(f"{count} of modality {name}" for name, count in skipped.items()) or "none"
        raise ValueError(f"{path}: expected NIfTI, NPZ or DICOM CT scans, found none (other DICOM series: {found})")
    if skipped:
        logger.warning("%s: passed over DICOM series that are no CT: %s", path, dict(skipped))
    _name(scans, root)
    return sorted(scans, key=lambda scan: scan["name"])


def split_by_patient(
    scans: Sequence[dict],
    validation: str | Sequence[str] | float,
    exclude: str | Sequence[str] = (),
    seed: int = 0,
) -> dict[str, list[dict]]:
    """Part scans into ``training`` and ``validation`` so that no patient is in both.

    Args:
        scans: items with ``patient``, as :func:`find_scans` gives them.
        validation: patients or patterns such as ``head_*``; or the fraction of patients, drawn by ``seed``.
        exclude: patients or patterns that belong to neither side, such as those kept for a test.
        seed: of the draw; unused when ``validation`` names patients.

    Raises:
        ValueError: a pattern matches no patient, a fraction is not between 0 and 1, or a side would be empty.
    """
    patients = sorted({scan["patient"] for scan in scans})
    left_out = _matching("exclude", exclude, patients)
    remaining = [patient for patient in patients if patient not in left_out]
    if isinstance(validation, (int, float)):
        if not 0 < validation < 1:
            raise ValueError(f"validation must be a fraction between 0 and 1, or patients, got {validation}")
        count = max(1, round(validation * len(remaining)))
        drawn = np.random.default_rng(seed).permutation(len(remaining))[:count]
        held = {remaining[index] for index in drawn}
    else:
        held = _matching("validation", validation, remaining)
    parts = {
        "training": [scan for scan in scans if scan["patient"] not in held | left_out],
        "validation": [scan for scan in scans if scan["patient"] in held],
    }
    for side, items in parts.items():
        if not items:
            raise ValueError(
                f"the {side} side of the split is empty: of patients {patients}, validation takes {sorted(held)} "
                f"and exclude {sorted(left_out)}"
            )
    return parts


def _matching(argument: str, patterns: str | Sequence[str], patients: list[str]) -> set[str]:
    matched = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = {patient for patient in patients if fnmatchcase(patient, pattern)}
        if not found:
            raise ValueError(f"{argument}: {pattern!r} matches none of the patients {patients}")
        matched |= found
    return matched


def _name(scans: list[dict], root: Path) -> None:
    """Give every scan a unique name, the file's own; where two are alike, with its folders, then with a number."""
    own = [_plain(scan_name(scan["at"])) for scan in scans]
    shared = Counter(own)
    taken = Counter()
    for scan, name in zip(scans, own):
        at = scan.pop("at")
        if shared[name] > 1:
            name = _plain("_".join([*at.parent.relative_to(root).parts, name]))
        taken[name] += 1
        scan["name"] = name if taken[name] == 1 else f"{name}_{taken[name]}"
        scan["patient"] = scan["patient"] or name


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)
