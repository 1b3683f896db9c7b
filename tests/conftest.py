"""Settings of every test: few threads, no deadlines, no pictures on a screen."""

from __future__ import annotations

import os

# Before torch and numba are imported: idle threads must sleep, or two pools on two cores wait for each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(min(2, os.cpu_count() or 1))

# The first call of an operator compiles it; a deadline would make whichever test comes first fail.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")
