"""What the measuring scripts share: the scanner of configs/evaluate.json, its cases, what a stored row is valid for."""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))

from methods import METHODS, NOISE2INVERSE, PEER_WEIGHTS, STRENGTHS, TUNED  # noqa: E402
from monai.bundle import ConfigParser  # noqa: E402
from torch import Tensor  # noqa: E402

from bundle.evaluation import write_csv, write_json  # noqa: E402
from bundle.io import find_scans  # noqa: E402
from bundle.peers import Scan  # noqa: E402
from bundle.physics import FanBeamGeometry  # noqa: E402

#: What a simulated scan follows from, beside the image.
SETTINGS = ("geometry", "photons", "electronic_variance", "mu_water", "seed", "windows", "restore_to")
#: Methods that take five seconds or more a slice and are no part of a quick run.
SLOW = ("bm3d", "zs_n2n")
#: Rooms of bundle/ whose code makes the images of our methods, and those of the others.
OUR_ROOMS, PEER_ROOMS = ("projection", "autoencoder", "diffusion", "inference"), ("projection", "peers")


@dataclass(frozen=True)
class Case:
    """One slice of one patient, scanned at one dose.

    Args:
        key: what tells it from all others, as stored with every row: ``patient``, ``case``, ``slice``, ``dose``,
            ``image`` and ``setting`` (checksums).
        scan: what a method is given; one slice.
        reference: normal-dose image ``(1, H, W)``, HU.
    """

    key: dict[str, Any]
    scan: Scan
    reference: Tensor


class Stack:
    """The chosen slices of one CT image, to be scanned at several doses.

    Args:
        item: of :func:`bundle.io.find_scans`.
        config: parsed evaluate.json with its overrides.
    """

    def __init__(self, item: Mapping[str, Any], config: ConfigParser) -> None:
        load, self._simulate = config.get_parsed_content("preprocessing").transforms
        self._config = config
        self._item = load(dict(item))
        self.patient, self.name = item["patient"], item["name"]
        self.slices = [int(index) for index in self._item["slice"]]
        paths = item["path"] if isinstance(item["path"], (list, tuple)) else [item["path"]]
        self._fixed = {"image": checksum(*map(Path, paths)), "setting": settings_checksum(config)}

    def key(self, index: int, dose: float) -> dict[str, Any]:
        """Key of the case of one slice (its index in the file) at one dose."""
        return {"patient": self.patient, "case": self.name, "slice": index, "dose": dose, **self._fixed}

    def scanned(self, dose: float, slices: Sequence[int] | None = None) -> Iterator[Case]:
        """All slices, or these of them, scanned at once; their noise belongs to slice and dose, not to the order."""
        chosen = self.slices if slices is None else list(slices)
        positions = [self.slices.index(index) for index in chosen]
        images, indices = self._item["image_hu"][:, positions], self._item["slice"][positions]
        item = self._simulate({**self._item, "image_hu": images, "slice": indices, "dose": dose})
        geometry = FanBeamGeometry.from_json(item["geometry"])
        for position, index in enumerate(chosen):
            yield Case(
                self.key(index, dose),
                Scan(
                    sinogram=item["sinogram"][:, position, None],
                    geometry=geometry,
                    incident_photons=float(item["incident_photons"]),
                    electronic_variance=float(self._config["electronic_variance"]),
                    mu_water=float(self._config["mu_water"]),
                ),
                item["reference"][:, position],
            )


def add_arguments(parser: argparse.ArgumentParser, slices: int, doses: Sequence[float]) -> None:
    """The arguments that all measuring scripts take."""
    parser.add_argument("--dataset_dir", required=True, help="CT images of patients that training never saw")
    parser.add_argument("--weights", type=Path, default=ROOT / "models" / "model.pt")
    parser.add_argument("--slices", type=int, default=slices, help="evenly spaced slices of each scan")
    parser.add_argument("--doses", type=float, nargs="+", default=list(doses), help="fractions of the normal dose")
    parser.add_argument("--exclude", nargs="*", default=[], help="patients (patterns) to leave out")
    parser.add_argument("--output", type=Path, help="folder of the report (default docs/results; quick: output/quick)")
    parser.add_argument("--store", type=Path, default=ROOT / "output" / "results", help="folder of the measured rows")
    parser.add_argument("--quick", action="store_true", help="two doses, one slice a patient: to see that all works")
    parser.add_argument("--fresh", action="store_true", help="measure again what the store already holds")


def settle(args: argparse.Namespace, quick_doses: Sequence[float] = (0.1, 0.25)) -> argparse.Namespace:
    """Put in what ``--quick`` stands for, and where the report goes."""
    if args.quick:
        args.slices, args.doses = 1, list(quick_doses)
    args.output = args.output or (ROOT / "output" / "quick" if args.quick else ROOT / "docs" / "results")
    return args


def load_config(args: argparse.Namespace, *overrides: Path) -> ConfigParser:
    """evaluate.json under its overrides; ``load_weights`` in it takes ``--weights``."""
    files = [str(ROOT / "configs" / "evaluate.json"), *map(str, overrides)]
    config = ConfigParser(ConfigParser.load_config_files(files))
    config.update({"dataset_dir": str(args.dataset_dir), "slices": args.slices, "weights": str(args.weights)})
    return config


def load_stacks(args: argparse.Namespace, config: ConfigParser) -> list[Stack]:
    """Every CT image of ``--dataset_dir`` but those of ``--exclude``.

    Raises:
        ValueError: none is left, or one is a measured sinogram, which has no reference.
    """
    items = [s for s in find_scans(args.dataset_dir) if not any(fnmatchcase(s["patient"], p) for p in args.exclude)]
    measured = [item["name"] for item in items if item["kind"] != "ct"]
    if measured:
        raise ValueError(f"{args.dataset_dir}: {measured[0]} is a measured sinogram and has no reference to measure by")
    if not items:
        raise ValueError(f"--exclude {args.exclude} leaves no scan of {args.dataset_dir}")
    return [Stack(item, config) for item in items]


def checksum(*contents: Path | str) -> str:
    """Twelve hexadecimal digits that follow from files (their bytes) and texts, in this order."""
    digest = hashlib.blake2b(digest_size=6)
    for content in contents:
        digest.update(content.read_bytes() if isinstance(content, Path) else content.encode())
    return digest.hexdigest()


def settings_checksum(config: ConfigParser) -> str:
    """Checksum of the scanner, the noise and the windows."""
    return checksum(repr([(name, config[name]) for name in SETTINGS]))


def method_versions(names: Sequence[str], config: ConfigParser, weights: Path) -> dict[str, str]:
    """Checksum of what each method of scripts/methods.py works with: weights, configuration, strengths, its code."""
    networks = repr([(key, value) for key, value in config.get().items() if key.endswith("_def")])
    tuned = json.loads(STRENGTHS.read_text(encoding="utf-8"))["doses"] if STRENGTHS.is_file() else []
    versions = {}
    for name in names:
        group = METHODS[name][1]
        if group == "ours":
            parts = [weights, networks]
        elif name in TUNED:
            parts = [repr([(row["noise_hu"], row["chosen"].get(name)) for row in tuned])]
        else:
            # What a peer does not use may change: it need not be measured anew.
            uses = {"neighbor2neighbor": repr(config.get("projection_def")), "noise2inverse": NOISE2INVERSE}
            trained = PEER_WEIGHTS / f"{name}.pt"
            parts = [trained, uses.get(name, networks)] if trained.is_file() else []
        rooms = OUR_ROOMS if group in ("ours", "supervised") else PEER_ROOMS
        versions[name] = checksum(*parts, code_checksum(rooms))
    return versions


def without_root(text: str) -> str:
    """A message with paths as seen from the project's folder."""
    return text.replace(f"{ROOT}/", "")


def code_checksum(rooms: Sequence[str] = ("",)) -> str:
    """Checksum of what the code in bundle/ does, or in these rooms: comments, docstrings, layout do not change it."""
    files = sorted(path for room in rooms for path in (ROOT / "bundle" / room).rglob("*.py"))
    return checksum(*(_statements(path) for path in files))


def _statements(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    return ast.dump(tree)


def rounded(value: Any, digits: int = 5) -> Any:
    """Numbers at any depth cut to so many significant digits, for files that people read."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {key: rounded(entry, digits) for key, entry in value.items()}
    return [rounded(entry, digits) for entry in value] if isinstance(value, (list, tuple)) else value


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A stored row for the table of all rows: rounded, without what is the same everywhere."""
    return {name: rounded(value) for name, value in row.items() if name not in ("image", "setting", "code")}


def say_codes(rows: Sequence[Mapping[str, Any]]) -> str:
    """A warning where rows were measured by more than one state of the code; empty where by one."""
    codes = {row["code"] for row in rows}
    if codes <= {code_checksum()}:
        return ""
    return (
        f"{len(codes)} state(s) of the code measured these rows, not only the present one; "
        "to measure all anew, give --fresh"
    )


def write_report(
    output: Path, name: str, page: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> None:
    """Write ``<name>.md``, ``<name>.csv`` and ``<name>.json`` of these rows into a folder, and say so."""
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.md").write_text(page, encoding="utf-8")
    shown = [plain(row) for row in rows]
    write_csv(output / f"{name}.csv", shown, overwrite=True)
    content = {"settings": settings, "code": sorted({row["code"] for row in rows}), "rows": shown}
    write_json(output / f"{name}.json", content, overwrite=True)
    print(f"{len(rows)} rows; written to {output}")
    if warning := say_codes(rows):
        print(warning)
