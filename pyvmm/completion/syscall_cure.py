"""A cure for SYSCALL on a software KVM, where it leaves the processor in user mode.

There SYSCALL from user mode sets RIP (to LSTAR), RCX, R11 and RFLAGS as it should, but CS and SS
stay what they were. So the kernel's entry is fetched at CPL 3, from a page that is not the user's:
a page fault, at each system call. Nothing of the guest is changed to mend that:

* A breakpoint of ours (KVM_SET_GUEST_DEBUG) stands on the first instruction of the guest's
  page fault handler, to which gate 14 of its IDT leads. There KVM_RUN ends with KVM_EXIT_DEBUG.
* If what the fault pushed says CPL 3 and RIP at the entry (LSTAR, or CSTAR for 32-bit code), it
  is such a system call. The vCPU is put to where SYSCALL should have put it: CS and SS flat at
  CPL 0 (SDM 2B SYSCALL), RIP at the entry, RSP and RFLAGS as they were.
* If not, it is an ordinary page fault. The handler's first instruction is completed by us, since
  a breakpoint of a debugger's is hit again if KVM executes it (RFLAGS.RF does not help).

The processor pushes (SDM 3A 6.14.2):   RSP -> error code, RIP, CS, RFLAGS, RSP, SS

MSRs and IDT are looked at whenever an instruction is completed: a kernel sets them up long before
its first user process, and completes many. The breakpoint takes the guest's own debug registers
from it while it is armed.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Protocol

from kvm_bindings import constants
from pyvmm.completion import state as s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kvm_bindings.structs import kvm_dtable, kvm_regs, kvm_segment, kvm_sregs

    ReadSystem = Callable[[int, int], bytes]
    """(linear address, size) -> memory, read as the processor reads its own tables."""

_MSR_STAR, _MSR_LSTAR, _MSR_CSTAR = 0xC000_0081, 0xC000_0082, 0xC000_0083  # SDM 4 table 2-2
_GATE_BYTES = 16
_GATE = struct.Struct("<H3xBHI4x")  # SDM 3A figure 6-8: the offset's three parts, and the type
_GATE_PRESENT = 1 << 7  # of the type
_FRAME = struct.Struct("<6Q")

# L0, and bit 10, which is always set: break at the execution of what DR0 names (SDM 3B 18.2.4).
_DR7_EXECUTION_AT_DR0 = 1 << 10 | 1 << 0
_DEBUG_CONTROL = constants.KVM_GUESTDBG_ENABLE | constants.KVM_GUESTDBG_USE_HW_BP

_CODE_EXECUTE_READ_ACCESSED, _DATA_READ_WRITE_ACCESSED = 0xB, 0x3  # SDM 3A table 3-1


class VcpuPort(Protocol):
    """What a SyscallCure wants of a vCPU: a part of ``kvm_bindings.Vcpu``."""

    def set_regs(self, regs: kvm_regs) -> None: ...
    def set_sregs(self, sregs: kvm_sregs) -> None: ...
    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]: ...
    def set_guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None: ...


class SyscallCure:
    """Mends the system calls of one vCPU. ``on_first`` is called at the first: user space runs."""

    def __init__(self, vcpu: VcpuPort, on_first: Callable[[], object] = lambda: None) -> None:
        self._vcpu = vcpu
        self._on_first = on_first
        self._has_mended = False
        self._handler_gva = 0
        """Where the breakpoint is; 0 as long as it is not armed."""

    @property
    def is_armed(self) -> bool:
        """Whether the breakpoint is set, and the guest's own debug registers are without effect."""
        return self._handler_gva != 0

    def watch(self, idt: kvm_dtable, read_system: ReadSystem) -> None:
        """Have the breakpoint where the guest's page fault handler is now, if it has SYSCALL."""
        if not self._handler_gva and not self._vcpu.get_msrs([_MSR_LSTAR]).get(_MSR_LSTAR):
            return
        try:
            gate = read_system(idt.base + s.PAGE_FAULT * _GATE_BYTES, _GATE_BYTES)
        except (s.Fault, s.Unhandled):
            return  # there is no such gate yet
        low, gate_type, middle, high = _GATE.unpack(gate)
        if not gate_type & _GATE_PRESENT:
            return
        handler_gva = high << 32 | middle << 16 | low
        if handler_gva != self._handler_gva:
            debugreg = [handler_gva, 0, 0, 0, 0, 0, 0, _DR7_EXECUTION_AT_DR0]
            self._vcpu.set_guest_debug(_DEBUG_CONTROL, debugreg)
            self._handler_gva = handler_gva

    def mend(self, regs: kvm_regs, sregs: kvm_sregs, read_system: ReadSystem) -> bool:
        """At the breakpoint: if it was a system call enter the kernel, and say so."""
        try:
            frame = read_system(regs.rsp, _FRAME.size)
        except (s.Fault, s.Unhandled):
            return False  # nothing was pushed there: the guest has jumped to its handler
        _error_code, rip, cs, rflags, rsp, _ss = _FRAME.unpack(frame)
        msrs = self._vcpu.get_msrs([_MSR_STAR, _MSR_LSTAR, _MSR_CSTAR])
        if cs & 3 != 3 or rip not in (msrs[_MSR_LSTAR], msrs[_MSR_CSTAR]):
            return False
        selector = msrs[_MSR_STAR] >> 32 & 0xFFFC
        _set_flat(sregs.cs, selector, _CODE_EXECUTE_READ_ACCESSED)
        sregs.cs.l, sregs.cs.db = 1, 0
        _set_flat(sregs.ss, selector + 8, _DATA_READ_WRITE_ACCESSED)
        self._vcpu.set_sregs(sregs)
        regs.rip, regs.rsp, regs.rflags = rip, rsp, rflags & ~s.RF
        self._vcpu.set_regs(regs)
        if not self._has_mended:
            self._has_mended = True
            self._on_first()
        return True


def _set_flat(segment: kvm_segment, selector: int, segment_type: int) -> None:
    """A segment of the kernel's, over all of memory."""
    segment.selector, segment.type, segment.dpl = selector, segment_type, 0
    segment.base, segment.limit, segment.g = 0, 0xFFFF_FFFF, 1
    segment.present, segment.s, segment.db, segment.unusable = 1, 1, 1, 0
