"""The local APIC's two input pins, as PC firmware wires them.

LINT0 takes interrupts from the 8259 PIC until the IOAPIC is in use, LINT1 takes NMIs. At reset
both are masked, and a kernel that trusts its firmware would wait for its timer for ever.

Specification: SDM 3A 11.5.1 (local vector table), figure 11-8; offsets: table 11-1.
"""

from __future__ import annotations

LVT_LINT0 = 0x350
LVT_LINT1 = 0x360

DELIVERY_MODE_NMI = 0b100 << 8
DELIVERY_MODE_EXTINT = 0b111 << 8


def wire_local_interrupts(registers: bytearray | memoryview) -> None:
    """Set LINT0 to ExtINT and LINT1 to NMI, unmasked, in a LAPIC's register page.

    ``registers`` is the page as KVM_GET_LAPIC gives it: each register at its offset, 32 bits.
    """
    registers[LVT_LINT0 : LVT_LINT0 + 4] = DELIVERY_MODE_EXTINT.to_bytes(4, "little")
    registers[LVT_LINT1 : LVT_LINT1 + 4] = DELIVERY_MODE_NMI.to_bytes(4, "little")
