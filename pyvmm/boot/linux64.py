"""Linux's 64-bit boot protocol: long mode, identity paging, RSI at the zero page.

Into a vmlinux this is its ELF entry, into a bzImage 0x200 behind its start (where the kernel's
own decompressor takes over).

Specification: Documentation/arch/x86/boot.rst, "64-bit Boot Protocol".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.arch.x86_64 import layout, paging, registers
from pyvmm.boot import boot_params
from pyvmm.boot.handover import Blob, BootPlan

if TYPE_CHECKING:
    from pyvmm.boot.handover import Handover


def plan(handover: Handover, entry_gpa: int) -> BootPlan:
    """Enter at ``entry_gpa`` in 64-bit mode."""
    entry = registers.long_mode(entry_gpa, rsi=layout.BOOT_PARAMS_GPA)
    page_tables = paging.identity_map(layout.PAGE_TABLES_GPA)
    blobs = [
        Blob("GDT", layout.GDT_GPA, entry.gdt, rule="gdt-ram"),
        *boot_params.blobs(handover),
        Blob("page tables", layout.PAGE_TABLES_GPA, page_tables, rule="page-tables-ram"),
    ]
    return BootPlan(blobs, entry)
