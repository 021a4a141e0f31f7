"""What the commands say to the user: lines on standard error, never in the way of anything."""

from __future__ import annotations

import sys


def tell(text: str) -> None:
    """Print ``text`` on standard error. That it is closed, or full, is no reason to fail."""
    if sys.stderr is None:  # closed; print() would take standard output instead
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


def complain(error: object) -> None:
    """Say what went wrong, in one line, whatever the names in it contain."""
    tell(f"pyvmm: error: {' '.join(str(error).splitlines())}")
