"""The SYSCALL cure: where its breakpoint stands, and what it makes of those who come there."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import pytest
from builders.fake_vcpu import PRESENT, WRITABLE, XSAVE_BYTES, FakeVcpu, map_pages

from kvm_bindings import constants
from pyvmm.completion.completer import Completer
from pyvmm.completion.state import Unhandled
from pyvmm.completion.syscall_cure import SyscallCure
from pyvmm.memory import GuestMemory

IDT, HANDLER, STACK = 0xFFFF_8000_0000_0000, 0xFFFF_8000_0000_1230, 0xFFFF_8000_0000_2F00
IDT_GPA, HANDLER_GPA, STACK_GPA, TABLES_GPA = 0x1_0000, 0x1_1230, 0x1_2F00, 0x2_0000
STAR, LSTAR, CSTAR = 0xC000_0081, 0xC000_0082, 0xC000_0083
ENTRY, ENTRY32 = 0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8100_1000
POPCNT, ENDBR64 = bytes.fromhex("f3480fb8c1"), bytes.fromhex("f30f1efa")
RF = 1 << 16


class CuredVcpu(FakeVcpu):
    """A vCPU in a kernel with an IDT, and a Completer with the cure."""

    def __init__(self, memory: GuestMemory) -> None:
        super().__init__()
        self.memory = memory
        self.breakpoints: list[tuple[int, list[int]]] = []
        page = PRESENT | WRITABLE
        cr3 = map_pages(
            memory,
            TABLES_GPA,
            {
                IDT: IDT_GPA | page,
                HANDLER & -0x1000: HANDLER_GPA & -0x1000 | page,
                STACK & -0x1000: STACK_GPA & -0x1000 | page,
            },
        )
        self.enter_64bit(cpl=0, cr3=cr3)
        self.sregs.idt.base, self.sregs.idt.limit = IDT, 0xFFF
        self.regs.rflags = 2
        self.msrs = {STAR: 0x0023_0010 << 32, LSTAR: ENTRY, CSTAR: ENTRY32}
        self.set_gate(HANDLER)
        self.completer = Completer(self, memory, XSAVE_BYTES, SyscallCure(self))

    def set_guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        self.breakpoints.append((control, list(debugreg)))

    def set_gate(self, handler: int) -> None:
        """SDM 3A figure 6-8: offset 15:0, selector, type, offset 31:16, offset 63:32."""
        parts = handler & 0xFFFF, 0x10, 0x8E00, handler >> 16 & 0xFFFF, handler >> 32, 0
        self.memory.write(IDT_GPA + 14 * 16, struct.pack("<HHHHII", *parts))

    def complete_something(self) -> None:
        self.completer.complete(POPCNT)

    def fault(self, *, rip: int, cs: int) -> None:
        """Stand at the handler's first instruction, after a page fault from there."""
        frame = struct.pack("<6Q", 0x14, rip, cs, 0x246 | RF, 0x7FFF_0000, 0x2B)
        self.memory.write(STACK_GPA, frame)
        self.memory.write(HANDLER_GPA, ENDBR64)
        self.regs.rip, self.regs.rsp = HANDLER, STACK
        self.completer.at_breakpoint()


@pytest.fixture
def vcpu() -> Iterator[CuredVcpu]:
    with GuestMemory.create(0x4_0000) as memory:
        yield CuredVcpu(memory)


def test_breakpoint_stands_on_the_page_fault_handler(vcpu: CuredVcpu) -> None:
    vcpu.complete_something()
    control = constants.KVM_GUESTDBG_ENABLE | constants.KVM_GUESTDBG_USE_HW_BP
    # SDM 3B 18.2.4: L0 and bit 10; R/W0 and LEN0 are 0 for execution.
    assert vcpu.breakpoints == [(control, [HANDLER, 0, 0, 0, 0, 0, 0, 0x401])]


def test_debug_registers_are_said_to_be_taken_once_they_are(vcpu: CuredVcpu) -> None:
    assert not vcpu.completer.debug_registers_are_taken
    vcpu.complete_something()
    assert vcpu.completer.debug_registers_are_taken


def test_breakpoint_is_set_once(vcpu: CuredVcpu) -> None:
    vcpu.complete_something()
    vcpu.complete_something()
    assert len(vcpu.breakpoints) == 1


def test_breakpoint_moves_with_the_gate(vcpu: CuredVcpu) -> None:
    vcpu.complete_something()
    vcpu.set_gate(HANDLER + 0x40)
    vcpu.complete_something()
    assert [debugreg[0] for _, debugreg in vcpu.breakpoints] == [HANDLER, HANDLER + 0x40]


def test_guest_without_system_calls_keeps_its_debug_registers(vcpu: CuredVcpu) -> None:
    vcpu.msrs[LSTAR] = 0
    vcpu.complete_something()
    assert vcpu.breakpoints == []
    assert not vcpu.completer.debug_registers_are_taken


def test_guest_without_an_idt_keeps_its_debug_registers(vcpu: CuredVcpu) -> None:
    vcpu.sregs.idt.base = 0
    vcpu.complete_something()
    assert vcpu.breakpoints == []


def test_gate_that_is_not_present_gets_no_breakpoint(vcpu: CuredVcpu) -> None:
    vcpu.memory.write(IDT_GPA + 14 * 16, bytes(16))
    vcpu.complete_something()
    assert vcpu.breakpoints == []


def test_guest_that_jumps_to_its_handler_without_a_stack_goes_on(vcpu: CuredVcpu) -> None:
    vcpu.complete_something()
    vcpu.memory.write(HANDLER_GPA, ENDBR64)
    vcpu.regs.rip, vcpu.regs.rsp = HANDLER, 0x1000
    vcpu.completer.at_breakpoint()
    assert vcpu.regs.rip == HANDLER + len(ENDBR64)


@pytest.mark.parametrize("entry", [ENTRY, ENTRY32])
def test_system_call_enters_the_kernel(vcpu: CuredVcpu, entry: int) -> None:
    vcpu.complete_something()
    vcpu.fault(rip=entry, cs=0x33)
    cs, ss = vcpu.sregs.cs, vcpu.sregs.ss
    assert (cs.selector, cs.dpl, cs.l, cs.db, cs.type) == (0x10, 0, 1, 0, 0xB)
    assert (ss.selector, ss.dpl, ss.db, ss.type) == (0x18, 0, 1, 3)
    assert {segment.limit for segment in (cs, ss)} == {0xFFFF_FFFF}
    assert (vcpu.regs.rip, vcpu.regs.rsp, vcpu.regs.rflags) == (entry, 0x7FFF_0000, 0x246)
    assert vcpu.completer.counts["syscall"] == 1


@pytest.mark.parametrize(("rip", "cs"), [(0x40_1000, 0x33), (ENTRY, 0x10), (ENTRY + 1, 0x33)])
def test_other_page_fault_goes_on_behind_the_first_instruction(
    vcpu: CuredVcpu, rip: int, cs: int
) -> None:
    vcpu.complete_something()
    vcpu.fault(rip=rip, cs=cs)
    assert (vcpu.regs.rip, vcpu.regs.rsp) == (HANDLER + len(ENDBR64), STACK)
    assert vcpu.completer.counts == {"popcnt": 1}


def test_first_instruction_that_is_not_known_is_told(vcpu: CuredVcpu) -> None:
    vcpu.complete_something()
    vcpu.memory.write(HANDLER_GPA, b"\xd9\xe8")  # FLD1
    vcpu.regs.rip, vcpu.regs.rsp = HANDLER, STACK
    with pytest.raises(Unhandled):
        vcpu.completer.at_breakpoint()
