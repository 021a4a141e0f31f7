"""What kind of KVM is this? Found by running guests of a few instructions.

*Does hardware run the guest's kernel mode?* POPCNT is in every x86-64 processor that has VT-x or
SVM with nested paging, and runs natively in the kernel mode of a hardware guest. KVM's instruction
emulator does not know it. So a KVM that runs kernel mode by emulation, for want of hardware, gives
itself away at that instruction.

*Does SYSCALL enter the kernel?* On such a KVM it may not: user mode goes on at the kernel's entry,
which it may not execute. A guest with one SYSCALL in user mode comes to its entry, or to its page
fault handler.
"""

from __future__ import annotations

import enum
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvm_bindings import ExitReason
from pyvmm.arch.x86_64 import layout, paging, registers
from pyvmm.errors import HostError
from pyvmm.memory import GuestMemory
from pyvmm.units import MiB
from pyvmm.vcpu_setup import set_entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvm_bindings import Kvm, Vcpu


class Virtualization(enum.Enum):
    """What runs the guest's kernel mode."""

    HARDWARE = "hardware"
    SOFTWARE = "software"


# The guests' own use of the first MiB, besides layout's.
_IDT_GPA = 0x5000
_TSS_GPA = 0  # where the entry state's task register points

_KERNEL_GPA = 0x0010_0000
_HANDLER_GPA = _KERNEL_GPA + 0x10
_USER_GPA = 0x0020_0000
_DONE_PORT, _FAULT_PORT = 0xF4, 0xF5

_POPCNT = bytes.fromhex(
    "31c0"  #     xor    eax, eax
    "f3 0fb8c0"  # popcnt eax, eax
    "e6 f4"  #    out    0xf4, al
    "f4"  #       hlt
)
_SYSCALL = bytes.fromhex("0f05")
_TELL_ENTRY = bytes.fromhex("e6f4 f4")  # out 0xf4, al; hlt
_TELL_FAULT = bytes.fromhex("e6f5 f4")  # out 0xf5, al; hlt

_EFER_SCE = 1 << 0  # SDM 3A 2.2.1
_MSR_STAR, _MSR_LSTAR = 0xC000_0081, 0xC000_0082  # SDM 4 table 2-2
_TSS_RSP0 = 4  # SDM 3A figure 7-11
_INTERRUPT_GATE = 0x8E00  # present, DPL 0: SDM 3A figure 6-8
_PAGE_FAULT = 14
_PAGE_USER = 1 << 2  # SDM 3A table 4-15


def probe_virtualization(kvm: Kvm) -> Virtualization:
    """Run the first guest, in 64-bit mode over the same tables that a kernel starts on.

    Raises HostError if it ends in a third way.
    """
    with _guest(kvm) as (vcpu, memory):
        memory.write(_KERNEL_GPA, _POPCNT)
        reason = _run(vcpu)
        if reason == ExitReason.IO and vcpu.io.port == _DONE_PORT:
            return Virtualization.HARDWARE
        if reason == ExitReason.INTERNAL_ERROR:
            return Virtualization.SOFTWARE
        raise _unexpected(vcpu)


def syscall_enters_the_kernel(kvm: Kvm) -> bool:
    """Run the second guest. Raises HostError if it ends in a third way."""
    with _guest(kvm) as (vcpu, memory):
        memory.write(_USER_GPA, _SYSCALL)
        memory.write(_KERNEL_GPA, _TELL_ENTRY)
        memory.write(_HANDLER_GPA, _TELL_FAULT)
        memory.write_u64(_TSS_GPA + _TSS_RSP0, layout.BOOT_STACK_TOP_GPA)
        sregs = vcpu.get_sregs()
        gate = struct.pack(
            "<HHHHII",
            *(_HANDLER_GPA & 0xFFFF, sregs.cs.selector, _INTERRUPT_GATE),
            *(_HANDLER_GPA >> 16, 0, 0),
        )
        memory.write(_IDT_GPA + _PAGE_FAULT * len(gate), gate)
        _open_to_users(memory)
        vcpu.set_msrs({_MSR_STAR: sregs.cs.selector << 32, _MSR_LSTAR: _KERNEL_GPA})
        for segment in (sregs.cs, sregs.ss):
            segment.selector |= 3
            segment.dpl = 3
        sregs.efer |= _EFER_SCE
        sregs.idt.base, sregs.idt.limit = _IDT_GPA, 0xFFF
        vcpu.set_sregs(sregs)
        regs = vcpu.get_regs()
        regs.rip = _USER_GPA
        vcpu.set_regs(regs)
        if _run(vcpu) == ExitReason.IO and vcpu.io.port in (_DONE_PORT, _FAULT_PORT):
            return vcpu.io.port == _DONE_PORT
        raise _unexpected(vcpu)


@contextmanager
def _guest(kvm: Kvm) -> Iterator[tuple[Vcpu, GuestMemory]]:
    """A vCPU about to execute what is at _KERNEL_GPA, and its memory."""
    with GuestMemory.create(4 * MiB) as memory, kvm.create_vm() as vm:
        vm.set_tss_addr(layout.TSS_GPA)
        vm.set_identity_map_addr(layout.IDENTITY_MAP_GPA)
        vm.set_user_memory_region(0, 0, memory.regions[0].view)
        entry = registers.long_mode(_KERNEL_GPA, rsi=0)
        memory.write(layout.GDT_GPA, entry.gdt)
        memory.write(layout.PAGE_TABLES_GPA, paging.identity_map(layout.PAGE_TABLES_GPA))
        with vm.create_vcpu(0) as vcpu:
            vcpu.set_cpuid2(kvm.get_supported_cpuid())
            set_entry(vcpu, entry)
            yield vcpu, memory


def _open_to_users(memory: GuestMemory) -> None:
    """Let user mode at the 2 MiB page from _USER_GPA on: a bit in an entry of each level."""
    pml4_gpa = layout.PAGE_TABLES_GPA
    pdpt_gpa, directory_gpa = pml4_gpa + 0x1000, pml4_gpa + 0x2000
    for entry_gpa in (pml4_gpa, pdpt_gpa, directory_gpa + 8 * (_USER_GPA // (2 * MiB))):
        memory.write_u64(entry_gpa, memory.read_u64(entry_gpa) | _PAGE_USER)


def _run(vcpu: Vcpu) -> int:
    while (reason := vcpu.run()) == ExitReason.INTR:
        pass
    return reason


def _unexpected(vcpu: Vcpu) -> HostError:
    return HostError(f"a test guest of a few instructions ended with {vcpu.decode()}")
