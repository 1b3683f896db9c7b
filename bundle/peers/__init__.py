"""Methods that ours is held against, on the same inputs: each a callable of a :class:`Scan` that gives HU images."""

from .classical import Bm3dPeer, FbpPeer, FilterPeer, NlmPeer, TunedPeer, TvPeer
from .noise2inverse import (
    ImageDenoiser,
    RandSplitPaird,
    ReconstructSplitsd,
    SplitAverageInferer,
    leave_one_out,
    reconstruct_splits,
    split_views,
)
from .scan import Peer, Scan
from .supervised import SupervisedPaird
from .trained import DenoisedSinogramPeer, Noise2InversePeer, StagedPeer
from .zero_shot import ZeroShotPeer, diagonal_pair

__all__ = [
    "Bm3dPeer",
    "DenoisedSinogramPeer",
    "FbpPeer",
    "FilterPeer",
    "ImageDenoiser",
    "NlmPeer",
    "Noise2InversePeer",
    "Peer",
    "RandSplitPaird",
    "ReconstructSplitsd",
    "Scan",
    "SplitAverageInferer",
    "StagedPeer",
    "SupervisedPaird",
    "TunedPeer",
    "TvPeer",
    "ZeroShotPeer",
    "diagonal_pair",
    "leave_one_out",
    "reconstruct_splits",
    "split_views",
]
