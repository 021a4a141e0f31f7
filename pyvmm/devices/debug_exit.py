"""A port by which a guest ends the run and says how it went: for tests of kernels.

QEMU has such a port, ``isa-debug-exit``, and makes ``V << 1 | 1`` of what is written, so that no
guest can end it with status 0. Here the guest's V is the status, whole: 0 is success.
"""

from __future__ import annotations

from collections.abc import Callable


class DebugExit:
    """Calls ``on_exit`` with the number that the guest writes, of 1, 2 or 4 bytes; it need not
    return."""

    access_bytes = 4

    def __init__(self, on_exit: Callable[[int], object]) -> None:
        self._on_exit = on_exit

    def read(self, offset: int, size: int) -> int:
        """Zero, by which a guest can see that the port is there."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """End the run with status ``value``; only the first of the ports does it."""
        if offset == 0:
            self._on_exit(value)
