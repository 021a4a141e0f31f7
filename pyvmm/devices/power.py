"""The ACPI PM1 block: the power button, and how a guest powers the machine off.

Spec: ACPI Specification 6.5, 4.8.3.1, "PM1 Event Grouping", and 4.8.3.2, "PM1 Control Grouping".

    offset  register
    0       PM1 status       what has happened; writing a 1 clears the bit
    2       PM1 enable       what of it shall raise the SCI
    4       PM1 control      SLP_TYP and SLP_EN: go to sleep

The one event that happens here is the power button's. The others can be enabled, since a kernel
reads back whether they are, and never come.

The values of SLP_TYP are the platform's to choose. The one sleep state here is S5, soft off, with
SLP_TYP 0, as QEMU's PIIX4 has it: so a guest without ACPI that writes 0x2000 is understood. ACPI
tables must say ``_S5 = {0, 0}``.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvmm.devices.bus import IrqLine

# Status and enable: the same bits in both.
TMR = 1 << 0  # the PM timer's highest bit has changed
GBL = 1 << 5  # the firmware has let go of the global lock
PWRBTN = 1 << 8
SLPBTN = 1 << 9
RTC = 1 << 10  # the alarm
_EVENTS = TMR | GBL | PWRBTN | SLPBTN | RTC

# Control.
SCI_EN = 1 << 0  # ACPI mode. There is no SMI to leave it by: it always is on
BM_RLD = 1 << 1
SLP_TYP_SHIFT = 10
SLP_TYP_MASK = 7 << SLP_TYP_SHIFT
SLP_EN = 1 << 13  # write only: reads as zero
_CONTROL_KEPT = BM_RLD | SLP_TYP_MASK

S5_SLP_TYP = 0

_ENABLE_SHIFT = 16
_CONTROL_SHIFT = 32


class AcpiPm:
    """The three 16-bit registers. ``irq`` is the SCI, a level.

    ``power_off`` is called when the guest enters S5; it need not return.
    """

    access_bytes = 4

    def __init__(self, irq: IrqLine, power_off: Callable[[], object]) -> None:
        self._irq = irq
        self._power_off = power_off
        self._lock = Lock()
        self._status = 0
        self._enable = 0
        self._control = SCI_EN
        self._irq_level = False

    def press_power_button(self) -> None:
        """Ask the guest to shut down. It decides whether it does. From any thread."""
        with self._lock:
            self._status |= PWRBTN
            self._update_irq()

    def read(self, offset: int, size: int) -> int:
        """Read the registers, or some bytes of them."""
        with self._lock:
            return self._registers() >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the registers, or some bytes of them; SLP_EN with the type of S5 powers off."""
        written = value << 8 * offset
        mask = (1 << 8 * size) - 1 << 8 * offset
        with self._lock:
            registers = self._registers() & ~mask | written
            self._status &= ~written
            self._enable = registers >> _ENABLE_SHIFT & _EVENTS
            control = registers >> _CONTROL_SHIFT
            self._control = control & _CONTROL_KEPT | SCI_EN
            self._update_irq()
        if control & SLP_EN and (control & SLP_TYP_MASK) >> SLP_TYP_SHIFT == S5_SLP_TYP:
            self._power_off()

    def _registers(self) -> int:
        """The whole block as one number."""
        return self._status | self._enable << _ENABLE_SHIFT | self._control << _CONTROL_SHIFT

    def _update_irq(self) -> None:
        level = bool(self._status & self._enable)
        if level is not self._irq_level:
            self._irq_level = level
            self._irq.set(level)
