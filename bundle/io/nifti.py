"""NIfTI in and out."""

from __future__ import annotations

import base64
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import NibabelReader
from nibabel import orientations
from torch import Tensor

from bundle.physics import FanBeamGeometry

from .frame import PROJECT_AXES, CTVolume, ScanFrame, make_volume, turn
from .names import NIFTI_SUFFIXES, error_text, scan_name
from .writing import replace_when_complete


def read_nifti(path: Path) -> CTVolume:
    """The CT image of a NIfTI file; errors as :func:`bundle.io.read_ct`."""
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
        raise ValueError(f"{path}: cannot be read as a NIfTI CT image: {error_text(error)}") from error
    return make_volume(
        np.asarray(data, dtype=np.float32),
        np.asarray(meta["affine"], dtype=np.float64),
        shape=shape,
        patient=scan_name(path),
        source=path,
        header=header,
    )


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
    back = turn(PROJECT_AXES, like.axes)
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
