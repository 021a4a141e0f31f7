"""What a Completer does around an instruction: operands, commit, exceptions, and giving up.

The guest is in its kernel (CPL 0); what instructions compute is tested against the host's
processor in test_completion_host.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from builders.assembler import assemble
from builders.fake_vcpu import (
    ACCESSED,
    DIRTY,
    PRESENT,
    WRITABLE,
    XSAVE_BYTES,
    FakeVcpu,
    map_pages,
)

from kvm_bindings import CpuidEntry
from pyvmm.completion.completer import Completer
from pyvmm.completion.state import Unhandled
from pyvmm.memory import GuestMemory

CODE, DATA, UNMAPPED, READ_ONLY = 0x40_0000, 0x50_0000, 0x50_1000, 0x60_0000
DATA_GPA, READ_ONLY_GPA, TABLES_GPA, CODE_GPA = 0x1_0000, 0x1_1000, 0x2_0000, 0x1_2000
OUTSIDE, DEVICE = 0x70_0000, 0xFEC0_0000  # mapped, to where no memory is

UD, NM, GP, PF = 6, 7, 13, 14


class Guest:
    """A vCPU in 64-bit kernel mode with page tables, and a Completer for it."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.vcpu = FakeVcpu()
        cr3 = map_pages(
            memory,
            TABLES_GPA,
            {
                CODE: CODE_GPA | PRESENT,
                DATA: DATA_GPA | PRESENT | WRITABLE,
                READ_ONLY: READ_ONLY_GPA | PRESENT,
                OUTSIDE: DEVICE | PRESENT | WRITABLE,
            },
        )
        self.vcpu.enter_64bit(cpl=0, cr3=cr3)
        self.vcpu.xcr0 = 7
        self.vcpu.cpuid = [
            CpuidEntry(0xD, number, 1, size_bytes, offset, 0, 0)
            for number, offset, size_bytes in (
                *((2, 576, 256), (5, 832, 64)),
                *((6, 896, 512), (7, 1408, 1024)),
            )
        ]
        self.vcpu.regs.rip, self.vcpu.regs.rflags = CODE, 2

    def complete(self, source: str, **registers: int) -> None:
        """Complete the one instruction ``source`` (AT&T) with these registers."""
        for name, value in registers.items():
            setattr(self.vcpu.regs, name, value)
        code = assemble(source, 64, CODE)
        self.completer = Completer(self.vcpu, self.memory, XSAVE_BYTES)
        self.completer.complete(code)

    def page_entry(self, gva: int) -> int:
        """The page table entry for ``gva``."""
        table_gpa = TABLES_GPA
        for shift in (39, 30, 21):
            table_gpa = self.memory.read_u64(table_gpa + (gva >> shift & 511) * 8) & ~0xFFF
        return self.memory.read_u64(table_gpa + (gva >> 12 & 511) * 8)


@pytest.fixture
def guest() -> Iterator[Guest]:
    with GuestMemory.create(0x4_0000) as memory:
        yield Guest(memory)


# Committing.


def test_completed_instruction_is_passed_and_counted(guest: Guest) -> None:
    guest.complete("popcnt %rcx, %rax", rcx=0xFF)
    assert (guest.vcpu.regs.rax, guest.vcpu.regs.rip) == (8, CODE + 5)
    assert guest.completer.counts == {"popcnt": 1}


def test_store_sets_accessed_and_dirty_flags(guest: Guest) -> None:
    guest.complete("movnti %eax, (%rsi)", rax=0x1234_5678, rsi=DATA + 4)
    assert guest.memory.read_u32(DATA_GPA + 4) == 0x1234_5678
    assert guest.page_entry(DATA) & (ACCESSED | DIRTY) == ACCESSED | DIRTY


def test_load_sets_accessed_and_not_dirty(guest: Guest) -> None:
    guest.memory.write_u64(DATA_GPA, 7)
    guest.complete("popcnt (%rsi), %rax", rsi=DATA)
    assert guest.vcpu.regs.rax == 3
    assert guest.page_entry(DATA) & (ACCESSED | DIRTY) == ACCESSED


def test_resume_flag_is_cleared(guest: Guest) -> None:
    guest.complete("popcnt %rcx, %rax", rflags=2 | 1 << 16)
    assert guest.vcpu.regs.rflags & 1 << 16 == 0


def test_instruction_that_kvm_fetched_in_part_is_fetched_again(guest: Guest) -> None:
    code = assemble("popcnt %rcx, %rax", 64, CODE)
    guest.memory.write(CODE_GPA, code)
    guest.vcpu.regs.rcx = 3
    Completer(guest.vcpu, guest.memory, XSAVE_BYTES).complete(code[:2])
    assert guest.vcpu.regs.rax == 2


def test_vector_registers_are_there_without_xsave2(guest: Guest) -> None:
    guest.vcpu.get_xsave2 = None  # type: ignore[assignment,method-assign]
    Completer(guest.vcpu, guest.memory, 0).complete(assemble("movq %rcx, %xmm1", 64))
    assert guest.vcpu.regs.rip == CODE + 5


# Exceptions.


def check_fault(guest: Guest, vector: int, error_code: int | None, before: tuple[int, ...]) -> None:
    assert guest.vcpu.exception == (vector, error_code)
    assert guest.vcpu.regs.rip == CODE
    assert guest.vcpu.gpr == before


def test_page_fault_is_injected_with_cr2_and_nothing_changes(guest: Guest) -> None:
    guest.complete("movnti %rax, (%rsi)", rax=-1 & (1 << 64) - 1, rsi=UNMAPPED - 4)
    check_fault(guest, PF, 2, guest.vcpu.gpr)
    assert guest.vcpu.sregs.cr2 == UNMAPPED
    assert guest.memory.read(DATA_GPA, 0x1000) == bytes(0x1000)
    assert guest.page_entry(DATA) & (ACCESSED | DIRTY) == 0


def test_write_to_a_read_only_page_faults(guest: Guest) -> None:
    guest.complete("movnti %rax, (%rsi)", rsi=READ_ONLY)
    assert guest.vcpu.exception == (PF, 3)


def test_write_to_a_read_only_page_without_wp_is_done(guest: Guest) -> None:
    guest.vcpu.sregs.cr0 &= ~(1 << 16)
    guest.complete("movnti %rax, (%rsi)", rax=0x55, rsi=READ_ONLY)
    assert guest.vcpu.exception is None
    assert guest.memory.read_u64(READ_ONLY_GPA) == 0x55


def test_compare_that_fails_needs_a_writable_page_as_well(guest: Guest) -> None:
    guest.complete("cmpxchg16b (%rsi)", rax=1, rsi=READ_ONLY)
    assert guest.vcpu.exception == (PF, 3)


def test_queued_exception_of_the_failed_emulation_is_gone(guest: Guest) -> None:
    guest.vcpu.events.exception.pending = 1
    guest.vcpu.events.exception.nr = UD
    guest.complete("popcnt (%rsi), %rax", rsi=UNMAPPED)
    exception = guest.vcpu.events.exception
    assert (exception.nr, exception.pending, exception.injected) == (PF, 0, 1)


@pytest.mark.parametrize(
    ("source", "vector"),
    [("por %xmm0, %xmm1", NM), ("vpor %ymm0, %ymm1, %ymm2", NM), ("fwait", NM), ("emms", NM)],
)
def test_task_switched_flag_gives_device_not_available(
    guest: Guest, source: str, vector: int
) -> None:
    guest.vcpu.sregs.cr0 |= 1 << 3
    guest.complete(source)
    assert guest.vcpu.exception == (vector, None)


def test_fwait_without_mp_ignores_the_task_switched_flag(guest: Guest) -> None:
    guest.vcpu.sregs.cr0 = guest.vcpu.sregs.cr0 & ~2 | 1 << 3
    guest.complete("fwait")
    assert guest.vcpu.exception is None


@pytest.mark.parametrize("source", ["vpor %ymm0, %ymm1, %ymm2", "xsave (%rsi)", "xgetbv"])
def test_instruction_of_xsave_is_undefined_without_osxsave(guest: Guest, source: str) -> None:
    guest.vcpu.sregs.cr4 &= ~(1 << 18)
    guest.complete(source, rsi=DATA)
    assert guest.vcpu.exception == (UD, None)


def test_avx_is_undefined_if_xcr0_lacks_it(guest: Guest) -> None:
    guest.vcpu.xcr0 = 3
    guest.complete("vpor %ymm0, %ymm1, %ymm2")
    assert guest.vcpu.exception == (UD, None)


@pytest.mark.parametrize("source", ["int3", "int $3"])
def test_breakpoint_follows_its_instruction(guest: Guest, source: str) -> None:
    guest.complete(source)
    assert guest.vcpu.exception == (3, None)
    assert guest.vcpu.regs.rip == CODE + len(assemble(source, 64, CODE))


def test_software_interrupt_is_injected_as_one(guest: Guest) -> None:
    guest.complete("int $0x80")
    interrupt = guest.vcpu.events.interrupt
    assert (interrupt.injected, interrupt.nr) == (1, 0x80)
    assert guest.vcpu.regs.rip == CODE + 2


# Instructions of the kernel's, which the host's processor does not execute for us.


def test_stac_and_clac_set_and_clear_ac(guest: Guest) -> None:
    guest.complete("stac")
    assert guest.vcpu.regs.rflags == 2 | 1 << 18
    guest.complete("clac", rip=CODE)
    assert guest.vcpu.regs.rflags == 2


def test_bases_of_fs_and_gs_are_written_and_read(guest: Guest) -> None:
    guest.complete("wrfsbase %rcx", rcx=0xFFFF_8000_0000_1234)
    assert guest.vcpu.sregs.fs.base == 0xFFFF_8000_0000_1234
    guest.complete("rdfsbase %rax", rip=CODE)
    assert guest.vcpu.regs.rax == 0xFFFF_8000_0000_1234


def test_base_that_is_not_canonical_is_refused(guest: Guest) -> None:
    guest.complete("wrgsbase %rcx", rcx=1 << 47)
    assert guest.vcpu.exception == (GP, 0)


def test_rdtscp_gives_tsc_and_processor(guest: Guest) -> None:
    guest.vcpu.msrs = {0x10: 0x1_2345_6789, 0xC000_0103: 7}
    guest.complete("rdtscp", rax=-1 & (1 << 64) - 1)
    assert (guest.vcpu.regs.rdx, guest.vcpu.regs.rax) == (1, 0x2345_6789)
    assert guest.vcpu.regs.rcx == 7


def test_rdpid_gives_the_processor(guest: Guest) -> None:
    guest.vcpu.msrs = {0x10: 0, 0xC000_0103: 7}
    guest.complete("rdpid %rbx")
    assert guest.vcpu.regs.rbx == 7


PKRU = 9


def enable_protection_keys(guest: Guest) -> None:
    guest.vcpu.sregs.cr4 |= 1 << 22  # PKE
    guest.vcpu.cpuid.append(CpuidEntry(0xD, PKRU, 1, 8, 2432, 0, 0))
    guest.vcpu.xcr0 |= 1 << PKRU


def test_rights_of_protection_keys_are_written_and_read(guest: Guest) -> None:
    enable_protection_keys(guest)
    guest.complete("wrpkru", rax=0x5555_5554, rcx=0, rdx=0)
    assert guest.vcpu.xsave[2432:2436] == (0x5555_5554).to_bytes(4, "little")
    assert guest.vcpu.xsave[513] == 1 << PKRU - 8  # XSTATE_BV
    guest.complete("rdpkru", rip=CODE, rax=0, rdx=0xFFFF)
    assert (guest.vcpu.regs.rax, guest.vcpu.regs.rdx) == (0x5555_5554, 0)


@pytest.mark.parametrize(("source", "register"), [("rdpkru", "rcx"), ("wrpkru", "rdx")])
def test_instructions_of_protection_keys_want_zeros(
    guest: Guest, source: str, register: str
) -> None:
    enable_protection_keys(guest)
    guest.complete(source, **{register: 1})
    assert guest.vcpu.exception == (GP, 0)


@pytest.mark.parametrize("source", ["rdpkru", "wrpkru"])
def test_instructions_of_protection_keys_are_undefined_without(guest: Guest, source: str) -> None:
    guest.complete(source)
    assert guest.vcpu.exception == (UD, None)


def test_selectors_of_ldt_and_task_are_stored(guest: Guest) -> None:
    guest.vcpu.sregs.ldt.selector, guest.vcpu.sregs.tr.selector = 0x48, 0x40
    guest.complete("sldt %eax", rax=-1 & (1 << 64) - 1)
    guest.complete("str (%rsi)", rip=CODE, rsi=DATA)
    assert guest.vcpu.regs.rax == 0x48
    assert guest.memory.read_u32(DATA_GPA) == 0x40


def test_xsetbv_sets_xcr0(guest: Guest) -> None:
    guest.complete("xsetbv", rax=3)
    assert guest.vcpu.xcr0 == 3


@pytest.mark.parametrize("value", [2, 5, 1 << 5 | 7, 1 << 9 | 7])
def test_xsetbv_refuses_what_cannot_be(guest: Guest, value: int) -> None:
    guest.complete("xsetbv", rax=value)
    assert guest.vcpu.exception == (GP, 0)
    assert guest.vcpu.xcr0 == 7


def test_invpcid_makes_kvm_forget_translations(guest: Guest) -> None:
    seen = []
    set_sregs = guest.vcpu.set_sregs

    def watch(sregs: object) -> None:
        set_sregs(sregs)
        seen.append(guest.vcpu.sregs.cr3)

    guest.vcpu.set_sregs = watch  # type: ignore[method-assign]
    guest.complete("invpcid (%rsi), %rax", rax=2, rsi=DATA)
    assert len(set(seen)) == 2
    assert seen[-1] == TABLES_GPA


@pytest.mark.parametrize(
    ("kind", "pcid", "address"), [(4, 0, 0), (0, 1, 0), (0, 0, 1 << 47), (2, 1 << 12, 0)]
)
def test_invpcid_refuses_what_the_processor_refuses(
    guest: Guest, kind: int, pcid: int, address: int
) -> None:
    guest.memory.write_u64(DATA_GPA, pcid)
    guest.memory.write_u64(DATA_GPA + 8, address)
    guest.complete("invpcid (%rsi), %rax", rax=kind, rsi=DATA)
    assert guest.vcpu.exception == (GP, 0)


def test_xsaves_stores_the_compacted_format(guest: Guest) -> None:
    guest.vcpu.msrs = {0xDA0: 0}
    guest.complete("xsaves (%rsi)", rax=7, rsi=DATA)
    assert guest.memory.read_u64(DATA_GPA + 520) == 1 << 63 | 7


def test_xrstors_refuses_the_standard_format(guest: Guest) -> None:
    guest.vcpu.msrs = {0xDA0: 0}
    guest.complete("xrstors (%rsi)", rax=7, rsi=DATA)
    assert guest.vcpu.exception == (GP, 0)


# Other modes.


def test_real_mode_addresses_by_segments(guest: Guest) -> None:
    sregs = guest.vcpu.sregs
    sregs.cr0 = sregs.cr4 = sregs.efer = sregs.cs.l = 0
    for name in ("cs", "ds", "es", "ss"):
        getattr(sregs, name).limit = 0xFFFF
    sregs.ds.base = DATA_GPA
    guest.vcpu.regs.rbx = 0x10
    guest.memory.write_u16(DATA_GPA + 0x12, 0x0101)
    code = assemble("popcnt 2(%bx), %ax", 16)
    Completer(guest.vcpu, guest.memory, XSAVE_BYTES).complete(code)
    assert guest.vcpu.regs.rax & 0xFFFF == 2


@pytest.mark.parametrize(("segment", "vector"), [("ds", GP), ("ss", 12)])
def test_operand_beyond_the_limit_faults(guest: Guest, segment: str, vector: int) -> None:
    sregs = guest.vcpu.sregs
    sregs.cr0, sregs.cr4, sregs.efer, sregs.cs.l, sregs.cs.db = 0x11, 0, 0, 0, 1
    getattr(sregs, segment).limit = 0xFFF
    guest.vcpu.regs.rbx = 0xFFD
    code = assemble(f"popcnt %{segment}:(%ebx), %eax", 32)
    Completer(guest.vcpu, guest.memory, XSAVE_BYTES).complete(code)
    assert guest.vcpu.exception == (vector, 0)


@pytest.mark.parametrize(("offset", "fits"), [(0xFFF, False), (0x1000, True)])
def test_expand_down_segment_begins_behind_its_limit(guest: Guest, offset: int, fits: bool) -> None:
    sregs = guest.vcpu.sregs
    sregs.cr0, sregs.cr4, sregs.efer, sregs.cs.l, sregs.cs.db = 0x11, 0, 0, 0, 1
    sregs.ds.type, sregs.ds.limit, sregs.ds.db = 7, 0xFFF, 1  # read and write, expand-down
    guest.vcpu.regs.rbx = offset
    code = assemble("popcnt (%ebx), %eax", 32)
    Completer(guest.vcpu, guest.memory, XSAVE_BYTES).complete(code)
    assert (guest.vcpu.exception is None) is fits


# What is not completed.


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("addps %xmm0, %xmm1", "not among the instructions"),
        ("pxor %mm0, %mm1", "a register of a kind"),
        ("vprold $1, %zmm0, %zmm1{%k1}", "a mask"),
        ("popcnt (%rsi), %rax", "is not RAM"),
    ],
)
def test_instruction_that_is_not_handled_is_told_and_changes_nothing(
    guest: Guest, source: str, why: str
) -> None:
    guest.vcpu.xcr0 = 0xE7
    before = guest.vcpu.gpr[:6]
    with pytest.raises(Unhandled, match=why):
        guest.complete(source, rsi=OUTSIDE)
    assert guest.vcpu.exception is None
    assert (guest.vcpu.regs.rip, guest.vcpu.gpr[:6]) == (CODE, before)
    assert guest.completer.counts == {}


def test_bytes_that_are_no_instruction_are_not_handled(guest: Guest) -> None:
    with pytest.raises(Unhandled, match="no instruction"):
        Completer(guest.vcpu, guest.memory, XSAVE_BYTES).complete(b"\x0f\x04" * 8)


def test_disassembly_is_in_the_kernels_syntax(guest: Guest) -> None:
    completer = Completer(guest.vcpu, guest.memory, XSAVE_BYTES)
    code = assemble("popcnt 8(%rsi), %rax", 64)
    assert completer.disassemble(code) == "popcnt 8(%rsi),%rax"
