"""How a run of ``pyvmm run`` ends: exit status and last line.

What KVM has a part in is tested on each KVM; the rest, marked ``host``, once.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from build_guest import build
from builders import elf
from builders.assembler import assemble
from builders.cli import PROMPT, last_line, pyvmm, running
from builders.host import kvm_is_software

from kvm_bindings import Kvm
from pyvmm.probe import syscall_enters_the_kernel

pytestmark = pytest.mark.boot


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guests of kernels/tests."""
    directory = tmp_path_factory.mktemp("guests")
    for name in ("halt_forever", "spin", "triple_fault", "unemulated", "unknown"):
        build(name, str(directory))
    return directory


@pytest.mark.host
@pytest.mark.parametrize(
    ("typed", "status", "said"),
    [
        (b"poweroff\n", 0, "the guest powered itself off"),
        (b"exit 0\n", 0, "the guest exited with 0"),
        (b"exit 1\n", 1, "the guest exited with 1"),
        (b"exit 255\n", 255, "the guest exited with 255"),
    ],
)
def test_status_and_last_line_tell_how_the_guest_ended_itself(
    typed: bytes, status: int, said: str
) -> None:
    ends_with(typed, status, said)


@pytest.mark.parametrize(
    ("typed", "status", "said"),
    [
        (b"halt\n", 4, r"the guest halted for good: HLT at 0x\w+ with interrupts off"),
        (b"crash\n", 5, r"the guest triple-faulted near 0x\w+"),
    ],
)
def test_status_and_last_line_tell_where_the_processor_stopped(
    typed: bytes, status: int, said: str
) -> None:
    ends_with(typed, status, said)


def ends_with(typed: bytes, status: int, said: str) -> None:
    """Have the embedded kernel do what is ``typed``, and look at what is told of its end."""
    result = pyvmm("run", "--mem", "16M", "--timeout", "20", typed=typed)
    assert result.returncode == status
    assert re.fullmatch(f"pyvmm: {said}", last_line(result))
    assert b"> " + typed.strip() in result.stdout


@pytest.mark.host
def test_reset_ends_the_run_if_that_is_asked_for() -> None:
    result = pyvmm("run", "--mem", "16M", "--no-reboot", "--timeout", "20", typed=b"reboot\n")
    assert (result.returncode, last_line(result)) == (0, "pyvmm: the guest reset itself")


@pytest.mark.host
def test_reset_boots_anew() -> None:
    with running("run", "--mem", "16M", stdin=subprocess.PIPE) as guest:
        guest.wait_for(PROMPT)
        guest.type(b"reboot\n")
        guest.wait_for(b"reboot\r\n")
        guest.output = b""
        guest.wait_for(PROMPT)
        guest.type(b"exit 9\n")
        assert guest.end()[0] == 9


@pytest.mark.host
@pytest.mark.parametrize(
    ("guest", "status", "said"),
    [
        ("halt_forever", 4, "halted for good"),
        ("triple_fault", 5, "triple-faulted near 0x"),
        ("spin", 124, "timeout: still running after 0.3 s"),
    ],
)
def test_guest_ends_as_it_does(guest: str, status: int, said: str, guests: Path) -> None:
    timeout = "0.3" if guest == "spin" else "20"
    result = pyvmm("run", "--kernel", guests / f"{guest}.elf", "--mem", "16M", "--timeout", timeout)
    assert result.returncode == status
    assert said in last_line(result)


def test_emulation_failure_shows_address_bytes_and_registers(guests: Path) -> None:
    result = pyvmm("run", "--kernel", guests / "unknown.elf", "--mem", "16M")
    if result.returncode == 0:
        pytest.skip("this KVM runs kernel mode natively")
    assert result.returncode == 6
    assert re.fullmatch(
        r"pyvmm: KVM could not emulate the instruction at 0x100000 \(.*\): d9 e8 .*",
        last_line(result),
    )
    assert re.search(r"^rip 0000000000100000 ", result.stderr.decode(), re.MULTILINE)


def test_instructions_that_kvm_cannot_emulate_are_executed_and_counted(guests: Path) -> None:
    result = pyvmm("run", "--kernel", guests / "unemulated.elf", "--mem", "16M", "-v")
    assert result.returncode == 0
    told = b"pyvmm: 1 instruction completed: popcnt 1\n" in result.stderr
    assert told is kvm_is_software()


@pytest.mark.parametrize(
    ("tune", "is_told"),
    [
        pytest.param("software", True, marks=pytest.mark.host),
        pytest.param("none", False, marks=pytest.mark.host),
        ("auto", None),
    ],
)
def test_what_is_added_to_the_command_line_is_told(
    tune: str, is_told: bool | None, tmp_path: Path
) -> None:
    linux = elf.vmlinux(b"\xf4" * 0x200 + b"Linux version 6.1.2 (a) (b) #1 SMP\n")
    (tmp_path / "vmlinux").write_bytes(linux)
    result = pyvmm(
        *("run", "--kernel", tmp_path / "vmlinux", "--mem", "16M"),
        *("--tune", tune, "--cmdline", "rodata=on", "--timeout", "20"),
    )
    assert result.returncode == 4
    found = re.search(
        r"^pyvmm: .*added to the command line \(--tune none adds nothing\): (clearcpuid=.*)$",
        result.stderr.decode(),
        re.MULTILINE,
    )
    assert bool(found) is (kvm_is_software() if is_told is None else is_told)
    assert found is None or "rodata=" not in found[1]


# Entered by PVH at 0x10. As far as the SYSCALL cure is concerned a kernel: it has an entry for
# system calls (LSTAR, SDM 4 table 2-2), and gate 14 of its IDT leads somewhere.
KERNEL_WITH_SYSCALLS = """
    .org 0x10
    mov $0xc0000082, %ecx; mov $0x1000, %eax; xor %edx, %edx; wrmsr
    lidt idtr
    popcnt %eax, %eax
    mov $0xf4, %edx; xor %eax, %eax; out %al, %dx
    idtr: .word 0xfff; .long idt
    idt: .fill 14 * 16; .quad 0x00008e0000101000, 0
"""


@pytest.mark.parametrize("has_syscalls", [True, False])
def test_debug_registers_that_are_taken_are_told(has_syscalls: bool, tmp_path: Path) -> None:
    lines = KERNEL_WITH_SYSCALLS if has_syscalls else KERNEL_WITH_SYSCALLS.replace("wrmsr", "")
    (tmp_path / "vmlinux").write_bytes(elf.vmlinux(assemble(lines, 32, 0x20_0000)))
    result = pyvmm("run", "--kernel", tmp_path / "vmlinux", "--mem", "16M", "-v")
    assert result.returncode == 0, result.stderr
    told = re.findall(
        rb"^pyvmm: .*: the guest's own debug registers had no effect$", result.stderr, re.MULTILINE
    )
    with Kvm() as kvm:
        cured = not syscall_enters_the_kernel(kvm)
    assert len(told) == (cured and has_syscalls)
