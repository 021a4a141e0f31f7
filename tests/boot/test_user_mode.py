"""User mode in a guest: every check that passes on this machine itself passes there, on any KVM.

Where KVM emulates kernel mode that takes a minute, and tens of thousands of completed instructions:
one for each system call, and two for each switch between threads (XSAVEOPT, XRSTOR).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from builders.host import is_emulated_by_qemu, kvm_is_software
from builders.stock_kernels import stock_kernel
from builders.user_mode import build_user_mode, run_here

from kvm_bindings import Kvm
from pyvmm.config import MachineConfig
from pyvmm.initramfs import build_initramfs
from pyvmm.machine import Machine
from pyvmm.outcome import Outcome
from pyvmm.probe import syscall_enters_the_kernel
from pyvmm.testing.ktap import parse_ktap
from pyvmm.units import MiB

LIMIT_S = 600.0
GETPPID_CALLS = 5000  # tests/guests/user_mode/calls.c

pytestmark = [pytest.mark.boot, pytest.mark.timeout(LIMIT_S + 120)]


def test_user_mode_is_in_a_guest_what_it_is_here(tmp_path: Path) -> None:
    program = build_user_mode(tmp_path)
    here = run_here(program)
    assert here.returncode == 0, here.stdout
    initramfs = str(tmp_path / "initramfs")
    build_initramfs(initramfs, busybox_path=None, init_script=program.read_bytes())
    config = MachineConfig(
        kernel=stock_kernel("linux:tiny").path,
        cmdline="console=ttyS0 quiet panic=-1 reboot=k",
        initrd=initramfs,
        memory_bytes=64 * MiB,
    )
    with Machine(config) as machine:
        result = machine.run(timeout_s=LIMIT_S)
        console = machine.console.output.decode(errors="replace").replace("\r\n", "\n")
        completions = machine.completions
        debug_registers_are_taken = machine.debug_registers_are_taken
    assert result.outcome is Outcome.POWERED_OFF, console
    assert outcomes(console) == outcomes(here.stdout), console
    assert vector_bytes(console) == (16 if is_emulated_by_qemu() else vector_bytes(here.stdout))
    with Kvm() as kvm:
        cured = not syscall_enters_the_kernel(kvm)
    assert bool(completions) is kvm_is_software()
    assert (completions["syscall"] >= GETPPID_CALLS) is cured
    assert debug_registers_are_taken is cured


def outcomes(text: str) -> list[tuple[str, str]]:
    return [(result.name, result.outcome) for result in parse_ktap(text)]


def vector_bytes(text: str) -> int:
    """How wide the program has found the vector registers. The lab's guests have no AVX."""
    told = re.search(r"^# vector registers have (\d+) bytes$", text, re.MULTILINE)
    assert told, text
    return int(told[1])
