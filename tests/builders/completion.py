"""The same instruction executed twice: by this machine's processor, and by pyvmm/completion."""

from __future__ import annotations

import functools

from builders.assembler import assemble
from builders.fake_vcpu import (
    GPR_NAMES,
    PRESENT,
    USER,
    WRITABLE,
    XSAVE_BYTES,
    FakeVcpu,
    map_pages,
)
from builders.host_cpu import CODE, DATA, PAGE, READ_ONLY, CpuState, Executed, HostCpu

from kvm_bindings import CpuidEntry
from pyvmm.completion.completer import Completer
from pyvmm.memory import GuestMemory

_PAGES_GPA = 0x1_0000  # pages 0, 1 and 3 of the data, one after the other
_TABLES_GPA = 0x2_0000
_GDT_GVA = 0xFFFF_8000_0000_0000
_GDT_GPA = 0x1_3000

# Linux's GDT, as far as any selector finds a descriptor in it that can be verified: kernel and
# user code and data (arch/x86/kernel/cpu/common.c, gdt_page). Access bytes by SDM 3A 3.4.5.
_GDT = {0x08: 0x9B, 0x10: 0x9B, 0x18: 0x93, 0x20: 0xFB, 0x28: 0xF3, 0x30: 0xFB}


@functools.cache
def assemble_all(texts: tuple[str, ...]) -> dict[str, bytes]:
    """The code of each instruction (Intel syntax), for 64-bit mode at CODE."""
    # One call of the assembler for all: each in a slot of its own, its length behind the slots.
    source = ".intel_syntax noprefix\n" + "".join(
        f".balign 16, 0xcc\nb{number}: {text}\ne{number}:\n" for number, text in enumerate(texts)
    )
    source += ".balign 16, 0xcc\n" + "".join(
        f".byte e{number} - b{number}\n" for number in range(len(texts))
    )
    image = assemble(source, 64, CODE)
    lengths = image[16 * len(texts) :]
    return {
        text: image[16 * number : 16 * number + lengths[number]]
        for number, text in enumerate(texts)
    }


class CompletedCpu:
    """pyvmm's completion in the surroundings that host_cpu.c has: user mode, the same pages."""

    def __init__(self, host: HostCpu) -> None:
        self.memory = GuestMemory.create(0x4_0000)
        user = PRESENT | USER
        cr3 = map_pages(
            self.memory,
            _TABLES_GPA,
            {
                DATA: _PAGES_GPA | user | WRITABLE,
                DATA + PAGE: _PAGES_GPA + PAGE | user | WRITABLE,
                READ_ONLY: _PAGES_GPA + 2 * PAGE | user,
                _GDT_GVA: _GDT_GPA | PRESENT,
            },
        )
        for selector, access in _GDT.items():
            self.memory.write(_GDT_GPA + selector + 5, bytes([access]))
        self.vcpu = FakeVcpu()
        self.vcpu.enter_64bit(cpl=3, cr3=cr3)
        self.vcpu.sregs.gdt.base, self.vcpu.sregs.gdt.limit = _GDT_GVA, 0x7F
        self.vcpu.xcr0 = host.xcr0
        self.vcpu.cpuid = [
            CpuidEntry(0xD, number, 1, size_bytes, offset, ecx, 0)
            for number, (offset, size_bytes, ecx) in host.components.items()
        ]

    def execute(self, code: bytes, before: CpuState) -> Executed:
        """As HostCpu.execute."""
        vcpu = self.vcpu
        for name, value in zip(GPR_NAMES, before.gpr, strict=True):
            setattr(vcpu.regs, name, value)
        vcpu.regs.rip, vcpu.regs.rflags = CODE, before.rflags
        vcpu.sregs.gs.base = before.gs_base
        vcpu.xsave = before.xsave
        vcpu.events.exception.injected = 0
        self.memory.write(_PAGES_GPA, before.memory)
        Completer(vcpu, self.memory, XSAVE_BYTES).complete(code)
        after = CpuState(
            vcpu.gpr,
            vcpu.regs.rflags,
            vcpu.sregs.gs.base,
            vcpu.xsave,
            self.memory.read(_PAGES_GPA, 3 * PAGE),
        )
        if vcpu.exception is None:
            assert vcpu.regs.rip == CODE + len(code)
            return Executed(None, 0, 0, after)
        assert after == before
        assert vcpu.regs.rip == CODE
        vector, error_code = vcpu.exception
        return Executed(vector, error_code or 0, vcpu.sregs.cr2, after)
