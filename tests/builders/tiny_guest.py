"""A VM with one vCPU in real mode and 64 KiB of memory, running a snippet of assembly.

The memory is slot 0, at guest address 0; the code is at CODE, the stack grows down from STACK, all
segments have base 0. What lies above 64 KiB is not memory: accesses there are MMIO.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator

from builders.assembler import assemble

from kvm_bindings import Kvm, Vcpu, Vm

MEMORY_BYTES = 0x1_0000
CODE = 0x1000
STACK = 0x8000


class TinyGuest:
    """The VM, its vCPU, and its memory."""

    def __init__(self, kvm: Kvm, vm: Vm, vcpu: Vcpu, memory: mmap.mmap) -> None:
        self.kvm = kvm
        self.vm = vm
        self.vcpu = vcpu
        self.memory = memory

    def load(self, source: str) -> None:
        """Put ``source``, assembled for real mode, at CODE, and make the vCPU start there."""
        code = assemble(source, 16, CODE)
        self.memory[CODE : CODE + len(code)] = code
        sregs = self.vcpu.get_sregs()
        for segment in (sregs.cs, sregs.ds, sregs.es, sregs.ss):
            segment.base = segment.selector = 0
        self.vcpu.set_sregs(sregs)
        regs = self.vcpu.get_regs()
        regs.rip, regs.rsp, regs.rflags = CODE, STACK, 2  # bit 1 is always set, SDM 1 3.4.3
        self.vcpu.set_regs(regs)


@contextlib.contextmanager
def tiny_guest(source: str, *, irqchip: bool = False, flags: int = 0) -> Iterator[TinyGuest]:
    """A guest about to run ``source``; ``flags`` are the memory slot's."""
    memory = mmap.mmap(-1, MEMORY_BYTES)
    with Kvm() as kvm, kvm.create_vm() as vm:
        if irqchip:
            vm.create_irqchip()
        vm.set_user_memory_region(0, 0, memory, flags)
        with vm.create_vcpu(0) as vcpu:
            guest = TinyGuest(kvm, vm, vcpu, memory)
            guest.load(source)
            yield guest
    memory.close()
