"""Linux's 32-bit boot protocol: protected mode, paging off, ESI at the zero page.

Only a bzImage has this entry, at its start. The vmlinux inside a 64-bit bzImage has none: the
step from 32 to 64 bits is done by the decompressor in front of it.

Specification: Documentation/arch/x86/boot.rst, "32-bit Boot Protocol".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.arch.x86_64 import layout, registers
from pyvmm.boot import boot_params
from pyvmm.boot.handover import Blob, BootPlan

if TYPE_CHECKING:
    from pyvmm.boot.handover import Handover


def plan(handover: Handover, entry_gpa: int) -> BootPlan:
    """Enter at ``entry_gpa`` in 32-bit protected mode; EBP, EDI and EBX are zero."""
    entry = registers.protected_mode(entry_gpa, rsi=layout.BOOT_PARAMS_GPA)
    blobs = [
        Blob("GDT", layout.GDT_GPA, entry.gdt, rule="gdt-ram"),
        *boot_params.blobs(handover),
    ]
    return BootPlan(blobs, entry)
