"""Reading CT images and writing results back where they came from."""

from __future__ import annotations

import math
import os

import nibabel as nib
import numpy as np
import pytest
import torch
from pydicom.data import get_testdata_file

from bundle.io import ScanFrame, read_ct, write_nifti


def about(axis: int, degrees: float) -> np.ndarray:
    """Rotation about a patient axis."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.eye(3)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    turn[[first, first, second, second], [first, second, first, second]] = c, -s, s, c
    return turn


ORIENTATIONS = ["RAS", "LPS", "LAS", "SLP", "PIR"]


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_image_has_project_axes_whatever_the_axes_of_the_file(axes, write_head, head):
    path, _, _ = write_head(axes)
    volume = read_ct(path)
    assert torch.equal(volume.image_hu, torch.from_numpy(head).float())
    assert volume.pixel_size == pytest.approx(1.5)
    assert volume.axes == axes and volume.patient == "head"


@pytest.mark.parametrize("axes", ORIENTATIONS)
@pytest.mark.parametrize("rotation", [None, about(0, 20), about(2, 7)], ids=["straight", "tilted", "turned"])
def test_nifti_round_trip_keeps_values_shape_and_affine_to_the_bit(axes, rotation, write_head, tmp_path):
    path, data, _ = write_head(axes, rotation=rotation)
    before = path.read_bytes()
    volume = read_ct(path)
    out = write_nifti(volume.image_hu, volume, tmp_path / "out.nii.gz")
    written, original = nib.load(out), nib.load(path)
    assert np.array_equal(written.affine, original.affine)
    assert written.shape == original.shape and written.get_data_dtype() == np.float32
    assert np.array_equal(np.asarray(written.dataobj), data)
    assert path.read_bytes() == before


def test_affine_that_only_the_quaternion_holds_is_kept_to_the_bit(write_head, tmp_path):
    path, data, affine = write_head("LPS", rotation=about(0, 11))
    image = nib.Nifti1Image(data, None)
    image.set_qform(affine, code=1)
    image.set_sform(None, code=0)
    nib.save(image, path)
    volume = read_ct(path)
    out = write_nifti(volume.image_hu, volume, tmp_path / "out.nii")
    assert np.array_equal(nib.load(out).affine, nib.load(path).affine)


@pytest.mark.parametrize("shape", [(24, 20), (24, 20, 1, 1)])
def test_single_slice_keeps_its_rank(shape, tmp_path, head):
    path = tmp_path / "slice.nii"
    nib.save(nib.Nifti1Image(head[0].T.reshape(shape), np.diag([-1.5, -1.5, 1, 1])), path)
    volume = read_ct(path)
    assert torch.equal(volume.image_hu, torch.from_numpy(head[:1]).float())
    assert nib.load(write_nifti(volume.image_hu, volume, tmp_path / "out.nii")).shape == shape


def test_frame_survives_json(write_head):
    volume = read_ct(write_head("PIR")[0])
    frame = ScanFrame.from_json(volume.to_json())
    assert ScanFrame.from_json(frame.to_json()) == frame
    assert np.array_equal(frame.affine, volume.affine) and frame.stack_shape == (3, 20, 24)


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_chosen_slices_stay_where_they_were(axes, write_head, tmp_path):
    volume = read_ct(write_head(axes)[0])
    frame = volume.with_slices(1, 1, 2)
    out = write_nifti(volume.image_hu[1:], frame, tmp_path / "out.nii")
    again = read_ct(out)
    assert torch.equal(again.image_hu, volume.image_hu[1:])
    # The mark's place in the patient is the same in both files.
    first = nib.load(volume.source)
    place = [
        nib.affines.apply_affine(i.affine, np.argwhere(np.asarray(i.dataobj) == 905)) for i in (first, nib.load(out))
    ]
    assert np.allclose(*(np.sort(p, axis=0) for p in place), atol=1e-4)


def test_jpeg_2000_slice_with_a_wrong_sign_flag_is_in_hu():
    """Real head slice with a gantry tilt of 22 degrees; its stream and its header disagree about the sign."""
    volume = read_ct(get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False))
    image = volume.image_hu[0]
    assert image.shape == (512, 512)
    assert volume.pixel_size == pytest.approx(0.431, abs=1e-4)
    air = image[(image > -1200) & (image < -800)]
    brain = image[200:320, 200:300]
    assert air.median() == pytest.approx(-1000, abs=15)
    assert 20 < brain[(brain > 0) & (brain < 80)].median() < 40
    normal = np.cross(np.asarray(volume.affine)[:3, 0], np.asarray(volume.affine)[:3, 1])
    assert math.degrees(math.acos(abs(normal[2]) / np.linalg.norm(normal))) == pytest.approx(22, abs=0.1)


def test_dicom_slice_lies_in_the_patient_as_its_header_says(write_slice, head, tmp_path):
    volume = read_ct(write_slice("one.dcm", head[0], z=-40.0))
    assert torch.equal(volume.image_hu[0], torch.from_numpy(head[0]).float())
    assert volume.patient == "phantom-1"
    expected = [[-1.5, 0, 0, 12], [0, -1.5, 0, 7.5], [0, 0, 4, -40], [0, 0, 0, 1]]
    assert np.allclose(volume.affine, expected)
    written = nib.load(write_nifti(volume.image_hu, volume, tmp_path / "one.nii.gz"))
    assert np.allclose(written.affine, expected) and written.shape == (24, 20, 1)


@pytest.mark.parametrize("numbers", [(1, 2, 3), (3, 2, 1), (None, None, None)])
def test_series_is_ordered_by_place_whatever_the_instance_numbers(numbers, write_slice, head, tmp_path):
    for name, z, number in zip("bca", range(3), numbers):
        write_slice(f"series/{name}", head[z], z=4.0 * z, InstanceNumber=number)
    (tmp_path / "series" / "notes.txt").write_text("no DICOM")
    volume = read_ct(tmp_path / "series")
    assert torch.equal(volume.image_hu, torch.from_numpy(head).float())
    assert np.allclose(np.asarray(volume.affine)[:3, 2], [0, 0, 4])


def test_leaning_gantry_series_keeps_its_slanted_affine(write_slice, head, tmp_path):
    across, down = [1, 0, 0], [0, math.cos(0.3), -math.sin(0.3)]
    for z in range(3):
        write_slice(f"series/{z}", head[z], z=4.0 * z, ImageOrientationPatient=[*across, *down])
    volume = read_ct(tmp_path / "series")
    assert torch.equal(volume.image_hu, torch.from_numpy(head).float())
    assert np.allclose(np.asarray(volume.affine)[:3, 2], [0, 0, 4])
    assert volume.pixel_size == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Modality": "MR"}, "expected modality CT, got MR"),
        ({"PixelSpacing": [1.5, 1.2]}, "expected square pixels, got .*1.2 mm"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "expected axial slices, got .* 90.0 degrees"),
        ({"ImageOrientationPatient": None}, "needs ImageOrientationPatient"),
        ({"RescaleIntercept": None}, "needs RescaleIntercept"),
        ({"NumberOfFrames": 3}, "multi-frame image of 3"),
        ({"SamplesPerPixel": 3}, "colour image"),
        ({"PixelData": b"\0\0"}, "pixels .* cannot be read"),
        ({"PixelData": None}, "pixels .* cannot be read"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_dicom_that_cannot_be_used_is_refused_by_name(tags, message, write_slice, head):
    path = write_slice("bad.dcm", head[0], **tags)
    with pytest.raises(ValueError, match=f"bad.dcm.*{message}"):
        read_ct(path)


def test_real_slice_of_another_modality_is_refused():
    with pytest.raises(ValueError, match="MR_small.dcm: expected modality CT, got MR"):
        read_ct(get_testdata_file("MR_small.dcm", download=False))


@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_truncated_jpeg_2000_slice_is_refused_by_name(part, tmp_path):
    with open(get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False), "rb") as file:
        whole = file.read()
    path = tmp_path / "cut.dcm"
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ValueError, match="cut.dcm"):
        read_ct(path)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.9])
@pytest.mark.parametrize("name", ["cut.nii", "cut.nii.gz"])
def test_truncated_nifti_is_refused_by_name(part, name, write_head):
    path, _, _ = write_head(name=name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ValueError, match=name):
        read_ct(path)


def test_files_that_are_no_images_are_refused_by_name(tmp_path):
    for name in ("letter.txt", "letter.nii", "letter.nii.gz", "letter.dcm"):
        (tmp_path / name).write_text("Dear colleague, " * 50)
        with pytest.raises(ValueError, match=name):
            read_ct(tmp_path / name)


def test_missing_file_and_folder_without_series_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        read_ct(tmp_path / "nowhere.nii")
    with pytest.raises(ValueError, match=f"{tmp_path.name}: expected one DICOM series, got 0"):
        read_ct(tmp_path)


def test_folder_with_two_series_is_refused(write_slice, head, tmp_path):
    write_slice("two/a", head[0])
    write_slice("two/b", head[0], SeriesInstanceUID="1.2.3")
    with pytest.raises(ValueError, match="expected one DICOM series, got 2"):
        read_ct(tmp_path / "two")


@pytest.mark.parametrize("places", [(0, 4, 12), (0, 4, 4)], ids=["missing", "twice"])
def test_series_with_a_gap_or_a_double_slice_is_refused(places, write_slice, head, tmp_path):
    for index, z in enumerate(places):
        write_slice(f"series/{index}", head[index], z=float(z))
    with pytest.raises(ValueError, match="evenly spaced"):
        read_ct(tmp_path / "series")


def test_series_of_unlike_slices_is_refused(write_slice, head, tmp_path):
    write_slice("series/a", head[0])
    write_slice("series/b", head[1], z=4.0, PixelSpacing=[1.4, 1.4])
    with pytest.raises(ValueError, match="b: PixelSpacing"):
        read_ct(tmp_path / "series")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing": (1.5, 1.2, 4.0)}, "expected square pixels, got 1.5 mm by 1.2 mm"),
        ({"rotation": about(1, 15)}, "expected axial slices, got a slice plane 15.0 degrees"),
        ({"rotation": about(0, 40)}, "expected axial slices"),
        ({"image": np.full((3, 20, 24), np.nan, np.float32)}, "NaN or infinite"),
        ({"image": np.zeros((3, 20, 24), np.complex64)}, "one number a voxel, got complex64"),
    ],
)
def test_nifti_that_cannot_be_used_is_refused_by_name(change, message, write_head):
    path, _, _ = write_head("LPS", **change)
    with pytest.raises(ValueError, match=f"head.nii.gz.*{message}"):
        read_ct(path)


def test_coronal_nifti_is_turned_but_not_mistaken(write_head, head):
    """Array axes in another order are the file's business; only slices too thick to be in-plane are refused."""
    path, _, _ = write_head("LSP", spacing=(1.5, 1.5, 1.5))
    assert torch.equal(read_ct(path).image_hu, torch.from_numpy(head).float())


def test_four_dimensional_nifti_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 2, 3), np.float32), np.eye(4)), tmp_path / "time.nii")
    with pytest.raises(ValueError, match=r"time.nii.*\(4, 4, 2, 3\)"):
        read_ct(tmp_path / "time.nii")


def test_existing_file_is_replaced_only_when_asked(write_head, tmp_path):
    volume = read_ct(write_head()[0])
    out = tmp_path / "out.nii"
    out.write_text("mine")
    with pytest.raises(ValueError, match="out.nii: exists"):
        write_nifti(volume.image_hu, volume, out)
    assert out.read_text() == "mine"
    write_nifti(volume.image_hu, volume, out, overwrite=True)
    assert torch.equal(read_ct(out).image_hu, volume.image_hu)


@pytest.mark.parametrize("existing", [None, b"mine"])
def test_failure_while_writing_leaves_nothing_half_written(existing, write_head, tmp_path, monkeypatch):
    volume = read_ct(write_head()[0])
    folder = tmp_path / "out"
    folder.mkdir()
    if existing:
        (folder / "out.nii").write_bytes(existing)

    def disk_full(image, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nib, "save", disk_full)
    with pytest.raises(OSError, match="disk full"):
        write_nifti(volume.image_hu, volume, folder / "out.nii", overwrite=True)
    assert [(p.name, p.read_bytes()) for p in folder.iterdir()] == ([("out.nii", existing)] if existing else [])


def test_write_refuses_what_does_not_fit(write_head, tmp_path):
    volume = read_ct(write_head()[0])
    out = tmp_path / "out.nii"
    with pytest.raises(ValueError, match=r"\(2, 20, 24\).*\(3, 20, 24\)"):
        write_nifti(volume.image_hu[:2], volume, out)
    with pytest.raises(ValueError, match="out.nii: image_hu has NaN"):
        write_nifti(volume.image_hu * math.nan, volume, out)
    with pytest.raises(ValueError, match=".nii or .nii.gz"):
        write_nifti(volume.image_hu, volume, tmp_path / "out.mha")
    assert not os.path.exists(out)


def test_image_of_a_measured_scan_is_centred(geometry, tmp_path):
    image = torch.arange(3 * 10 * 14).reshape(3, 10, 14).float()
    out = nib.load(write_nifti(image, geometry, tmp_path / "out.nii"))
    corners = nib.affines.apply_affine(out.affine, [[0, 0, 0], [13, 9, 2]])
    assert np.allclose(corners, [[16.25, 11.25, -1], [-16.25, -11.25, 1]])
    assert torch.equal(read_ct(tmp_path / "out.nii").image_hu, image)
