"""Train every form of the method that an ablation of configs/ablations needs, all with the same small budget.

    python scripts/train_ablations.py --dataset_dir DIR --exclude 'chest1mm*' --validation Anonymous

Each stage starts from nothing, sees the same data in the same order and stops after the same number of epochs; among
them are the forms that the others are held against (short_projection, short). Stage 3 starts from the stage 2 of short,
unless the ablation changes stage 2, too: then from its own. Resumes: what is there is not trained again. Output:
<output>/<name>/projection.pt or diffusion.pt, for measure_ablations.py --trained.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
ABLATIONS = CONFIGS / "ablations"
STAGES = ("projection", "autoencoder", "diffusion")
#: The form of stages 2 and 3 that the others are held against.
SHORT = "short"
#: What the stages are trained with where an ablation says nothing else.
RECIPE = {"projection": (), "autoencoder": ("cross_fit.json",), "diffusion": ("cross_fit.json",)}


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        name: of the ablation.
        stage: that is trained.
        overrides: after the stage's own config.
    """

    name: str
    stage: str
    overrides: tuple[str, ...]


def plan() -> list[Run]:
    """Every training, those of stage 1 first, an autoencoder before the diffusion that needs it."""
    runs = [
        Run("short_projection", "projection", ()),
        Run("thinned_projection", "projection", ("thinned_projection.json",)),
    ]
    later = [
        Run(SHORT, "autoencoder", RECIPE["autoencoder"]),
        Run(SHORT, "diffusion", RECIPE["diffusion"]),
        Run("plain", "autoencoder", ()),
        Run("plain", "diffusion", ()),
    ]
    for path in sorted(ABLATIONS.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        # An override of two stages has two files: the other one is <name>_autoencoder.json.
        name = path.stem.removesuffix("_autoencoder")
        for stage in STAGES:
            if f"train_{stage}.json" in content["_for_"]:
                run = Run(name, stage, (*RECIPE[stage], *content.get("_after_", ()), f"ablations/{path.name}"))
                (runs if stage == "projection" else later).append(run)
    changed = [run.name for run in later if run.stage == "autoencoder"]
    lacking = [Run(n, "diffusion", RECIPE["diffusion"]) for n in changed if Run(n, "diffusion", ()) not in later]
    known = {(run.name, run.stage) for run in later}
    later += [run for run in lacking if (run.name, run.stage) not in known]
    return runs + sorted(later, key=lambda run: (run.name != SHORT, run.name, STAGES.index(run.stage)))


def command(run: Run, args: argparse.Namespace, folder: Path) -> list[str]:
    """The bundle command of one training, into `folder`."""
    files = [str(CONFIGS / name) for name in (f"train_{run.stage}.json", *run.overrides)]
    options = {
        "dataset_dir": str(args.dataset_dir),
        "output_dir": str(folder),
        "bundle_root": str(ROOT),
        "exclude": str(list(args.exclude)),
        "validation": str(list(args.validation)),
        "max_epochs": str(args.epochs[STAGES.index(run.stage)]),
        "val_interval": str(args.epochs[STAGES.index(run.stage)]),
        "every": str(args.every[STAGES.index(run.stage)]),
        "precision": args.precision,
    }
    if run.stage != "projection":
        options["projection_weights"] = str(args.projection)
    if run.stage == "diffusion":
        own = args.output / run.name / "autoencoder.pt"
        options["autoencoder_weights"] = str(own if own.is_file() else args.output / SHORT / "autoencoder.pt")
    words = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files)]
    return [*words, *(word for name, value in options.items() for word in (f"--{name}", value))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--exclude", nargs="*", default=[], help="patients (patterns) that are kept for measuring")
    parser.add_argument("--validation", nargs="+", required=True, help="patients (patterns) that are watched")
    parser.add_argument("--projection", type=Path, help="stage 1 for stages 2 and 3; default that of models/model.pt")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "ablations")
    parser.add_argument("--epochs", type=int, nargs=3, default=(10, 20, 20), help="of the three stages")
    parser.add_argument("--every", type=int, nargs=3, default=(1, 3, 3), help="every n-th slice, for the three stages")
    parser.add_argument("--precision", default="float32", help="of the trainings: float32, bfloat16")
    parser.add_argument("--only", nargs="+", help="names of ablations; default all")
    args = parser.parse_args(arguments)
    runs = plan()
    if args.only and (unknown := sorted(set(args.only) - {run.name for run in runs})):
        parser.error(f"--only: no ablation {unknown[0]!r} is trained; there are {sorted({run.name for run in runs})}")
    if args.projection is None:
        args.projection = _projection_of(ROOT / "models" / "model.pt", args.output)
    if args.only:
        chosen = [run for run in runs if run.name in args.only]
        own = {run.name for run in chosen if run.stage == "autoencoder"}
        borrows = any(run.stage == "diffusion" and run.name not in own for run in chosen)
        runs = [run for run in runs if run in chosen or (borrows and (run.name, run.stage) == (SHORT, "autoencoder"))]
    for run in runs:
        done = args.output / run.name / f"{run.stage}.pt"
        if done.is_file():
            continue
        print(f"{run.name}: {run.stage}", flush=True)
        folder = args.output / run.name / run.stage
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(command(run, args, folder), check=True, cwd=ROOT)
        shutil.copy(folder / f"{run.stage}.pt", done)
    return 0


def _projection_of(model: Path, output: Path) -> Path:
    """Stage 1 of a whole model, as a file of its own."""
    sys.path.insert(1, str(ROOT))
    import torch

    from bundle.inference import read_weights

    weights = {k.removeprefix("projection."): v for k, v in read_weights(model).items() if k.startswith("projection.")}
    output.mkdir(parents=True, exist_ok=True)
    torch.save(weights, output / "projection.pt")
    return output / "projection.pt"


if __name__ == "__main__":
    sys.exit(main())
