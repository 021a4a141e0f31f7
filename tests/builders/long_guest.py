"""A VM with one vCPU in 64-bit kernel mode, running assembly to its end.

4 MiB of memory, mapped to itself and nothing else (linear addresses from 4 MiB on are not
mapped), the upper half for user mode as well; the code is at CODE, RESULTS is for what it wants to
leave. ``out %al, $0xf4`` ends the run. Exceptions and interrupts have gates where ``gates`` says:
vector -> offset from CODE. User mode's code is at USER; USER_DATA and USER_CODE are its segments.
"""

from __future__ import annotations

import contextlib
import struct
from collections import Counter
from collections.abc import Iterator, Mapping

from builders.assembler import assemble

from kvm_bindings import Kvm, constants
from pyvmm.arch.x86_64 import gdt, layout, registers
from pyvmm.completion.completer import Completer
from pyvmm.completion.syscall_cure import SyscallCure
from pyvmm.devices.bus import MmioBus, PortBus
from pyvmm.devices.debug_exit import DebugExit
from pyvmm.memory import GuestMemory
from pyvmm.outcome import Outcome, RunEnded, RunResult
from pyvmm.probe import syscall_enters_the_kernel
from pyvmm.units import MiB
from pyvmm.vcpu_loop import VcpuLoop
from pyvmm.vcpu_setup import set_entry

CODE, RESULTS, IDT = 0x10_0000, 0x18_0000, 0x5000
USER, UNMAPPED = 0x20_0000, 0x40_0000
USER_DATA, USER_CODE = 0x30, 0x38

_PRESENT_WRITABLE, _USER, _PAGE_2M = 3, 1 << 2, 1 << 7
_TSS_RSP0 = 4  # of the TSS at address 0: SDM 3A figure 7-11
_INTERRUPT_GATE = 0x8E00  # present, DPL 0: SDM 3A figure 6-8
_CR0_MP_NE, _CR4_OSFXSR_OSXMMEXCPT_OSXSAVE = 1 << 1 | 1 << 5, 3 << 9 | 1 << 18
_XCR0_X87_SSE = 3
_CR4_FSGSBASE = 1 << 16
_LEAF7_FSGSBASE = 1 << 0  # EBX


class LongGuest:
    """How a run of such a guest ended, and what it left."""

    def __init__(self, result: RunResult, completions: Counter[str], memory: bytes) -> None:
        self.result = result
        self.completions = completions
        self.memory = memory

    def number(self, index: int) -> int:
        """The 64-bit number ``index`` of the results."""
        return int.from_bytes(self.memory[RESULTS + 8 * index :][:8], "little")


def run_long_guest(
    source: str, gates: Mapping[int, int] | None = None, user: str = ""
) -> LongGuest:
    """Run ``source`` (AT&T) with ``user`` for user mode, completing what KVM does not know."""
    with _built(source, gates or {}, user) as (loop, memory):
        result = loop.run()
        return LongGuest(result, Counter(loop.completions), memory.read(0, 2 * MiB))


@contextlib.contextmanager
def _built(
    source: str, gates: Mapping[int, int], user: str
) -> Iterator[tuple[VcpuLoop, GuestMemory]]:
    with GuestMemory.create(4 * MiB) as memory, Kvm() as kvm, kvm.create_vm() as vm:
        vm.set_tss_addr(layout.TSS_GPA)
        vm.set_identity_map_addr(layout.IDENTITY_MAP_GPA)
        vm.create_irqchip()
        vm.set_user_memory_region(0, 0, memory.regions[0].buffer)
        memory.write(CODE, assemble(source, 64, CODE))
        entry = registers.long_mode(CODE, rsi=0)
        memory.write(USER, assemble(user, 64, USER))
        memory.write_u64(_TSS_RSP0, layout.BOOT_STACK_TOP_GPA)
        memory.write(layout.GDT_GPA, entry.gdt)
        memory.write_u64(layout.GDT_GPA + USER_DATA, gdt.DATA._replace(dpl=3).descriptor())
        memory.write_u64(layout.GDT_GPA + USER_CODE, gdt.CODE64._replace(dpl=3).descriptor())
        pml4_gpa = layout.PAGE_TABLES_GPA
        memory.write_u64(pml4_gpa, pml4_gpa + 0x1000 | _PRESENT_WRITABLE | _USER)
        memory.write_u64(pml4_gpa + 0x1000, pml4_gpa + 0x2000 | _PRESENT_WRITABLE | _USER)
        memory.write_u64(pml4_gpa + 0x2000, _PRESENT_WRITABLE | _PAGE_2M)
        memory.write_u64(pml4_gpa + 0x2008, USER | _PRESENT_WRITABLE | _USER | _PAGE_2M)
        for vector, offset in gates.items():
            handler = CODE + offset
            memory.write(
                IDT + 16 * vector,
                struct.pack(
                    "<HHHHII",
                    *(handler & 0xFFFF, entry.code.selector, _INTERRUPT_GATE),
                    *(handler >> 16 & 0xFFFF, handler >> 32, 0),
                ),
            )
        with vm.create_vcpu(0) as vcpu:
            leaves = kvm.get_supported_cpuid()
            vcpu.set_cpuid2(leaves)
            set_entry(vcpu, entry)
            sregs = vcpu.get_sregs()
            sregs.idt.base, sregs.idt.limit = IDT, 0xFFF
            sregs.gdt.limit = USER_CODE + 7
            sregs.cr0 |= _CR0_MP_NE
            sregs.cr4 |= _CR4_OSFXSR_OSXMMEXCPT_OSXSAVE
            if any(leaf.function == 7 and leaf.ebx & _LEAF7_FSGSBASE for leaf in leaves):
                sregs.cr4 |= _CR4_FSGSBASE
            vcpu.set_sregs(sregs)
            # By KVM, since in the lab a guest's own XSETBV goes unseen by it.
            xcrs = vcpu.get_xcrs()
            xcrs.xcrs[0].value = _XCR0_X87_SSE
            vcpu.set_xcrs(xcrs)
            ports = PortBus()
            ports.add(0xF4, 1, DebugExit(_end), "debug exit")
            cure = None if syscall_enters_the_kernel(kvm) else SyscallCure(vcpu)
            xsave_bytes = vm.check_extension(constants.KVM_CAP_XSAVE2)
            loop = VcpuLoop(
                vcpu,
                ports,
                MmioBus(),
                memory.read,
                make_completer=lambda vcpu: Completer(vcpu, memory, xsave_bytes, cure),
                name_of=lambda gva: f"code+{gva - CODE:#x}",
            )
            yield loop, memory


def _end(status: int) -> None:
    raise RunEnded(RunResult(Outcome.GUEST_EXIT, "the end", status))
