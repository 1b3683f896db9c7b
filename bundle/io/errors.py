"""What a user is told last when a run stops."""

from __future__ import annotations

import sys
from types import TracebackType

#: Packages that wrap an error of what they were given to run in one of their own, which says less.
WRAPPERS = ("monai", "ignite")


def end_with_cause() -> None:
    """From now on a traceback ends with what went wrong, in its own words, where MONAI or ignite wrapped it.

    ``python -m monai.bundle run`` shows the whole chain, but ends with "Failed to instantiate component": the message
    that names the file or the argument stands a screen further up. Called by the configs; calling it again changes
    nothing.
    """
    show = sys.excepthook
    if getattr(show, "ends_with_cause", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        show(kind, error, trace)
        cause = unwrapped(error)
        if cause is not error:
            print(f"\n{type(cause).__name__}: {cause}", file=sys.stderr)

    hook.ends_with_cause = True
    sys.excepthook = hook


def unwrapped(error: BaseException) -> BaseException:
    """The first error of a chain of causes that none of :data:`WRAPPERS` raised; the last one, if they raised all."""
    while error.__cause__ is not None and _raised_in(error).partition(".")[0] in WRAPPERS:
        error = error.__cause__
    return error


def _raised_in(error: BaseException) -> str:
    """Name of the module that raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
