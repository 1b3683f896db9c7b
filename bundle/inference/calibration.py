"""Fit a trained restorer to a scanner: its noise, and how far the fusions may trust raw data there."""

# Shapes in this file: S slices, V views, D detector cells, H W image.
from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from bundle.io import read_scan_noise, replace_when_complete
from bundle.physics import FanBeamGeometry, NoiseModel, estimate_noise_model, thin_line_integrals
from bundle.transforms import noise_seed

from .pipeline import LowDoseRestorer

logger = logging.getLogger(__name__)

#: Share of the photons that the restorer is given; it is judged by the others.
KEPT_SHARE = 0.8

#: A photon number that is given and the one that the noise shows may differ by as much before it is said.
TOLERATED_DIFFERENCE = 0.2


class CalibrationImages(NamedTuple):
    """What the fusions are calibrated on, of one scan; each ``(S, 1, H, W)`` in HU.

    Args:
        low_dose: ``x_ld`` of the photons that were kept.
        prior: ``xhat`` of the same.
        independent: FBP of the photons that were left over: the same slices, other noise.
        kept_share: share of the photons that were kept.
    """

    low_dose: Tensor
    prior: Tensor
    independent: Tensor
    kept_share: float


@dataclass(frozen=True)
class KnownNoise:
    """The noise of a scan, and how it is known.

    Args:
        model: the noise.
        source: ``simulated``, ``file``, ``setting`` or ``estimated``.
        estimate: what the line integrals themselves say; None where they do not say.
        failure: why they do not.
    """

    model: NoiseModel
    source: str
    estimate: NoiseModel | None
    failure: str | None


@torch.no_grad()
def calibration_images(
    network: LowDoseRestorer,
    sinogram: Tensor,
    geometry: FanBeamGeometry,
    incident_photons: float,
    *,
    name: str = "",
    kept_share: float = KEPT_SHARE,
    seed: int = 0,
) -> CalibrationImages:
    """Part the photons of a scan, and reconstruct both parts, slice by slice.

    Args:
        network: its ``estimates`` are taken, with its ``electronic_variance``; it need not be calibrated.
        sinogram: noisy line integrals, ``(S, V, D)``, float32.
        geometry: of the scan.
        incident_photons: incident photons a ray of this scan.
        name: of the scan; the parting belongs to ``seed`` and ``name``.
        kept_share: share of the photons that the low-dose image and the prior are given.
        seed: of the parting.

    Raises:
        ValueError: ``kept_share`` not inside (0, 1), ``incident_photons`` not positive, a sinogram that is none.
    """
    if sinogram.ndim != 3 or not len(sinogram):
        raise ValueError(f"sinogram must be (slices, views, cells), got {tuple(sinogram.shape)}")
    device = next((p.device for p in network.parameters()), sinogram.device)
    images: list[tuple[Tensor, ...]] = []
    for index, line_integrals in enumerate(sinogram):
        generator = torch.Generator().manual_seed(noise_seed(seed, f"calibrate {name}", index, kept_share))
        kept, rest = (
            part[None, None].to(device)
            for part in thin_line_integrals(
                line_integrals.cpu(),
                incident_photons,
                kept_share,
                electronic_variance=network.electronic_variance,
                generator=generator,
            )
        )
        # Each part has its share of the photons and of the electronic variance.
        noise, judging = (
            (share * incident_photons, share * network.electronic_variance) for share in (kept_share, 1 - kept_share)
        )
        low_dose, prior = network.estimates(kept, geometry, *noise)
        independent, _ = network.estimates(rest, geometry, *judging)
        images.append((low_dose, prior, independent))
    return CalibrationImages(*(torch.cat(column) for column in zip(*images)), kept_share)


@torch.no_grad()
def calibrate_fusions(network: LowDoseRestorer, images: Sequence[CalibrationImages]) -> dict[str, dict[str, float]]:
    """Measure N25, g25 and the noise scale of the fusion, then of the output fusion, and leave them in the network.

    ``N25`` is given for all the photons: the images hold ``kept_share`` of them, so their noise is scaled by its root,
    and the noise scale with it, which leaves every weight as it was measured.

    Args:
        network: what is calibrated.
        images: of every scan, at the reference dose; each slice counts the same.

    Returns:
        ``noise_25``, ``gradient_25`` and ``noise_scale`` of ``fusion`` and, where there is one, ``output_fusion``.

    Raises:
        ValueError: no images, shares that differ, or images on which no fusion can be calibrated (no body, no noise).
    """
    shares = {part.kept_share for part in images}
    if len(shares) != 1:
        raise ValueError(f"images must hold one share of the photons, got {sorted(shares)}")
    low_dose, priors, independent = ([getattr(part, name) for part in images] for name in CalibrationImages._fields[:3])
    network.fusion.calibrate(low_dose, priors, independent)
    if network.output_fusion is not None:
        fused = [network.fusion(*pair) for pair in zip(low_dose, priors)]
        refined = [
            torch.cat([network.refine(*slices) for slices in zip(*(stack.split(1) for stack in stacks))])
            for stacks in zip(low_dose, priors, fused)
        ]
        network.output_fusion.calibrate(low_dose, refined, independent, fused)
    root = math.sqrt(shares.pop())
    for fusion in (network.fusion, network.output_fusion):
        if fusion is not None:
            fusion.noise_25.mul_(root)
            fusion.noise_scale.mul_(root)
    return fusion_values(network)


def fusion_values(network: LowDoseRestorer) -> dict[str, dict[str, float]]:
    """What :func:`calibrate_fusions` returns, as the network holds it; None for what was never measured."""
    fusions = {"fusion": network.fusion, "output_fusion": network.output_fusion}
    return {
        name: {key: value.item() if torch.isfinite(value) else None for key, value in fusion.named_buffers()}
        for name, fusion in fusions.items()
        if fusion is not None
    }


def scan_noise(item: Mapping[str, Any], incident_photons: float | None = None) -> KnownNoise:
    """The noise of a loaded scan: as it was simulated, as its file says, as given here, or as its line integrals show.

    The line integrals are asked in any case; a photon number that they contradict is warned of.

    Args:
        item: of a data set, with ``sinogram`` ``(1, S, V, D)``, ``name``, ``path`` and ``kind``, and for a simulated
            scan ``incident_photons`` and ``electronic_variance``.
        incident_photons: of measured scans whose file does not say.

    Raises:
        ValueError: names the scan whose photons are not known and cannot be estimated.
    """
    measured = item.get("kind") == "sinogram"
    if measured:
        photons, variance = read_scan_noise(item["path"])
        source = "file" if photons is not None else "setting"
        photons = incident_photons if photons is None else photons
    else:
        photons, variance, source = item["incident_photons"], item["electronic_variance"], "simulated"
    estimate = failure = None
    try:
        estimate = estimate_noise_model(item["sinogram"], variance if photons is None else None)
    except ValueError as error:
        failure = str(error)
    if photons is None and estimate is None:
        raise ValueError(
            f"{item['name']}: its file has no field photons, and they cannot be estimated: {failure}. "
            "Write the field, or set incident_photons"
        )
    if photons is None:
        model = NoiseModel(
            incident_photons=estimate.incident_photons, electronic_variance=_significant(estimate, variance)
        )
        return KnownNoise(model, "estimated", estimate, None)
    if estimate is not None:
        off = abs(estimate.incident_photons / photons - 1)
        if off > max(TOLERATED_DIFFERENCE, 3 * estimate.incident_photons_error / photons):
            logger.warning(
                "%s: %.3g incident photons a ray by its %s, but its noise is that of %.3g",
                item["name"],
                photons,
                source,
                estimate.incident_photons,
            )
    model = NoiseModel(incident_photons=float(photons), electronic_variance=_significant(estimate, variance))
    return KnownNoise(model, source, estimate, failure)


def _significant(estimate: NoiseModel | None, electronic_variance: float | None) -> float:
    """The electronic variance that is known, else the estimate; 0 where that is within two standard errors of 0."""
    if electronic_variance is not None:
        return float(electronic_variance)
    return 0.0 if estimate is None else estimate.significant_electronic_variance


class RestorerCalibration:
    """Calibrate a restorer on the scans of a data set, and write its weights with ``calibration.json`` beside them.

    Args:
        network: a trained restorer; need not be calibrated.
        scans: items as ``bundle.transforms.LoadScand`` and ``SimulateScand`` give them, all of the reference dose.
        output: weight file to write.
        weights: file that ``network`` comes from, to be named in the record; None: no file.
        overwrite: replace ``output`` and ``calibration.json`` where they exist.
        incident_photons: incident photons a ray of measured scans whose file does not say; None: estimated.
        electronic_variance: of scans that are simulated, photons squared.
        kept_share: share of the photons that the restorer is given.
        seed: of the parting of the photons.

    Raises:
        ValueError: ``kept_share`` not inside (0, 1), ``incident_photons`` not positive.
    """

    def __init__(
        self,
        network: LowDoseRestorer,
        scans: Iterable[Mapping[str, Any]],
        output: str | Path,
        weights: str | Path | None = None,
        overwrite: bool = False,
        incident_photons: float | None = None,
        electronic_variance: float = 0.0,
        kept_share: float = KEPT_SHARE,
        seed: int = 0,
    ) -> None:
        if not 0 < kept_share < 1:
            raise ValueError(f"kept_share must be between 0 and 1, got {kept_share}")
        if incident_photons is not None:
            NoiseModel(incident_photons=float(incident_photons))
        self.network = network
        self.scans = scans
        self.output = Path(output)
        self.weights = None if weights is None else Path(weights)
        self.overwrite = overwrite
        self.incident_photons = incident_photons
        self.electronic_variance = electronic_variance
        self.kept_share = kept_share
        self.seed = seed

    @property
    def record_path(self) -> Path:
        """Where the record goes: ``calibration.json`` beside the weights."""
        return self.output.with_name("calibration.json")

    def run(self) -> dict[str, Any]:
        """Measure, write, and return the record.

        Raises:
            ValueError: a file that must not be overwritten (before any work), no scan, a scan whose photons are not
                known, images on which no fusion can be calibrated. Nothing is written then.
        """
        for path in (self.output, self.record_path):
            if path.exists() and not self.overwrite:
                raise ValueError(f"{path}: exists; pass overwrite to replace it")
        self.network.eval()
        before = fusion_values(self.network)
        scans, images = [], []
        for item in tqdm(self.scans, desc="calibrate", unit="scan"):
            entry, image = self._scan(dict(item))
            scans.append(entry)
            images.append(image)
        if not scans:
            raise ValueError("scans must hold at least one scan to calibrate on, got none")
        after = calibrate_fusions(self.network, images)
        record = {
            "weights": None if self.weights is None else {"file": self.weights.name, "sha256": _sha256(self.weights)},
            "slices": sum(len(entry["slices"]) for entry in scans),
            "ramp_window": self.network.window,
            "mu_water": self.network.mu_water,
            "kept_share": self.kept_share,
            "seed": self.seed,
            "scans": scans,
            "before": before,
            "after": after,
        }
        with replace_when_complete(self.output, overwrite=self.overwrite) as unfinished:
            torch.save(self.network.state_dict(), unfinished)
        with replace_when_complete(self.record_path, overwrite=self.overwrite) as unfinished:
            unfinished.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return record

    def _scan(self, item: dict[str, Any]) -> tuple[dict[str, Any], CalibrationImages]:
        item.setdefault("electronic_variance", self.electronic_variance)
        noise = scan_noise(item, self.incident_photons)
        geometry = FanBeamGeometry.from_json(item["geometry"])
        photons = noise.model.incident_photons
        configured = self.network.electronic_variance
        self.network.electronic_variance = noise.model.electronic_variance
        # (1, S, V, D) -> (S, V, D)
        images = calibration_images(
            self.network,
            item["sinogram"][0],
            geometry,
            photons,
            name=item["name"],
            kept_share=self.kept_share,
            seed=self.seed,
        )
        self.network.electronic_variance = configured
        entry = {
            "name": item["name"],
            "patient": item.get("patient", item["name"]),
            "slices": [int(index) for index in torch.as_tensor(item["slice"]).reshape(-1)],
            "dose": None if noise.source != "simulated" else float(item["dose"]),
            "geometry": json.loads(item["geometry"]),
            "incident_photons": photons,
            "electronic_variance": noise.model.electronic_variance,
            "source": noise.source,
            "estimate": None if noise.estimate is None else asdict(noise.estimate),
            "estimate_failed": noise.failure,
        }
        return entry, images


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
