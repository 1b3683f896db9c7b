"""Tune the classical peers on development patients: cutoff of Hann, base and strength of NLM, TV and BM3D, by dose.

    python scripts/tune_peers.py --dataset_dir DIR --exclude 'chest1mm*'

Each peer gets what makes its mean RMSE over the slices least, against the normal-dose FBP: a fairer opponent than one
with a strength from a paper. Give it the patients that our stages were trained on, never those of a test. Grids are
searched by climbing from the best of the dose before, until the best has worse neighbours on both sides. Writes
docs/results/peer_strengths.json, which scripts/methods.py reads; stopped, it goes on where it was. Scanner and noise
are those of configs/evaluate.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))

from methods import STRENGTHS, TUNED  # noqa: E402
from monai.bundle import ConfigParser  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from bundle.io import find_scans  # noqa: E402
from bundle.peers import FbpPeer, Scan  # noqa: E402
from bundle.physics import FanBeamGeometry  # noqa: E402

DOSES = (0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0)
#: Base of the noise level that entries are told apart by.
NOISE_WINDOW = "hann"
#: Growing by steps of a fifth or less; climbing stops inside, or says that it did not.
CUTOFFS = (
    0.08,
    0.1,
    0.12,
    0.15,
    0.2,
    0.25,
    0.3,
    0.35,
    0.4,
    0.45,
    0.5,
    0.55,
    0.6,
    0.65,
    0.7,
    0.75,
    0.8,
    0.85,
    0.9,
    0.95,
    1.0,
)
STEPS = tuple(round(0.1 * 1.25**n, 3) for n in range(19))
#: Images that filters work on: window, cutoff.
BASES = (("ram-lak", 1.0), ("hann", 1.0), ("hann", 0.7), ("hann", 0.5), ("hann", 0.35), ("hann", 0.25))
#: What else a filter has, in the order that it is tried at the best base and strength.
MORE = {"nlm": {"patch_size": (3, 5, 7, 9, 11, 13, 15), "patch_distance": (2, 3, 4, 5, 7, 9, 11, 13, 16, 20, 25)}}
FIRST = {"nlm": {"patch_size": 7, "patch_distance": 5}}
START = {"fbp_hann": 1.0, "nlm": 1.0, "tv": 1.0, "bm3d": 1.0}


class Slices:
    """The slices of all patients at one dose, and their images by base, made once."""

    def __init__(self, scans: Sequence[Scan], references: Sequence[Tensor]) -> None:
        self.scans = scans
        self.references = references
        self._images: dict[tuple[str, float], list[tuple[Tensor, Tensor]]] = {}

    def images(self, window: str, cutoff: float) -> list[tuple[Tensor, Tensor]]:
        """Image and noise of every scan on this base."""
        if (window, cutoff) not in self._images:
            self._images[window, cutoff] = [FbpPeer(window, cutoff).with_noise(scan) for scan in self.scans]
        return self._images[window, cutoff]

    def rmse(self, images: Sequence[Tensor]) -> float:
        """Mean over the slices of the root mean square error over the whole slice, HU."""
        errors = [
            (one - clean).square().mean().sqrt().item()
            for stack, reference in zip(images, self.references)
            for one, clean in zip(stack, reference)
        ]
        return fmean(errors)

    def score(self, name: str, window: str, cutoff: float, **arguments: float) -> float:
        """Error of a method with these arguments."""
        made = self.images(window, cutoff)
        if name == "fbp_hann":
            return self.rmse([image for image, _ in made])
        peer = TUNED[name](window=window, cutoff=cutoff, **arguments)
        return self.rmse([peer.filtered(image, noise) for image, noise in made])


def climb(grid: Sequence[float], start: float, score: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """Best of a grid, from ``start`` down hill until both neighbours are worse; and every score that was seen."""
    tried: dict[float, float] = {}

    def at(index: int) -> float:
        if not 0 <= index < len(grid):
            return float("inf")
        if grid[index] not in tried:
            tried[grid[index]] = score(grid[index])
        return tried[grid[index]]

    here = min(range(len(grid)), key=lambda index: abs(grid[index] - start))
    while True:
        best = min((here, here + 1, here - 1), key=at)
        if best == here:
            return grid[here], tried
        here = best


def tune(name: str, slices: Slices, last: dict) -> tuple[dict, float, dict]:
    """Best arguments of a method for these slices, their error, and every error that was seen by base and strength."""
    if name == "fbp_hann":
        cutoff, tried = climb(CUTOFFS, last.get("cutoff", START[name]), lambda c: slices.score(name, "hann", c))
        return {"window": "hann", "cutoff": cutoff}, tried[cutoff], {"hann": tried}
    more = {key: last.get(key, value) for key, value in FIRST.get(name, {}).items()}
    strength, seen, found = last.get("strength", START[name]), {}, []
    # From the last dose's base to its neighbours, as along a grid: sharper and smoother ones.
    position = BASES.index((last["window"], last["cutoff"])) if last else 0

    def base_error(index: float) -> float:
        window, cutoff = BASES[int(index)]
        best, tried = climb(STEPS, strength, lambda s: slices.score(name, window, cutoff, strength=s, **more))
        seen[f"{window} {cutoff:g}"] = tried
        found.append((tried[best], {"strength": best, "window": window, "cutoff": cutoff}))
        return tried[best]

    climb(range(len(BASES)), position, base_error)
    error, arguments = min(found, key=lambda pair: pair[0])
    for key, values in MORE.get(name, {}).items():
        attempt = partial(refine, name, slices, arguments, error, more, key, seen=seen)
        strengths: dict[float, float] = {}
        value, tried = climb(values, more[key], partial(attempt, strengths=strengths))
        error, arguments["strength"], more = tried[value], strengths[value], {**more, key: value}
    return {**arguments, **more}, error, seen


def refine(
    name: str,
    slices: Slices,
    arguments: dict,
    error: float,
    more: dict,
    key: str,
    value: float,
    *,
    seen: dict,
    strengths: dict[float, float],
) -> float:
    """Error with another ``value`` of the argument ``key``, at its own best strength, which goes into ``strengths``."""
    if value == more[key]:
        strengths[value] = arguments["strength"]
        return error
    window, cutoff = arguments["window"], arguments["cutoff"]
    score = partial(slices.score, name, window, cutoff, **{**more, key: value})
    strengths[value], tried = climb(STEPS, arguments["strength"], lambda strength: score(strength=strength))
    seen[f"{window} {cutoff:g}, {key} {value}"] = tried
    return tried[strengths[value]]


def at_a_border(name: str, arguments: dict) -> bool:
    """Whether the best lies at an end of its grid, where a better one may lie outside.

    The full band is no such end: there is nothing sharper than the whole.
    """
    if name == "fbp_hann":
        return arguments["cutoff"] == CUTOFFS[0]
    if any(arguments[key] in (values[0], values[-1]) for key, values in MORE.get(name, {}).items()):
        return True
    return arguments["strength"] in (STEPS[0], STEPS[-1]) or (arguments["window"], arguments["cutoff"]) == BASES[-1]


def kept_rows(path: Path, head: dict) -> dict[float, dict]:
    """What a file of strengths holds by dose; nothing if it was tuned on other patients, another scanner or grid."""
    if not path.is_file():
        return {}
    earlier = json.loads(path.read_text(encoding="utf-8"))
    same = all(earlier.get(key) == value for key, value in json.loads(json.dumps(head)).items())
    return {row["dose"]: row for row in earlier["doses"]} if same else {}


def scan_all(items: Sequence[dict], simulate: Callable[[dict], dict], config: ConfigParser, dose: float) -> Slices:
    """The slices of all patients, scanned at this dose."""
    scans, references = [], []
    for item in items:
        scanned = simulate({**item, "dose": dose})
        scans.append(
            Scan(
                sinogram=scanned["sinogram"].transpose(0, 1),
                geometry=FanBeamGeometry.from_json(scanned["geometry"]),
                incident_photons=config["photons"] * dose,
                electronic_variance=config["electronic_variance"],
                mu_water=config["mu_water"],
            )
        )
        references.append(scanned["reference"].transpose(0, 1))
    return Slices(scans, references)


def tune_doses(
    rows: dict[float, dict], doses: Sequence[float], methods: Sequence[str], scan: Callable[[float], Slices]
) -> Iterator[dict[float, dict]]:
    """The rows by dose, after each dose that lacked a method; highest dose first, each started at the last one's best.

    Args:
        rows: what is tuned already; a method that a dose's row has is not tuned again, nor the dose scanned if all are.
        scan: makes the slices of a dose.
    """
    rows = dict(rows)
    last: dict[str, dict] = {name: {} for name in methods}
    for dose in tqdm(sorted(doses, reverse=True), desc="tune", unit="dose"):
        row = rows.setdefault(dose, {"dose": dose, "chosen": {}, "rmse_hu": {}, "at_a_border": [], "tried": {}})
        last.update({name: row["chosen"][name] for name in methods if name in row["chosen"]})
        missing = [name for name in methods if name not in row["chosen"]]
        if not missing:
            continue
        slices = scan(dose)
        levels = [float(level) for _, noise in slices.images(NOISE_WINDOW, 1.0) for level in noise]
        row["noise_hu"] = round(fmean(levels), 3)
        row["rmse_hu"]["fbp_ram-lak"] = round(slices.score("fbp_hann", "ram-lak", 1.0), 3)
        for name in missing:
            start = time.perf_counter()
            arguments, error, seen = tune(name, slices, last[name])
            last[name] = arguments
            row["chosen"][name], row["rmse_hu"][name] = arguments, round(error, 3)
            row["at_a_border"] = [n for n in row["at_a_border"] if n != name]
            row["at_a_border"] += [name] if at_a_border(name, arguments) else []
            row["tried"][name] = {
                base: {f"{k:g}": round(v, 3) for k, v in sorted(tried.items())} for base, tried in seen.items()
            }
            tqdm.write(f"{dose:6.0%} {name:9} {error:7.2f} HU {arguments} {time.perf_counter() - start:.0f} s")
        yield rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", required=True, help="CT images of development patients")
    parser.add_argument("--exclude", nargs="*", default=[], help="patients (patterns) to leave out")
    parser.add_argument("--slices", type=int, default=2, help="evenly spaced slices of each scan")
    parser.add_argument("--doses", type=float, nargs="+", default=list(DOSES), help="fractions of the normal dose")
    parser.add_argument("--methods", nargs="+", default=list(TUNED), choices=list(TUNED))
    parser.add_argument("--output", type=Path, default=STRENGTHS, help="what it holds of these patients stays")
    parser.add_argument("--fresh", action="store_true", help="tune these methods at these doses again")
    args = parser.parse_args()

    config = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs" / "evaluate.json")))
    config["slices"] = args.slices
    load, simulate = config.get_parsed_content("preprocessing").transforms
    scans = [s for s in find_scans(args.dataset_dir) if not any(fnmatchcase(s["patient"], p) for p in args.exclude)]
    items = [load(scan) for scan in scans if scan["kind"] == "ct"]
    if not items:
        parser.error(f"--exclude {args.exclude} leaves no CT image of {args.dataset_dir}")
    used = {item["patient"]: [int(index) for index in item["slice"]] for item in items}
    head = {
        "measure": "mean over the slices of the RMSE over the whole slice, HU; reference: Ram-Lak FBP, noise-free",
        "patients": used,
        "n": sum(map(len, used.values())),
        "photons": config["photons"],
        "electronic_variance": config["electronic_variance"],
        "noise_window": NOISE_WINDOW,
        "grid": {"cutoff": CUTOFFS, "strength": STEPS, "base": BASES, **MORE},
    }
    methods = []
    for name in args.methods:
        try:
            TUNED[name](1.0) if name == "bm3d" else None
            methods.append(name)
        except ModuleNotFoundError as error:
            print(f"{name} is skipped: {error}")

    rows = kept_rows(args.output, head)
    if args.fresh:
        for dose in args.doses:
            for name in methods:
                rows.get(dose, {"chosen": {}})["chosen"].pop(name, None)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for found in tune_doses(rows, args.doses, methods, partial(scan_all, items, simulate, config)):
        # After every dose, so that a stopped run keeps what it found.
        content = {**head, "doses": [found[key] for key in sorted(found)]}
        args.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
