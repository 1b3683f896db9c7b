"""Phantom scans as files."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from bundle.physics import FanBeamGeometry


@pytest.fixture
def geometry():
    return FanBeamGeometry(
        source_to_center=746.02,
        source_to_detector=1361.2,
        num_views=12,
        num_cells=16,
        cell_pitch=40.0,
        pixel_size=2.5,
        image_shape=(10, 14),
    )


@pytest.fixture
def head():
    """HU ``(S, H, W)`` in the project's axes with nothing symmetric: a nose (front), a mark at the left, a top."""
    image = np.full((3, 20, 24), -1000, dtype=np.int16)
    image[:, 4:16, 6:18] = 30
    image[:, 2:4, 11:13] = 40  # nose: low rows are in front
    image[:, 9:11, 16:18] = 900  # left ear: high columns are to the left
    image[2] += 5  # the uppermost slice
    return image


@pytest.fixture
def write_head(tmp_path, head):
    """Write the head as NIfTI in any axes; gives path, array and affine of the file."""

    def write(axes="RAS", name="head.nii.gz", spacing=(1.5, 1.5, 4.0), rotation=None, image=head):
        wanted = nib.orientations.axcodes2ornt(tuple(axes))
        lps = image.transpose(2, 1, 0)
        affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
        if rotation is not None:
            affine[:3, :3] = rotation @ affine[:3, :3]
        affine[:3, 3] = 12.25, -7.5, 100.125
        turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt(("L", "P", "S")), wanted)
        data = nib.orientations.apply_orientation(lps, turn)
        affine = affine @ nib.orientations.inv_ornt_aff(turn, lps.shape)
        path = tmp_path / name
        nib.save(nib.Nifti1Image(data, affine), path)
        return path, data, affine

    return write


@pytest.fixture
def write_slice(tmp_path):
    """Write one uncompressed DICOM CT slice; any tag can be set, or removed with None."""
    series = generate_uid(entropy_srcs=["series"])

    def write(name, image_hu, *, z=0.0, **tags):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = Dataset()
        dataset.file_meta = meta
        fields = {
            "SOPClassUID": CTImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "SeriesInstanceUID": series,
            "Modality": "CT",
            "PatientID": "phantom-1",
            "Rows": image_hu.shape[0],
            "Columns": image_hu.shape[1],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 0,
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
            "PixelSpacing": [1.5, 1.5],
            "SliceThickness": 4,
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [-12, -7.5, z],
            "PixelData": (image_hu.astype(np.int32) + 1024).astype("<u2").tobytes(),
        }
        for tag, value in (fields | tags).items():
            if value is not None:
                setattr(dataset, tag, value)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write
