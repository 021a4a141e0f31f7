"""pvpanic: the port by which a guest says that it has panicked.

Spec: QEMU's docs/specs/pvpanic.rst. The DSDT tells of it (HID QEMU0001), and Linux's pvpanic-mmio
finds it there. At a panic the driver writes one of the events below, once.

Left out: the event of a regular shutdown (bit 2, new in 2024), for which there is ACPI's S5.
"""

from __future__ import annotations

from collections.abc import Callable

PANICKED = 1 << 0  # the guest is done for
CRASH_LOADED = 1 << 1  # and goes on by itself, with a crash kernel: let it run
SUPPORTED = PANICKED | CRASH_LOADED


class PvPanic:
    """The port. ``on_event`` is called with PANICKED or CRASH_LOADED, or both; it need not
    return."""

    access_bytes = 1

    def __init__(self, on_event: Callable[[int], object]) -> None:
        self._on_event = on_event

    def read(self, offset: int, size: int) -> int:
        """The events that are understood here. A driver writes no others."""
        return SUPPORTED

    def write(self, offset: int, size: int, value: int) -> None:
        """Events have happened. Those that are not understood are ignored."""
        if value & SUPPORTED:
            self._on_event(value & SUPPORTED)
