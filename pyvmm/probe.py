"""What kind of KVM is this? Found by running a guest of four instructions.

POPCNT is in every x86-64 processor that has VT-x or SVM with nested paging, and runs natively in
the kernel mode of a hardware guest. KVM's instruction emulator does not know it. So a KVM that
runs kernel mode by emulation, for want of hardware, gives itself away at that instruction.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from kvm_bindings import ExitReason
from pyvmm.arch.x86_64 import layout, paging, registers
from pyvmm.errors import HostError
from pyvmm.memory import GuestMemory
from pyvmm.units import MiB
from pyvmm.vcpu_setup import set_entry

if TYPE_CHECKING:
    from kvm_bindings import Kvm


class Virtualization(enum.Enum):
    """What runs the guest's kernel mode."""

    HARDWARE = "hardware"
    SOFTWARE = "software"


_PROBE_GPA = 0x0010_0000
_DONE_PORT = 0xF4
_PROBE = bytes.fromhex(
    "31c0"  #     xor    eax, eax
    "f3 0fb8c0"  # popcnt eax, eax
    "e6 f4"  #    out    0xf4, al
    "f4"  #       hlt
)


def probe_virtualization(kvm: Kvm) -> Virtualization:
    """Run the guest, in 64-bit mode over the same tables that a kernel starts on.

    Raises HostError if it ends in a third way.
    """
    with GuestMemory.create(2 * MiB) as memory, kvm.create_vm() as vm:
        vm.set_tss_addr(layout.TSS_GPA)
        vm.set_identity_map_addr(layout.IDENTITY_MAP_GPA)
        vm.set_user_memory_region(0, 0, memory.regions[0].view)
        entry = registers.long_mode(_PROBE_GPA, rsi=0)
        memory.write(_PROBE_GPA, _PROBE)
        memory.write(layout.GDT_GPA, entry.gdt)
        memory.write(layout.PAGE_TABLES_GPA, paging.identity_map(layout.PAGE_TABLES_GPA))
        with vm.create_vcpu(0) as vcpu:
            vcpu.set_cpuid2(kvm.get_supported_cpuid())
            set_entry(vcpu, entry)
            while (reason := vcpu.run()) == ExitReason.INTR:
                pass
            if reason == ExitReason.IO and vcpu.io.port == _DONE_PORT:
                return Virtualization.HARDWARE
            if reason == ExitReason.INTERNAL_ERROR:
                return Virtualization.SOFTWARE
            raise HostError(f"a test guest of four instructions ended with {vcpu.decode()}")
