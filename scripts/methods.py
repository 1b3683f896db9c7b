"""The methods of a comparison by name: peers with their tuned strengths and trained weights, and our own stages.

    methods = load_methods(config, weights)   # config: configs/evaluate.json, parsed
    image_hu = methods["nlm"].call(scan)      # scan: bundle.peers.Scan

Strengths come from docs/results/peer_strengths.json (scripts/tune_peers.py), weights of trained peers from
models/peers/. A method whose package, weights or strengths are not there is listed with the reason.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))

import torch  # noqa: E402
from monai.bundle import ConfigParser  # noqa: E402

from bundle.inference import load_weights  # noqa: E402
from bundle.peers import (  # noqa: E402
    Bm3dPeer,
    DenoisedSinogramPeer,
    FbpPeer,
    NlmPeer,
    Noise2InversePeer,
    Peer,
    StagedPeer,
    TunedPeer,
    TvPeer,
    ZeroShotPeer,
)

STRENGTHS = ROOT / "docs" / "results" / "peer_strengths.json"
PEER_WEIGHTS = ROOT / "models" / "peers"
NOISE2INVERSE = ROOT / "configs" / "train_noise2inverse.json"

#: Name of a method to its title and group.
METHODS = {
    "fbp_ram-lak": ("FBP, Ram-Lak", "classical"),
    "fbp_hann": ("FBP, Hann at its best cutoff", "classical"),
    "nlm": ("NLM on FBP, tuned", "classical"),
    "tv": ("TV on FBP, tuned", "classical"),
    "bm3d": ("BM3D on FBP, tuned", "classical"),
    "neighbor2neighbor": ("Neighbor2Neighbor (stage 1 with e = 0), FBP", "self-supervised"),
    "zs_n2n": ("ZS-N2N in projections, FBP", "self-supervised"),
    "noise2inverse": ("Noise2Inverse", "self-supervised"),
    "prior": ("prior (stage 1, FBP)", "ours"),
    "fused": ("fused", "ours"),
    "restored": ("restored", "ours"),
    "object": ("restored to the object", "ours"),
    "supervised": ("supervised twin of stages 2 and 3", "supervised"),
}

#: Which class each tuned method is; their arguments are in the file of strengths.
TUNED = {"fbp_hann": FbpPeer, "nlm": NlmPeer, "tv": TvPeer, "bm3d": Bm3dPeer}


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Args:
        name: key of :data:`METHODS`.
        title: for a reader.
        group: ``classical``, ``self-supervised``, ``ours`` or ``supervised``.
        call: a :class:`bundle.peers.Scan` of S slices to HU ``(S, 1, H, W)``; None where skipped.
        skipped: why it can't run here; None where it can.
    """

    name: str
    title: str
    group: str
    call: Peer | None
    skipped: str | None = None


def load_methods(
    config: ConfigParser,
    weights: str | Path | None = None,
    names: Sequence[str] | None = None,
    *,
    strengths: Path = STRENGTHS,
    peer_weights: Path = PEER_WEIGHTS,
) -> dict[str, Method]:
    """The methods of these names (None: all), in the order of :data:`METHODS`.

    Args:
        config: evaluate.json, parsed, with any overrides; it is not changed.
        weights: of our own model; None: those that ``config`` names.
        names: which methods.
        strengths: file that scripts/tune_peers.py wrote.
        peer_weights: folder of ``neighbor2neighbor.pt``, ``noise2inverse.pt`` and ``supervised.pt``.

    Raises:
        ValueError: an unknown name.
    """
    unknown = set(names or ()) - set(METHODS)
    if unknown:
        raise ValueError(f"names must be of {sorted(METHODS)}, got {sorted(unknown)}")
    builder = _Builder(config, weights, strengths, peer_weights)
    methods = {}
    for name, (title, group) in METHODS.items():
        if names is not None and name not in names:
            continue
        try:
            call, skipped = builder.build(name), None
        except _Missing as error:
            call, skipped = None, str(error)
        except ModuleNotFoundError as error:
            call, skipped = None, f"package missing: {error}"
        methods[name] = Method(name, title, group, call, skipped)
    return methods


class _Missing(Exception):
    """A file that a method needs is not there, or does not hold what it needs."""


class _Builder:
    def __init__(self, config: ConfigParser, weights: str | Path | None, strengths: Path, peer_weights: Path) -> None:
        self.content = copy.deepcopy(config.get())
        self.weights = weights
        self.strengths = Path(strengths)
        self.peer_weights = Path(peer_weights)
        self.backend = config["backend"]

    def build(self, name: str) -> Callable:
        if name == "fbp_ram-lak":
            return FbpPeer("ram-lak", backend=self.backend)
        if name in TUNED:
            return self.tuned(name)
        if name == "zs_n2n":
            return ZeroShotPeer(backend=self.backend)
        if name == "neighbor2neighbor":
            denoiser = self._weighted(self._parsed("projection_def"), "neighbor2neighbor")
            return DenoisedSinogramPeer(denoiser, backend=self.backend)
        if name == "noise2inverse":
            training = ConfigParser(ConfigParser.load_config_file(str(NOISE2INVERSE)))
            network = self._weighted(training.get_parsed_content("network_def"), "noise2inverse")
            return Noise2InversePeer(
                network, training["splits"], training["strategy"], training["ramp_window"], self.backend
            )
        if name == "supervised":
            return StagedPeer(self._restorer(self._peer_file("supervised"))).stage("restored")
        if name == "object":
            return StagedPeer(self._restorer(self.weights, restore_to="object")).stage("restored")
        return self._own.stage(name)

    def tuned(self, name: str) -> TunedPeer:
        kind = TUNED[name]
        if name == "bm3d":
            kind(1.0)  # a missing package is a better reason than a missing strength
        if not self.strengths.is_file():
            raise _Missing(f"no strengths: {self.strengths} does not exist (scripts/tune_peers.py writes it)")
        tuned = json.loads(self.strengths.read_text(encoding="utf-8"))
        entries = [(dose["noise_hu"], dose["chosen"][name]) for dose in tuned["doses"] if name in dose["chosen"]]
        if not entries:
            raise _Missing(f"no strengths: {self.strengths} has none of {name}")
        peers = {noise: kind(**arguments, backend=self.backend) for noise, arguments in entries}
        return TunedPeer(peers, tuned["noise_window"], self.backend)

    @cached_property
    def _own(self) -> StagedPeer:
        return StagedPeer(self._restorer(self.weights))

    def _restorer(self, weights: str | Path | None, **settings: str) -> torch.nn.Module:
        if weights is not None:
            settings["weights"] = str(weights)
        # The whole entry, not network_def alone: an override may change what becomes of it.
        try:
            return self._parsed("network", settings)
        except Exception as error:
            raise _Missing(_first_cause(error)) from error

    def _weighted(self, network: torch.nn.Module, name: str) -> torch.nn.Module:
        try:
            return load_weights(network, self._peer_file(name)).to(self._parsed("device"))
        except ValueError as error:
            raise _Missing(str(error)) from error

    def _peer_file(self, name: str) -> Path:
        path = self.peer_weights / f"{name}.pt"
        if not path.is_file():
            raise _Missing(f"no weights: {path} does not exist")
        return path

    def _parsed(self, key: str, settings: dict | None = None) -> object:
        # A parser of its own each time: parsed entries are kept, and two networks must not be one.
        return ConfigParser({**copy.deepcopy(self.content), **(settings or {})}).get_parsed_content(key)


def _first_cause(error: BaseException) -> str:
    """What went wrong at the bottom: the parser wraps it in errors of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
