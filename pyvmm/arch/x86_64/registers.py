"""The registers of a vCPU before its first instruction.

Bits of control registers: SDM 3A 2.5; EFER: SDM 3A 2.2.1; RFLAGS: SDM 1 3.4.3.
"""

from __future__ import annotations

from typing import NamedTuple

from pyvmm.arch.x86_64 import gdt, layout
from pyvmm.arch.x86_64.gdt import Segment

CR0_PE = 1 << 0
CR0_ET = 1 << 4
CR0_PG = 1 << 31
CR4_PAE = 1 << 5
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
RFLAGS_RESERVED = 1 << 1
RFLAGS_IF = 1 << 9


class EntryState(NamedTuple):
    """What a boot protocol wants in the boot processor's registers; others are zero.

    ``data`` goes to DS, ES, FS, GS and SS alike. The IDT is empty: interrupts are off.
    """

    rip: int
    code: Segment
    cr0: int
    rsp: int = 0
    rax: int = 0
    rbx: int = 0
    rsi: int = 0
    rflags: int = RFLAGS_RESERVED
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    data: Segment = gdt.DATA
    task: Segment = gdt.TASK
    gdt_gpa: int = layout.GDT_GPA

    @property
    def gdt(self) -> bytes:
        """The table that ``code``, ``data`` and ``task`` are loaded from."""
        return gdt.table(self.code)


def protected_mode(rip: int, *, rax: int = 0, rbx: int = 0, rsi: int = 0) -> EntryState:
    """32-bit flat protected mode, paging off: for PVH, Multiboot and Linux's 32-bit protocol."""
    return EntryState(rip=rip, code=gdt.CODE32, cr0=CR0_PE | CR0_ET, rax=rax, rbx=rbx, rsi=rsi)


def long_mode(rip: int, *, rsi: int) -> EntryState:
    """64-bit mode over the identity page tables: what Linux's 64-bit protocol starts in."""
    return EntryState(
        rip=rip,
        code=gdt.CODE64,
        cr0=CR0_PE | CR0_ET | CR0_PG,
        cr3=layout.PAGE_TABLES_GPA,
        cr4=CR4_PAE,
        efer=EFER_LME | EFER_LMA,
        rsp=layout.BOOT_STACK_TOP_GPA,
        rsi=rsi,
    )
