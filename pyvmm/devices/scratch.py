"""A port that keeps the last byte written to it, and does nothing else.

Two of a PC's ports are like that, as far as a guest can tell. 0x80 gets the firmware's progress
codes ("POST codes"), and Linux writes to it just to let a microsecond go by
(arch/x86/kernel/io_delay.c); 0xed is for the same, on machines that need 0x80 for themselves.
"""

from __future__ import annotations


class ScratchPort:
    """One port. ``value`` is the last byte that the guest wrote; None if it wrote none."""

    access_bytes = 1

    def __init__(self) -> None:
        self.value: int | None = None

    def read(self, offset: int, size: int) -> int:
        """The last byte written; all ones before that."""
        return 0xFF if self.value is None else self.value

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep ``value``."""
        self.value = value
