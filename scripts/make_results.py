"""Regenerate every table and figure that README and docs show, one part after the other.

    python scripts/make_results.py --dataset_dir TEST --development_dir DEVELOPMENT

TEST holds CT images of patients that training never saw, DEVELOPMENT those that strengths and calibration are found on;
docs/results/README.md says which these were and where they come from. It takes hours. What is measured is kept in
--store, so a run that was stopped goes on where it was; --only names parts, --quick tries all of them in minutes, on
less data, and writes into output/quick instead of docs. At the end it says what was written, what was skipped, and why.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from measuring import ROOT, checksum, code_checksum

from bundle.evaluation import RowStore, insert_between_markers, markdown_table, table
from bundle.io import find_scans

SCRIPTS = ROOT / "scripts"
DOCS = ROOT / "docs"
QUICK = ROOT / "output" / "quick"

#: What is measured by the object: doses, ours, and peers that take seconds.
OBJECTS = (
    *("--doses", "0.05", "0.1", "0.25", "1.0"),
    *("--methods", "fbp_ram-lak", "fbp_hann", "nlm", "tv", "bm3d", "prior", "restored"),
)


@dataclass(frozen=True)
class Part:
    """One part of the results.

    Args:
        name: for ``--only``.
        title: what it measures.
        page: where a reader finds it, seen from the project's folder.
        commands: arguments of Python, run in this order.
        copies: files to copy at the end, from and to.
        resumes: whether the commands themselves keep what they have measured. Those that do not are not run again
            while their commands and inputs stay the same.
        inputs: files that the outcome follows from, beside the commands.
        skipped: why it can't run; None where it can.
    """

    name: str
    title: str
    page: str
    commands: Sequence[Sequence[str]] = ()
    copies: Sequence[tuple[Path, Path]] = ()
    resumes: bool = True
    inputs: Sequence[Path] = ()
    skipped: str | None = None


@dataclass
class Outcome:
    """What became of a part: ``done``, ``kept`` from an earlier run, ``skipped`` or ``failed``."""

    part: Part
    state: str
    note: str = ""
    seconds: float = 0.0
    written: list[str] = field(default_factory=list)


def find_parts(args: argparse.Namespace) -> list[Part]:
    """All parts in their order: what others read comes first."""
    output = QUICK if args.quick else DOCS / "results"
    weights = ["--weights", str(args.weights)]
    shared = ["--output", str(output), "--store", str(args.store)]
    shared += (["--quick"] if args.quick else []) + (["--fresh"] if args.fresh else [])
    test = ["--dataset_dir", str(args.dataset_dir)] if args.dataset_dir else None
    no_test = None if test else "no --dataset_dir was given"
    exclude = ["--exclude", *args.development_exclude] if args.development_exclude else []
    development = ["--dataset_dir", str(args.development_dir), *exclude] if args.development_dir else None
    no_development = None if development else "no --development_dir was given"
    trained = ["--trained", str(args.trained_dir)] if args.trained_dir.is_dir() else []

    def script(name: str, *arguments: str) -> list[str]:
        return [str(SCRIPTS / name), *arguments]

    return [
        Part(
            "tuning",
            "strengths of the classical peers",
            "docs/results/peer_strengths.json",
            [script("tune_peers.py", *(development or []), *(["--fresh"] if args.fresh else []))],
            skipped=no_development or ("not part of a quick run" if args.quick else None),
        ),
        Part(
            "quality",
            "every method at every dose",
            "docs/results/quality.md",
            [script("measure_quality.py", *(test or []), *weights, *shared)],
            skipped=no_test,
        ),
        Part(
            "objects",
            "the same by the images that were projected",
            "docs/results/objects.md",
            [script("measure_quality.py", *(test or []), "--restore_to", "object", *OBJECTS, *weights, *shared)],
            skipped=no_test,
        ),
        Part(
            "bias",
            "HU bias over noise realisations",
            "docs/results/bias.md",
            [script("measure_bias.py", *(test or []), *weights, *shared)],
            skipped=no_test,
        ),
        Part(
            "stacks",
            "what the slices above and below are worth",
            "docs/results/stacks.md",
            [script("measure_stacks.py", *(test or []), "--adjacent", *(args.adjacent or []), *weights, *shared)],
            skipped=no_test or (None if args.adjacent else "no --adjacent names patients with slices side by side"),
        ),
        Part(
            "tasks",
            "detectability, resolution and noise texture",
            "docs/tasks.md",
            [script("measure_tasks.py", *weights, *shared)],
        ),
        Part(
            "robustness",
            "what breaks: metal, starvation, motion, truncation, rings, beam hardening",
            "docs/robustness.md",
            [script("measure_robustness.py", *weights, *shared)],
        ),
        Part(
            "calibration",
            "another scanner and other photons, before and after calibration",
            "docs/calibration.md",
            [script("measure_calibration.py", *(test or []), *others(args), *weights, *shared)],
            skipped=no_test or no_development,
        ),
        Part(
            "ablations",
            "what every part is worth",
            "docs/results/ablations.md",
            [script("measure_ablations.py", *(test or []), *weights, *trained, *shared)],
            skipped=no_test,
        ),
        Part(
            "profile",
            "seconds and memory",
            "docs/results/profile.md",
            [
                script(
                    "measure_profile.py",
                    *(test or []),
                    *weights,
                    *("--output", str(output)),
                    *(["--quick"] if args.quick else []),
                )
            ],
            resumes=False,
            inputs=[args.weights],
            skipped=no_test,
        ),
        operators(args.quick),
        measured(args),
        training(args),
        demo(args, weights),
    ]


def others(args: argparse.Namespace) -> list[str]:
    """The patients to calibrate on, as scripts/measure_calibration.py takes them."""
    if args.development_dir is None:
        return []
    patients = {scan["patient"] for scan in find_scans(args.development_dir)}
    chosen = sorted(p for p in patients if not any(fnmatchcase(p, pattern) for pattern in args.development_exclude))
    return ["--calibration_dir", str(args.development_dir), "--calibrate_on", *chosen]


def operators(quick: bool) -> Part:
    """The operators' benchmark; it writes its own page."""
    json = (QUICK if quick else DOCS / "results") / "operators.json"
    where = ["--quick", "--markdown", str(QUICK / "operators.md")] if quick else ["--write"]
    command = [str(SCRIPTS / "benchmark_operators.py"), *where, "--json", str(json)]
    return Part("operators", "accuracy and speed of the operators", "docs/operators.md", [command], resumes=False)


def measured(args: argparse.Namespace) -> Part:
    """Measured sinograms, every phantom whose segmentation is there."""
    title, page = "FBP of measured sinograms", "docs/measured.md"
    if args.measured_dir is None:
        return Part("measured", title, page, skipped="no --measured_dir was given")
    commands, inputs = [], []
    for path in sorted(args.measured_dir.glob("htc2022_*_full.mat"), key=lambda path: (len(path.name), path.name)):
        segmentation = path.with_name(path.name.replace("_full", "_seg"))
        phantom = path.name.removeprefix("htc2022_").removesuffix("_full.mat")
        if segmentation.is_file():
            command = [str(SCRIPTS / "reconstruct_measured.py"), "--sinogram", str(path)]
            command += ["--segmentation", str(segmentation), "--title", phantom.replace("_", " ")]
            command += ["--store", str(args.store / "measured.jsonl")]
            figures = QUICK if args.quick else DOCS / "figures"
            # One picture is enough to show.
            command += [] if commands else ["--output", str(figures / f"measured_{phantom}.png")]
            command += [] if args.quick else ["--page", str(ROOT / page)]
            commands.append(command)
            inputs += [path, segmentation]
    if not commands:
        return Part("measured", title, page, skipped="--measured_dir holds no htc2022_*_full.mat with its *_seg.mat")
    return Part("measured", title, page, commands[:1] if args.quick else commands, resumes=False, inputs=inputs)


def training(args: argparse.Namespace) -> Part:
    """The curves of the shipped weights' training, where it was run here."""
    title, page = "curves of the training", "docs/training.md"
    stages = ("projection", "autoencoder", "diffusion")
    lacking = [stage for stage in stages if not list((args.training_dir / stage).glob("events.out.tfevents.*"))]
    if lacking:
        reason = f"--training_dir holds no curves of {lacking[0]}: it was not trained here"
        return Part("training", title, page, skipped=reason)
    if args.quick:
        return Part("training", title, page, skipped="not part of a quick run")
    # What was trained beside: stage 1 goes on from photons that were parted, a peer is taught.
    more = [name for name in ("thinned", "noise2inverse") if (args.training_dir / name).is_dir()]
    folders = (f"{name}={args.training_dir / name}" for name in (*stages, *more))
    command = [str(SCRIPTS / "summarise_training.py"), *folders]
    return Part("training", title, page, [command])


def demo(args: argparse.Namespace, weights: Sequence[str]) -> Part:
    """The picture of the demo."""
    from pydicom.data import get_testdata_file

    head = Path(str(get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)))
    output = args.store / "demo"
    command = ["-m", "monai.bundle", "run", "--config_file", str(ROOT / "configs" / "inference.json"), *weights]
    command += ["--input", str(head), "--output_dir", str(output), "--window", "head", "--overwrite", "True"]
    figure = (QUICK if args.quick else DOCS / "figures") / "demo_head.png"
    copies = [(output / f"{head.stem}_panel.png", figure)]
    return Part("demo", "picture of the demo", "README.md", [command], copies, resumes=False, inputs=[args.weights])


def run_part(part: Part, args: argparse.Namespace, stamps: RowStore) -> Outcome:
    """Run a part unless it is skipped or was done before."""
    missing = [words[0] for words in part.commands if words[0].endswith(".py") and not Path(words[0]).is_file()]
    reason = part.skipped or (f"{missing[0]} does not exist" if missing else None)
    if reason is not None:
        return Outcome(part, "skipped", reason.replace(f"{ROOT}/", ""))
    key = {"part": part.name, "inputs": checksum(repr(part.commands), *part.inputs)}
    if not part.resumes and not args.fresh and stamps.has(**key):
        same = stamps.has(**key, code=code_checksum())
        note = "measured before" + ("" if same else " by another state of the code; --fresh measures it again")
        return Outcome(part, "kept", note)
    before, start = _times(args.quick), time.monotonic()
    environment = {**os.environ, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")}
    for words in part.commands:
        code = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment).returncode
        if code:
            return Outcome(
                part, "failed", f"exit status {code}", time.monotonic() - start, _changed(before, args.quick)
            )
    for source, target in part.copies:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    stamps.add({**key, "code": code_checksum()})
    return Outcome(part, "done", "", time.monotonic() - start, _changed(before, args.quick))


def _times(quick: bool) -> dict[Path, int]:
    files = QUICK.rglob("*") if quick else [ROOT / "README.md", *DOCS.rglob("*")]
    return {file: file.stat().st_mtime_ns for file in files if file.is_file()}


def _changed(before: dict[Path, int], quick: bool) -> list[str]:
    return sorted(str(file.relative_to(ROOT)) for file, when in _times(quick).items() if before.get(file) != when)


def say(outcomes: Sequence[Outcome]) -> str:
    """What became of all parts."""
    rows = [[o.part.name, o.state, f"{o.seconds / 60:.1f}" if o.seconds else None, o.note] for o in outcomes]
    lines = [table(["part", "state", "minutes", "why"], rows)]
    for outcome in outcomes:
        lines += [f"{outcome.part.name} wrote {file}" for file in outcome.written]
    return "\n".join(lines)


def index(outcomes: Sequence[Outcome], stamps: RowStore) -> str:
    """Table for docs/results/README.md."""
    rows = []
    for outcome in outcomes:
        part = outcome.part
        link = f"[{part.page}](../../{part.page})" if (ROOT / part.page).exists() else part.page
        known = outcome.state in ("done", "kept") or (stamps.has(part=part.name) and outcome.state != "failed")
        rows.append([part.name, part.title, link, "measured" if known else f"{outcome.state}: {outcome.note}"])
    return markdown_table(["part", "what", "where", "state"], rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, help="CT images of patients that training never saw")
    parser.add_argument("--adjacent", nargs="+", help="those of them (patterns) whose slices lie side by side")
    parser.add_argument("--development_dir", type=Path, help="CT images that strengths and calibration are found on")
    parser.add_argument("--development_exclude", nargs="*", default=[], help="patients (patterns) to leave out of them")
    parser.add_argument("--measured_dir", type=Path, help="folder with htc2022_*_full.mat and *_seg.mat")
    parser.add_argument("--trained_dir", type=Path, default=ROOT / "output" / "ablations", help="weights of ablations")
    parser.add_argument("--training_dir", type=Path, default=ROOT / "output", help="where the stages were trained")
    parser.add_argument("--weights", type=Path, default=ROOT / "models" / "model.pt")
    parser.add_argument("--store", type=Path, default=ROOT / "output" / "results", help="what has been measured")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts, in their usual order")
    parser.add_argument("--quick", action="store_true", help="less data, into output/quick: to see that all works")
    parser.add_argument("--fresh", action="store_true", help="measure again what the store already holds")
    parser.add_argument("--list", action="store_true", help="only say which parts there are and what they lack")
    args = parser.parse_args()
    for name in ("dataset_dir", "development_dir", "measured_dir"):
        folder = getattr(args, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name}: {folder} is no folder")
    # Parts run in the project's folder, wherever this was called from.
    for name in ("dataset_dir", "development_dir", "measured_dir", "trained_dir", "training_dir", "weights", "store"):
        if getattr(args, name) is not None:
            setattr(args, name, getattr(args, name).resolve())
    parts = find_parts(args)
    unknown = sorted(set(args.only or ()) - {part.name for part in parts})
    if unknown:
        parser.error(f"--only: there is no part {unknown[0]!r}, only {', '.join(part.name for part in parts)}")
    if args.list:
        print(table(["part", "what", "lacks"], [[part.name, part.title, part.skipped] for part in parts]))
        return
    chosen = [part for part in parts if args.only is None or part.name in args.only]
    stamps = RowStore(args.store / ("quick.jsonl" if args.quick else "parts.jsonl"))
    outcomes: list[Outcome] = []
    try:
        for number, part in enumerate(chosen, start=1):
            print(f"[{number}/{len(chosen)}] {part.name}: {part.title}", flush=True)
            outcomes.append(run_part(part, args, stamps))
            print(
                f"[{number}/{len(chosen)}] {part.name}: {outcomes[-1].state} {outcomes[-1].note}".rstrip(), flush=True
            )
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
    if not args.quick and len(outcomes) == len(parts):
        insert_between_markers(DOCS / "results" / "README.md", "parts", index(outcomes, stamps))
    print(say(outcomes))
    if len(outcomes) < len(chosen) or any(outcome.state == "failed" for outcome in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
