"""What the evaluation engine leaves behind: restored images, panels and reports."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from torch import Tensor

from bundle.io import ScanFrame, write_nifti
from bundle.physics import FanBeamGeometry

from .alarms import LIMITS, check_restoration
from .metrics import MASKS, WINDOWS, Row, checked_windows, mean_and_std, score_stages
from .panel import save_panel
from .reports import refuse_existing, table, write_csv, write_json

# Shapes in this file: S slices, H W image; all images in HU.

#: Channels of the engine's prediction, in order.
STAGES = ("fbp", "prior", "fused", "restored")

#: What a row of :class:`DoseReport` begins with; the rest are metrics.
ROW_HEAD = ("case", "patient", "dose", "stage", "n", "windows")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RestoredCase:
    """One stack that the engine has restored.

    Args:
        name: of the case, for files.
        patient: whose scan it is.
        dose: fraction of the normal dose; None for a measured scan.
        stages: ``(S, H, W)`` by stage.
        reference: ``(S, H, W)``, or None for a measured scan.
        scan: frame for writing back: that of the file, or the geometry where the file has none; None where unknown.
        seconds: of every stage, over the whole stack; empty where the inferer does not count them.
        sinogram: line integrals ``(S, V, D)``; None where the batch holds none.
        geometry: of the scan, likewise.
        incident_photons: a ray, of this scan; None where unknown.
        photons_estimated: they were measured on the scan's own noise.
    """

    name: str
    patient: str
    dose: float | None
    stages: dict[str, Tensor]
    reference: Tensor | None
    scan: ScanFrame | FanBeamGeometry | None
    seconds: dict[str, float]
    sinogram: Tensor | None = None
    geometry: FanBeamGeometry | None = None
    incident_photons: float | None = None
    photons_estimated: bool = False

    @property
    def num_slices(self) -> int:
        return len(self.stages["fbp"])


class _CaseHandler:
    """Hands every restored case to ``_case`` and ends with ``_finish``; checks the outputs before any work."""

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        overwrite: bool,
        windows: Mapping[str, Sequence[float]],
        window: str,
        restored_to: str,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.restored_to = restored_to
        self.overwrite = overwrite
        self.windows = checked_windows(windows)
        if window not in self.windows:
            raise ValueError(f"window must be one of {tuple(self.windows)}, got {window!r}")
        self.window = window

    def attach(self, engine: Engine) -> None:
        """Follow an evaluator whose batches hold ``name`` and whose prediction is ``(1, 4, S, H, W)``."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.COMPLETED, self._complete)

    def _start(self, engine: Engine) -> None:
        dataset = getattr(getattr(engine, "data_loader", None), "dataset", None)
        items = getattr(dataset, "data", [])
        names = [str(item["name"]) for item in items if isinstance(item, Mapping) and "name" in item]
        refuse_existing(self._outputs(names), self.overwrite)
        self._begin()

    def _iteration(self, engine: Engine) -> None:
        for case in restored_cases(engine):
            self._case(case)

    def _complete(self, engine: Engine) -> None:
        self._finish()

    def _outputs(self, names: Sequence[str]) -> list[Path]:
        raise NotImplementedError

    def _begin(self) -> None:
        raise NotImplementedError

    def _case(self, case: RestoredCase) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError

    def _window_text(self) -> str:
        low, high = self.windows[self.window]
        return f"{self.window} [{low:g}, {high:g}] HU"

    def _with_main(self, row: Row) -> Row:
        """The row with ``psnr`` and ``ssim`` of the main window beside those of all windows."""
        main = {key: row[f"{key}_{self.window}"] for key in ("psnr", "ssim") if f"{key}_{self.window}" in row}
        return {"rmse_hu": row["rmse_hu"], **main, **row} if main else dict(row)


class RestorationWriter(_CaseHandler):
    """Write what inference restored, and measure it where there is a reference.

    For every case ``<name>_restored.nii.gz`` (HU, in the frame of the scan) and ``<name>_panel.png``; at the end
    ``metrics.json``, and a table on the screen. ``metrics.json`` holds, by stage, the mean over the cases of each
    metric (see :func:`~bundle.evaluation.score_slices`; ``psnr`` and ``ssim`` are those of ``window``), ``seconds`` a
    slice by stage, ``restored_to``, ``window``, ``windows``, ``masks``, ``dose``, ``n``, ``alarm_limits``, and
    ``cases`` with the rows of every slice, the incident photons and whether they were estimated, and ``alarms``: why a
    case should not be trusted (see :func:`~bundle.evaluation.check_restoration`). The log has the alarms, too.

    Args:
        output_dir: folder, made when missing.
        overwrite: replace files of an earlier run; otherwise any of them stops the run before it starts.
        window: name of the main window, for panel, table, ``psnr`` and ``ssim``.
        windows: low and high in HU by name.
        write_nifti: ``(image_hu, like, path, overwrite=...)``, as :func:`bundle.io.write_nifti`.
        restored_to: what restored images and references are images of, ``backprojection`` or ``object``; written down.

    Raises:
        ValueError: names the output that exists, or the window that is none.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        overwrite: bool = False,
        window: str = "abdomen",
        windows: Mapping[str, Sequence[float]] = WINDOWS,
        write_nifti: Callable[..., Any] = write_nifti,
        restored_to: str = "backprojection",
    ) -> None:
        super().__init__(output_dir, overwrite, windows, window, restored_to)
        self.write_nifti = write_nifti
        self._begin()

    def _outputs(self, names: Sequence[str]) -> list[Path]:
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"cases must have different names, got {twice[0]!r} more than once")
        return [self.output_dir / "metrics.json", *(path for name in names for path in self._files(name))]

    def _files(self, name: str) -> tuple[Path, Path]:
        return self.output_dir / f"{name}_restored.nii.gz", self.output_dir / f"{name}_panel.png"

    def _begin(self) -> None:
        self._cases: list[dict[str, Any]] = []

    def _case(self, case: RestoredCase) -> None:
        scores = score_stages(case.stages, case.reference, self.windows)
        alarms = check_restoration(
            case.stages["fbp"], case.stages["restored"], case.sinogram, case.incident_photons, case.geometry
        )
        for alarm in alarms:
            _log.warning(
                "case %s, %d of %d slices: %s (%s)", case.name, len(alarm.slices), alarm.n, alarm.text, alarm.name
            )
        nifti, panel = self._files(case.name)
        # Both are checked before the first is written.
        refuse_existing([nifti, panel], self.overwrite)
        if case.scan is None:
            raise ValueError(f"case {case.name!r} has neither a scan nor a geometry to write its image by")
        self.write_nifti(case.stages["restored"], case.scan, nifti, overwrite=self.overwrite)
        save_panel(
            panel,
            case.stages,
            case.reference,
            window=self.windows[self.window],
            window_name=self.window,
            name=case.name,
            overwrite=self.overwrite,
        )
        self._cases.append(
            {
                "name": case.name,
                "patient": case.patient,
                "dose": case.dose,
                "n": case.num_slices,
                "incident_photons": case.incident_photons,
                "photons_estimated": case.photons_estimated,
                "seconds": case.seconds,
                "alarms": [dataclasses.asdict(alarm) for alarm in alarms],
                "stages": scores,
            }
        )

    def _finish(self) -> None:
        means = {
            stage: self._with_main(mean_and_std([case["stages"][stage]["mean"] for case in self._cases])["mean"])
            for stage in STAGES
        }
        num_slices = sum(case["n"] for case in self._cases)
        totals = Counter()
        for case in self._cases:
            totals.update(case["seconds"])
        seconds = {stage: total / num_slices for stage, total in totals.items()}
        doses = sorted({case["dose"] for case in self._cases if case["dose"] is not None})
        content = {
            **means,
            "seconds": {**seconds, "total": sum(seconds.values())},
            "seconds_per": "slice",
            "restored_to": self.restored_to,
            "window": self.window,
            "windows": self.windows,
            "masks": dict(MASKS),
            "alarm_limits": dict(LIMITS),
            "dose": doses[0] if len(doses) == 1 else doses or None,
            "n": {"cases": len(self._cases), "slices": num_slices},
            "cases": self._cases,
        }
        write_json(self.output_dir / "metrics.json", content, self.overwrite)
        print(self._table(content))

    def _table(self, content: dict[str, Any]) -> str:
        n, dose = content["n"], content["dose"]
        at = "measured" if dose is None else f"dose {dose}"
        rows, seconds = [], content["seconds"]
        measured = not any("rmse_hu" in content[stage] for stage in STAGES)
        for stage in STAGES:
            row = content[stage]
            scores = [] if measured else [row.get(key) for key in ("rmse_hu", "psnr", "ssim", "hu_bias")]
            rows.append([stage, *scores, row.get("noise_hu"), seconds.get(stage)])
        scores = [] if measured else ["RMSE HU", "PSNR dB", "SSIM", "HU bias"]
        lines = [
            f"{n['cases']} cases, {n['slices']} slices, {at}",
            table(["stage", *scores, "noise HU", "s/slice"], rows),
            f"all stages: {seconds['total']:.2f} s a slice",
        ]
        if not measured:
            lines.append(
                f"RMSE: whole slice, not clipped. PSNR and SSIM: window {self._window_text()}, range its width."
            )
        lines.append(f"written to {self.output_dir}")
        return "\n".join(lines)


class DoseReport(_CaseHandler):
    """Measure every stage for every case and dose, and write it as table.

    ``metrics.csv``: one row a case, dose and stage: ``case, patient, dose, stage, n`` (slices) and ``windows`` (with
    their ranges), then each metric's mean over the slices. ``metrics.json``: ``rows`` (the same), ``summary`` (by dose,
    then stage: mean and std over patients of each metric, a patient's value being the mean over their cases; ``n``
    patients), ``restored_to``, ``window``, ``windows``, ``masks``. Both are written at the end, so a run that fails
    leaves neither.

    Args:
        output_dir: folder, made when missing.
        overwrite: replace the files of an earlier run; otherwise they stop the run before it starts.
        window: name of the main window, for the table on the screen.
        windows: low and high in HU by name.
        restored_to: as in :class:`RestorationWriter`.

    Raises:
        ValueError: names the output that exists, the window that is none, or the case without a reference or dose.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        overwrite: bool = False,
        window: str = "abdomen",
        windows: Mapping[str, Sequence[float]] = WINDOWS,
        restored_to: str = "backprojection",
    ) -> None:
        super().__init__(output_dir, overwrite, windows, window, restored_to)
        self._begin()

    def _outputs(self, names: Sequence[str]) -> list[Path]:
        return [self.output_dir / "metrics.csv", self.output_dir / "metrics.json"]

    def _begin(self) -> None:
        self._rows: list[Row] = []

    def _case(self, case: RestoredCase) -> None:
        if case.reference is None or case.dose is None:
            raise ValueError(f"case {case.name!r} must have a reference and a dose to be measured by")
        windows = "; ".join(f"{name} [{low:g}, {high:g}] HU" for name, (low, high) in self.windows.items())
        for stage, scores in score_stages(case.stages, case.reference, self.windows).items():
            head = zip(ROW_HEAD, (case.name, case.patient, case.dose, stage, scores["n"], windows))
            self._rows.append({**dict(head), **scores["mean"]})

    def _finish(self) -> None:
        summary = dose_summary(self._rows)
        csv_path, json_path = self._outputs([])
        refuse_existing([csv_path, json_path], self.overwrite)
        content = {"rows": self._rows, "summary": summary, "window": self.window, "windows": self.windows}
        content |= {"masks": dict(MASKS), "restored_to": self.restored_to}
        write_csv(csv_path, self._rows, self.overwrite)
        write_json(json_path, content, self.overwrite)
        columns = ["rmse_hu", f"psnr_{self.window}", f"ssim_{self.window}", "hu_bias", "noise_hu"]
        rows = [
            [f"{float(dose):g}", stage, values["n"], *(values["mean"][column] for column in columns)]
            for dose, stages in summary.items()
            for stage, values in stages.items()
        ]
        print(table(["dose", "stage", "patients", "RMSE HU", "PSNR dB", "SSIM", "HU bias", "noise HU"], rows))
        print(f"RMSE: whole slice, not clipped. PSNR and SSIM: window {self._window_text()}, range its width.")
        print(f"written to {csv_path} and {json_path}")


def dose_summary(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean and std over patients of every metric, by dose (as text, highest first) and stage."""
    metrics = list(dict.fromkeys(name for row in rows for name in row if name not in ROW_HEAD))
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for dose in sorted({row["dose"] for row in rows}, reverse=True):
        for stage in STAGES:
            chosen = [row for row in rows if row["dose"] == dose and row["stage"] == stage]
            by_patient: dict[str, list[Row]] = {}
            for row in chosen:
                by_patient.setdefault(row["patient"], []).append({name: row.get(name) for name in metrics})
            patients = [mean_and_std(own)["mean"] for own in by_patient.values()]
            if patients:
                summary.setdefault(str(dose), {})[stage] = {"n": len(patients), **mean_and_std(patients)}
    return summary


def restored_cases(engine: Engine) -> Iterator[RestoredCase]:
    """The cases of the iteration just done, whether the engine decollates or not.

    Raises:
        ValueError: a batch without a name, or a prediction without the four stages.
    """
    batch, output = engine.state.batch, engine.state.output
    if isinstance(batch, Mapping):
        batch, output = [_first(batch)], [_first(output)]
    for item, result in zip(batch, output):
        if "name" not in item:
            raise ValueError(f"every item must have a 'name' for its files, got the keys {sorted(item)}")
        prediction = result[CommonKeys.PRED]
        if prediction.ndim != 4 or prediction.shape[0] != len(STAGES):
            raise ValueError(
                f"the prediction must be {len(STAGES)} stages of slices, (4, S, H, W), got {tuple(prediction.shape)}"
            )
        reference = result.get(CommonKeys.LABEL)
        dose, photons, sinogram = (item.get(key) for key in ("dose", "incident_photons", "sinogram"))
        geometry = item.get("geometry")
        yield RestoredCase(
            name=str(item["name"]),
            patient=str(item.get("patient") or item["name"]),
            dose=None if dose is None else float(dose),
            stages=dict(zip(STAGES, prediction)),
            reference=None if reference is None else reference.reshape(prediction.shape[1:]),
            scan=_frame(item),
            seconds=dict(getattr(getattr(engine, "inferer", None), "seconds", {})),
            sinogram=sinogram.reshape(-1, *sinogram.shape[-2:]) if isinstance(sinogram, Tensor) else None,
            geometry=FanBeamGeometry.from_json(geometry) if isinstance(geometry, str) else geometry,
            incident_photons=None if photons is None else float(photons),
            photons_estimated=bool(item.get("photons_estimated", False)),
        )


def _first(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The only item of a batch of one."""
    return {
        key: value[0] if isinstance(value, (Tensor, list, tuple)) and len(value) == 1 else value
        for key, value in batch.items()
    }


def _frame(item: Mapping[str, Any]) -> ScanFrame | FanBeamGeometry | None:
    scan, geometry = item.get("scan"), item.get("geometry")
    if scan:
        return ScanFrame.from_json(scan) if isinstance(scan, str) else scan
    return FanBeamGeometry.from_json(geometry) if isinstance(geometry, str) else geometry
