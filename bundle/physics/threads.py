"""Threads for compiled loops, as many as torch has."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch


@lru_cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # One pool a process: a forked DataLoader worker inherits the object, but not its threads.
    return ThreadPoolExecutor(threads, thread_name_prefix="bundle")


def in_threads(work: Callable[[int, int], None], total: int, block: int) -> None:
    """Run ``work(low, high)`` over [0, total), split at multiples of ``block`` between torch's number of threads.

    ``work`` leaves Python's lock, as compiled loops do; parts may run in any order, at once.
    """
    threads = torch.get_num_threads()
    blocks = -(-total // block)
    if threads == 1 or blocks == 1:
        work(0, total)
        return
    # Four parts a thread: parts differ in work, and a thread that is done takes the next.
    parts = min(4 * threads, blocks)
    edges = [min(total, block * round(k * blocks / parts)) for k in range(parts + 1)]
    list(_pool(os.getpid(), threads).map(work, edges[:-1], edges[1:]))
