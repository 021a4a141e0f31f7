"""Segments, as descriptors in a GDT and as the hidden part of a segment register.

A vCPU that starts in protected or long mode needs both: KVM_SET_SREGS fills the registers'
hidden parts, and the table must hold the same for when the kernel reloads one of them.

Specification: SDM 3A 3.4.5 (segment descriptors), 3.5 (system descriptors), 7.2 (TSS).
"""

from __future__ import annotations

from typing import NamedTuple

# The Linux boot protocols' selectors (Documentation/arch/x86/boot.rst): GDT slots 2 and 3.
BOOT_CS = 0x10
BOOT_DS = 0x18
# Ours, for a task register that passes VM entry checks: slot 4, and 5 in long mode.
BOOT_TR = 0x20

# Descriptor types (SDM 3A table 3-1 and 3-2), accessed or busy as VM entry wants them.
CODE_EXECUTE_READ_ACCESSED = 0xB
DATA_READ_WRITE_ACCESSED = 0x3
TSS_BUSY = 0xB


class Segment(NamedTuple):
    """One segment register. ``limit`` is in bytes; the flags bear the SDM's names."""

    selector: int
    base: int
    limit: int
    type: int
    s: int
    """1 for code and data, 0 for system segments."""
    db: int = 0
    """Default operand size: 1 is 32-bit."""
    l: int = 0  # noqa: E741 - the SDM's name
    """1 is a 64-bit code segment."""
    g: int = 0
    """Granularity: 1 counts the limit in 4 KiB units."""
    present: int = 1
    dpl: int = 0
    avl: int = 0

    def descriptor(self) -> int:
        """The 8 bytes of this segment's descriptor as a number (SDM 3A figure 3-8)."""
        limit = self.limit >> 12 if self.g else self.limit
        return (
            (limit & 0xFFFF)
            | (self.base & 0xFF_FFFF) << 16
            | self.type << 40
            | self.s << 44
            | self.dpl << 45
            | self.present << 47
            | (limit >> 16 & 0xF) << 48
            | self.avl << 52
            | self.l << 53
            | self.db << 54
            | self.g << 55
            | (self.base >> 24 & 0xFF) << 56
        )


FLAT_LIMIT = 0xFFFF_FFFF

CODE64 = Segment(BOOT_CS, 0, FLAT_LIMIT, CODE_EXECUTE_READ_ACCESSED, s=1, l=1, g=1)
CODE32 = Segment(BOOT_CS, 0, FLAT_LIMIT, CODE_EXECUTE_READ_ACCESSED, s=1, db=1, g=1)
DATA = Segment(BOOT_DS, 0, FLAT_LIMIT, DATA_READ_WRITE_ACCESSED, s=1, db=1, g=1)
TASK = Segment(BOOT_TR, 0, 0x67, TSS_BUSY, s=0)


def table(code: Segment) -> bytes:
    """A GDT with ``code``, the flat data segment and a TSS at the boot protocols' selectors.

    The last slot is the upper half of the TSS descriptor in long mode: base bits 63:32, zero.
    """
    slots = (0, 0, code.descriptor(), DATA.descriptor(), TASK.descriptor(), 0)
    return b"".join(slot.to_bytes(8, "little") for slot in slots)
