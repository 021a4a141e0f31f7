"""Instructions that a software KVM does not emulate, executed by guests in their kernel mode.

On a KVM with hardware under it the processor executes them: the results are the same, and nothing
is completed. On one without, all of those that are named are.
"""

from __future__ import annotations

from collections import Counter

import pytest
from builders.host import kvm_is_software
from builders.host_cpu import host_features
from builders.long_guest import CODE, RESULTS, UNMAPPED, USER, USER_DATA, LongGuest, run_long_guest

from kvm_bindings import Kvm
from pyvmm.outcome import Outcome
from pyvmm.probe import syscall_enters_the_kernel

pytestmark = pytest.mark.kvm

END = "mov $7, %al; out %al, $0xf4"


def check(guest: LongGuest, **completions: int) -> None:
    """The guest came to its end, and these were completed, if KVM could not do it."""
    assert (guest.result.outcome, guest.result.number) == (Outcome.GUEST_EXIT, 7), guest.result
    assert guest.completions == (Counter(completions) if kvm_is_software() else Counter())


NUMBERS = {
    # name: (feature, code that leaves RAX, what is in RAX)
    "popcnt": ("popcnt", "mov $0xf0f1, %ecx; popcnt %rcx, %rax", 9),
    "andn": ("bmi1", "mov $0xff, %ecx; mov $0x1234, %edx; andn %rdx, %rcx, %rax", 0x1200),
    "shlx": ("bmi2", "mov $3, %ecx; mov $4, %edx; shlx %rdx, %rcx, %rax", 0x30),
    "pext": ("bmi2", "mov $0xab, %ecx; mov $0xf0, %edx; pext %rdx, %rcx, %rax", 0xA),
    # CRC-32C of the byte 'a' is 0xc1d04330; the instruction neither begins nor ends with a NOT.
    "crc32": ("sse4_2", "mov $-1, %eax; mov $'a', %ecx; crc32b %cl, %eax; not %eax", 0xC1D0_4330),
    "movnti": ("sse2", f"mov $0x1234, %ecx; movnti %rcx, {RESULTS}; mov {RESULTS}, %rax", 0x1234),
    "sldt": ("fpu", "mov $-1, %rax; sldt %eax", 0),
    "str": ("fpu", "str %eax", 0x20),
    "wrfsbase": ("fsgsbase", "mov $0x1234, %ecx; wrfsbase %rcx; rdfsbase %rax", 0x1234),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_guest_executes_an_instruction_on_general_registers(name: str) -> None:
    feature, code, expected = NUMBERS[name]
    if feature not in host_features():
        pytest.skip(f"this processor has no {feature}")
    guest = run_long_guest(f"{code}; mov %rax, {RESULTS + 8}; {END}")
    assert guest.result.outcome is Outcome.GUEST_EXIT, guest.result
    assert guest.number(1) == expected


def test_completions_are_counted() -> None:
    guest = run_long_guest(f"mov $5, %ecx; again: popcnt %rcx, %rax; loop again; {END}")
    check(guest, popcnt=5)


def test_memory_is_compared_and_exchanged() -> None:
    guest = run_long_guest(
        f"""mov $1, %eax; mov $2, %edx; mov $3, %ebx; mov $4, %ecx
        movq $1, {RESULTS}; movq $2, {RESULTS + 8}
        cmpxchg16b {RESULTS}; setz %bl; movzx %bl, %ebx; mov %rbx, {RESULTS + 16}
        cmpxchg16b {RESULTS}; mov %rax, {RESULTS + 24}; mov %rdx, {RESULTS + 32}; {END}"""
    )
    check(guest, cmpxchg16b=2)
    assert [guest.number(index) for index in range(5)] == [3, 4, 1, 3, 4]


def test_vector_registers_are_saved_and_restored() -> None:
    guest = run_long_guest(
        f"""xor %ecx, %ecx; xgetbv; movups pattern(%rip), %xmm5
        xsave {RESULTS + 0x400}; pxor %xmm5, %xmm5; movups %xmm5, {RESULTS}
        xrstor {RESULTS + 0x400}; movups %xmm5, {RESULTS + 16}; {END}
        pattern: .quad 0x1122334455667788, 0x99aabbccddeeff00"""
    )
    check(guest, xgetbv=1, xsave=1, pxor=1, xrstor=1)
    assert [guest.number(index) for index in range(4)] == [
        *(0, 0),
        *(0x1122_3344_5566_7788, 0x99AA_BBCC_DDEE_FF00),
    ]


def test_page_fault_of_a_completed_instruction_reaches_the_guest() -> None:
    guest = run_long_guest(
        f"""mov ${UNMAPPED - 4}, %esi; popcnt (%rsi), %rax; hlt
        .org 0x100
        mov %cr2, %rax; mov %rax, {RESULTS}
        pop %rax; mov %rax, {RESULTS + 8}; pop %rax; mov %rax, {RESULTS + 16}; {END}""",
        gates={14: 0x100},
    )
    check(guest)
    assert guest.number(0) == UNMAPPED
    assert guest.number(1) == 0  # a read, by the supervisor, of a page that is not present
    assert guest.number(2) == CODE + 5  # the POPCNT


def test_general_protection_of_a_completed_instruction_reaches_the_guest() -> None:
    guest = run_long_guest(
        f"""cmpxchg16b {RESULTS + 8}; hlt
        .org 0x100
        pop %rax; mov %rax, {RESULTS}; pop %rax; mov %rax, {RESULTS + 8}; {END}""",
        gates={13: 0x100},
    )
    assert guest.result.outcome is Outcome.GUEST_EXIT, guest.result
    assert (guest.number(0), guest.number(1)) == (0, CODE)


@pytest.mark.parametrize(
    ("source", "vector", "name"),
    [("int3", 3, "int3"), ("int $0x80", 0x80, "int"), (".byte 0xcd, 3", 3, "int")],
)
def test_software_interrupt_returns_behind_its_instruction(
    source: str, vector: int, name: str
) -> None:
    guest = run_long_guest(
        f"""mov $1, %ebx; {source}; mov %rbx, {RESULTS}; {END}
        .org 0x100
        add $0x10, %ebx; iretq""",
        gates={vector: 0x100},
    )
    check(guest, **{name: 1})
    assert guest.number(0) == 0x11


# STAR, LSTAR and SFMASK (SDM 4 table 2-2), EFER.SCE; a POPCNT, so that the cure of a KVM that needs
# one sees them; then to user mode.
TO_USER = f"""
    mov $0xc0000081, %ecx; xor %eax, %eax; mov ${(USER_DATA - 8) << 16 | 0x10:#x}, %edx; wrmsr
    mov $0xc0000082, %ecx; mov ${CODE + 0x100}, %eax; xor %edx, %edx; wrmsr
    mov $0xc0000084, %ecx; xor %eax, %eax; wrmsr
    mov $0xc0000080, %ecx; rdmsr; or $1, %eax; wrmsr
    popcnt %rcx, %rax
    mov ${USER}, %ecx; mov $2, %r11d; sysretq
"""


def test_system_calls_enter_the_kernel_and_page_faults_do_as_ever() -> None:
    guest = run_long_guest(
        f"""{TO_USER}
        .org 0x100
        cmp $2, %eax; je end; incq {RESULTS}; mov %rsp, {RESULTS + 24}; sysretq
        end: {END}
        .org 0x200
        cld; incq {RESULTS + 8}; pop {RESULTS + 16}; addq $8, (%rsp); iretq""",
        gates={14: 0x200},
        user=f"""mov ${USER + 0x1_0000}, %esp; mov $100, %ebx
        again: mov $1, %eax; syscall; sub $1, %ebx; jnz again
        mov {RESULTS}, %rax; mov {RESULTS}, %rax; mov {UNMAPPED}, %rax
        mov $2, %eax; syscall""",
    )
    assert (guest.result.outcome, guest.result.number) == (Outcome.GUEST_EXIT, 7), guest.result
    assert guest.number(0) == 100  # system calls that came back
    assert guest.number(1) == 3  # page faults
    assert guest.number(2) == 4  # the last: a read by the user of a page that is not present
    assert guest.number(3) == USER + 0x1_0000  # SYSCALL leaves RSP alone
    with Kvm() as kvm:
        mended = 0 if syscall_enters_the_kernel(kvm) else 101
    assert guest.completions["syscall"] == mended


def test_flags_of_a_completed_instruction_are_there_for_the_next() -> None:
    guest = run_long_guest(
        f"xor %ecx, %ecx; popcnt %rcx, %rax; setz %cl; mov %rcx, {RESULTS}; {END}"
    )
    check(guest, popcnt=1)
    assert guest.number(0) == 1


def test_instruction_that_nobody_knows_ends_the_run_and_is_told() -> None:
    guest = run_long_guest(f"addps %xmm0, %xmm1; {END}")
    if not kvm_is_software():
        check(guest)
        return
    assert guest.result.outcome is Outcome.EMULATION_FAILURE
    assert guest.result.summary.startswith(
        f"KVM could not emulate the instruction at {CODE:#x} in code+0x0 "
        "(64-bit mode, CPL 0): 0f 58 c8"
    )
    assert "(addps %xmm0,%xmm1)" in guest.result.summary
    assert f"rip {CODE:016x}" in guest.result.report
