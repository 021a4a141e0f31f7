"""The ACPI PM1a control register: how a guest powers the machine off.

Spec: ACPI Specification 6.5, 4.8.3.2.1, "PM1 Control Registers". The guest writes the SLP_TYP
of the sleep state that it wants, together with SLP_EN. The values of SLP_TYP are the platform's
to choose. The one state here is S5, soft off, with SLP_TYP 0, as QEMU's PIIX4 has it: so a guest
without ACPI that writes 0x2000 is understood. ACPI tables of ours must say ``_S5 = {0, 0}``.
"""

from __future__ import annotations

from collections.abc import Callable

SCI_EN = 1 << 0
SLP_TYP_SHIFT = 10
SLP_TYP_MASK = 7 << SLP_TYP_SHIFT
SLP_EN = 1 << 13  # write only: reads as zero

S5_SLP_TYP = 0


class Pm1Control:
    """The 16-bit register. ``power_off`` is called when the guest enters S5; it need not return."""

    access_bytes = 2

    def __init__(self, power_off: Callable[[], object]) -> None:
        self._power_off = power_off
        # There is no SMI to switch ACPI on by: it always is.
        self._value = SCI_EN

    def read(self, offset: int, size: int) -> int:
        """The register as last written, SLP_EN excepted."""
        return self._value >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the register, or one byte of it; SLP_EN with the type of S5 powers off."""
        shift = 8 * offset
        kept = self._value & ~((1 << 8 * size) - 1 << shift)
        written = kept | value << shift
        self._value = written & ~SLP_EN | SCI_EN
        if written & SLP_EN and (written & SLP_TYP_MASK) >> SLP_TYP_SHIFT == S5_SLP_TYP:
            self._power_off()
