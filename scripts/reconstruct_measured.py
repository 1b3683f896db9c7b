"""Reconstruct a measured fan-beam sinogram of the Helsinki Tomography Challenge 2022, and compare it with its truth.

    python scripts/reconstruct_measured.py --sinogram htc2022_ta_full.mat --segmentation htc2022_ta_seg.mat \
        --output docs/figures/measured_ta.png --npz ta.npz

With --store the figures are kept as a row named by --title, and with --page the rows of all phantoms become the table
between the markers 'measured' of that page.

The distances come from the file. What the file does not say is measured: the turning sense and the shift of the
detector are those that give the sharpest image, and the organisers' axes are found among the eight of a square.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy.io import loadmat  # noqa: E402
from skimage.filters import threshold_otsu  # noqa: E402
from torch import Tensor  # noqa: E402

from bundle.evaluation import RowStore, insert_between_markers, markdown_table  # noqa: E402
from bundle.io import write_sinogram  # noqa: E402
from bundle.physics import FanBeamGeometry, FilteredBackprojection  # noqa: E402

# The organisers' image has as many pixels.
PIXELS = 512


def read_measurement(path: Path) -> tuple[Tensor, FanBeamGeometry]:
    """Line integrals ``(V, D)`` and the geometry that the file gives, turning counter-clockwise.

    A view that repeats the first after a whole turn is left out: it would count twice.

    Raises:
        ValueError: names the file and what it lacks.
    """
    try:
        scan = loadmat(path, squeeze_me=True, struct_as_record=False)["CtDataFull"]
        line_integrals, p = np.asarray(scan.sinogram, dtype=np.float64), scan.parameters
        source_to_center, source_to_detector = float(p.distanceSourceOrigin), float(p.distanceSourceDetector)
        degrees, cell_pitch = np.asarray(p.angles, dtype=np.float64), float(p.pixelSizePost)
        pixel_size = float(p.effectivePixelSizePost)
    except (OSError, KeyError, AttributeError, TypeError, NotImplementedError) as error:
        raise ValueError(f"{path}: expected a MATLAB file with CtDataFull as in HTC 2022: {error!r}") from None
    if line_integrals.ndim != 2 or degrees.shape != line_integrals.shape[:1]:
        raise ValueError(f"{path}: {degrees.shape} angles do not fit the sinogram of shape {line_integrals.shape}")
    if abs(degrees[-1] - degrees[0]) > 360 - 1e-6:
        line_integrals, degrees = line_integrals[:-1], degrees[:-1]
    steps = np.diff(degrees)
    even = np.allclose(steps, steps[0], rtol=0, atol=1e-6)
    angles = {
        # Even angles as an arc: a whole turn then reconstructs four times as fast.
        "start_angle": math.radians(degrees[0]),
        "arc": math.radians(steps[0] * len(degrees)),
    }
    geometry = FanBeamGeometry(
        source_to_center=source_to_center,
        source_to_detector=source_to_detector,
        num_views=len(line_integrals),
        num_cells=line_integrals.shape[1],
        cell_pitch=cell_pitch,
        pixel_size=pixel_size,
        image_shape=(PIXELS, PIXELS),
        **(angles if even else {"angles": tuple(np.radians(degrees))}),
    )
    return torch.from_numpy(line_integrals), geometry


def read_segmentation(path: Path) -> np.ndarray:
    """The organisers' segmentation, ``(512, 512)`` bool, in their axes.

    Raises:
        ValueError: names the file and what it lacks.
    """
    try:
        segmentation = loadmat(path)["reconFullFbpSeg"]
    except (OSError, KeyError, NotImplementedError) as error:
        raise ValueError(f"{path}: expected a MATLAB file with reconFullFbpSeg as in HTC 2022: {error!r}") from None
    if segmentation.shape != (PIXELS, PIXELS):
        raise ValueError(f"{path}: expected {PIXELS} x {PIXELS} pixels, got {segmentation.shape}")
    return segmentation > 0


def reconstruct(line_integrals: Tensor, geometry: FanBeamGeometry) -> np.ndarray:
    """Image ``(H, W)`` in 1/mm."""
    return FilteredBackprojection(geometry)(line_integrals[None, None].float())[0, 0].numpy()


def coarse(line_integrals: Tensor, geometry: FanBeamGeometry, bin_: int = 2) -> tuple[Tensor, FanBeamGeometry]:
    """Cells and pixels in pairs: a quarter of the work, for the trials."""
    cells = geometry.num_cells // bin_
    binned = line_integrals[:, : cells * bin_].unflatten(1, (cells, bin_)).mean(2)
    # Cells left over at the far end move the centre of the others.
    spare = (geometry.num_cells - cells * bin_) / 2
    return binned, dataclasses.replace(
        geometry.with_grid((PIXELS // bin_, PIXELS // bin_), bin_ * geometry.pixel_size),
        num_cells=cells,
        cell_pitch=bin_ * geometry.cell_pitch,
        detector_offset=(geometry.detector_offset - spare) / bin_,
    )


def turned(geometry: FanBeamGeometry, sense: int, offset: float) -> FanBeamGeometry:
    """The same scan, clockwise for a sense of -1, with a detector shifted by `offset` cells."""
    angles = geometry.angles and tuple(sense * a for a in geometry.angles)
    return dataclasses.replace(
        geometry,
        arc=sense * geometry.arc,
        start_angle=sense * geometry.start_angle,
        angles=angles,
        detector_offset=offset,
    )


def sharpness(image: np.ndarray) -> float:
    """Mean squared gradient over the variance, per pixel squared: edges that do not meet blur it away."""
    return float(np.square(np.gradient(image)).mean() / image.var())


def measure_geometry(line_integrals: Tensor, geometry: FanBeamGeometry) -> tuple[int, float, dict[int, float]]:
    """Turning sense (1 or -1) and detector shift in cells of the sharpest image, and each sense's best sharpness."""

    def trial(sense: int, offset: float) -> float:
        return sharpness(reconstruct(*coarse(line_integrals, turned(geometry, sense, offset))))

    best = {}
    for sense in (1, -1):
        offset = max((-4.0, -2.0, 0.0, 2.0, 4.0), key=lambda o: trial(sense, o))
        best[sense] = trial(sense, offset), offset
    sense = max(best, key=lambda s: best[s][0])
    offset, step = best[sense][1], 2.0
    while step > 0.1:
        # Sharpness has one summit: the parabola through three points leads to it.
        step /= 2
        offset = max((offset - step, offset, offset + step), key=lambda o: trial(sense, o))
    low, middle, high = (trial(sense, offset + d) for d in (-0.5, 0.0, 0.5))
    offset += 0.25 * (low - high) / min(low - 2 * middle + high, -1e-12)
    return sense, offset, {s: value for s, (value, _) in best.items()}


def in_axes_of(image: np.ndarray, segmentation: np.ndarray) -> tuple[np.ndarray, str]:
    """The image in the organisers' axes, and how it was turned: the best of the eight symmetries of a square."""
    choices = {
        f"{'mirrored, ' if mirror else ''}{90 * quarters} degrees": np.rot90(image[::-1] if mirror else image, quarters)
        for mirror in (False, True)
        for quarters in range(4)
    }
    name = max(choices, key=lambda n: correlation(choices[n], segmentation))
    return choices[name], name


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's; between two masks it is Matthews'."""
    return float(np.corrcoef(one.ravel().astype(float), other.ravel().astype(float))[0, 1])


def compare(image: np.ndarray, mask: np.ndarray, segmentation: np.ndarray) -> dict[str, float]:
    """Figures of an image in 1/mm and its threshold against the organisers' segmentation."""
    inside = image[segmentation]
    return {
        "matthews": correlation(mask, segmentation),
        "differing": float((mask != segmentation).mean()),
        "pearson": correlation(image, segmentation),
        "material": float(inside.mean()),
        "material_std": float(inside.std()),
        "air": float(np.median(image[~segmentation])),
    }


def summary(rows: list[dict]) -> str:
    """Table of all phantoms, each by its last row."""
    last = {row["phantom"]: row for row in rows}
    header = [
        "phantom",
        "Matthews correlation of the masks",
        "differing pixels",
        "Pearson correlation of image and mask",
        "material, 1/mm",
        "detector offset, cells",
    ]
    cells = [
        [
            name,
            f"{row['matthews']:.4f}",
            f"{row['differing']:.3%}",
            f"{row['pearson']:.3f}",
            f"{row['material']:.4f} ± {row['material_std']:.4f}",
            f"{row['detector_offset']:+.2f}",
        ]
        for name, row in last.items()
    ]
    return markdown_table(header, cells)


def draw(path: Path, image: np.ndarray, mask: np.ndarray, segmentation: np.ndarray | None) -> None:
    """PNG: reconstruction, its threshold, and the organisers' segmentation with the pixels that differ in red."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    panels = [("FBP", image), ("threshold", mask)]
    if segmentation is not None:
        panels.append(("organisers; differing pixels red", segmentation))
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.5), layout="constrained")
    for axis, (title, picture) in zip(axes, panels):
        shown = axis.imshow(picture, cmap="gray", interpolation="antialiased")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
        if picture is image:
            figure.colorbar(shown, ax=axis, shrink=0.75, label="1/mm")
    if segmentation is not None:
        red = np.zeros((*mask.shape, 4))
        red[mask != segmentation] = (1, 0, 0, 1)
        axes[-1].imshow(red, interpolation="nearest")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sinogram", type=Path, required=True, help="*_full.mat of the challenge")
    parser.add_argument("--segmentation", type=Path, help="*_seg.mat of the same object")
    parser.add_argument("--output", type=Path, help="picture to write (PNG)")
    parser.add_argument("--npz", type=Path, help="write the sinogram as inference reads it")
    parser.add_argument("--title", help="what the phantom is called in the table; default: the file's name")
    parser.add_argument("--store", type=Path, help="file of rows (*.jsonl) to add the figures to; needs --segmentation")
    parser.add_argument("--page", type=Path, help="page to put the table of all rows into; needs --store")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    if (arguments.store and not arguments.segmentation) or (arguments.page and not arguments.store):
        parser.error(
            "--page needs --store, and --store needs --segmentation: there is nothing to compare with otherwise"
        )
    torch.set_num_threads(arguments.threads)
    try:
        line_integrals, geometry = read_measurement(arguments.sinogram)
        segmentation = read_segmentation(arguments.segmentation) if arguments.segmentation else None
        sense, offset, values = measure_geometry(line_integrals, geometry)
        found = turned(geometry, sense, offset)
        if arguments.npz:
            write_sinogram(arguments.npz, line_integrals, found, overwrite=True)
    except ValueError as error:
        sys.exit(str(error))
    image = reconstruct(line_integrals, found)
    how = {1: "counter-clockwise", -1: "clockwise"}
    print(f"{arguments.sinogram.name}: {found.num_views} views, {found.num_cells} cells of {found.cell_pitch} mm")
    print(f"turning sense: {how[sense]} (sharpness {values[sense]:.4f}, the other way {values[-sense]:.4f})")
    print(f"detector offset: {offset:+.2f} cells")
    plain = reconstruct(line_integrals, turned(geometry, sense, 0.0))
    print(f"sharpness at full size: {sharpness(image):.4f}, without the offset {sharpness(plain):.4f}")
    if segmentation is not None:
        image, symmetry = in_axes_of(image, segmentation)
    mask = image > threshold_otsu(image)
    if segmentation is not None:
        row = compare(image, mask, segmentation) | {"detector_offset": offset}
        print(f"organisers' axes: {symmetry}")
        print(f"attenuation in the segmented material: {row['material']:.4f} +- {row['material_std']:.4f} 1/mm")
        print(f"air in the picture: {row['air']:.4f} 1/mm")
        print(f"Pearson correlation of image and segmentation: {row['pearson']:.4f}")
        print(f"Matthews correlation of threshold and segmentation: {row['matthews']:.4f}")
        print(f"differing pixels: {row['differing']:.3%}")
        if arguments.store:
            store = RowStore(arguments.store)
            store.add({"phantom": arguments.title or arguments.sinogram.stem, **row})
            if arguments.page:
                insert_between_markers(arguments.page, "measured", summary(store.rows()))
    if arguments.output:
        draw(arguments.output, image, mask, segmentation)


if __name__ == "__main__":
    main()
