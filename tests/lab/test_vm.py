"""The pytest plugin's own guests: consoles, commands, files, and every way to fail."""

from __future__ import annotations

import hashlib
import random
import time

import pytest

from pyvmm.outcome import Outcome
from pyvmm.testing import outcomes
from pyvmm.testing.agent import PART_BYTES
from pyvmm.testing.plugin import VmFactory
from pyvmm.testing.report import kernel_symbols
from pyvmm.testing.vm import Vm

# Under TCG a guest's kernel finds CPUID's XSAVE leaves wrong, and says so (docs/lab.md).
XSAVE = r"WARNING: .* at arch/x86/kernel/fpu/xstate\.c"

pytestmark = [
    pytest.mark.boot,
    pytest.mark.timeout(150),
    pytest.mark.kernel("linux:tiny", allow=[XSAVE]),
]


def test_console_is_pexpects(vm: Vm) -> None:
    vm.sendline("echo $((6 * 7))")
    assert vm.expect([r"never", r"(\d+)\n"]) == 1
    assert vm.match[1] == "42"
    assert "echo" in vm.before


def test_warning_of_the_kernel_is_found(vm_factory: VmFactory) -> None:
    vm = vm_factory(allow=[])
    vm.wait_ready()
    (problem,) = vm.problems
    assert problem.kind is outcomes.KernelWarning
    with pytest.raises(outcomes.KernelWarning, match=r"at arch/x86/kernel/fpu/xstate\.c"):
        vm.check()
    vm.allow(XSAVE)
    vm.check()


def test_console_is_seen_from_its_first_line(vm: Vm) -> None:
    assert "pyvmm initramfs: ready" in vm.console_text
    assert "\r" not in vm.console_text


def test_command_has_status_and_both_outputs(vm: Vm) -> None:
    done = vm.run("echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    with pytest.raises(outcomes.CommandFailed, match="ended with 3: err"):
        done.check()


def test_command_has_environment_directory_and_input(vm: Vm) -> None:
    done = vm.run('pwd; echo "$WORD"; cat', stdin="typed", env={"WORD": "a 'b' $c\nd"}, cwd="/proc")
    assert done.stdout == b"/proc\na 'b' $c\nd\ntyped"


def test_files_of_any_bytes_go_there_and_back(vm: Vm) -> None:
    data = random.Random(1).randbytes(PART_BYTES + 5_001) + b"\n\r\x04\x03\x00"  # two parts
    vm.put(data, "/root/a file", mode=0o600)
    digest = vm.run("md5sum </root/a\\ file; stat -c %a '/root/a file'").output.split()
    assert digest == [hashlib.md5(data).hexdigest(), "-", "600"]
    assert vm.get("/root/a file") == data


def test_command_that_takes_too_long_is_killed_with_its_children(vm: Vm) -> None:
    done = vm.run("sleep 1000 & sleep 1000", timeout_s=2)
    assert (done.timed_out, done.returncode) == (True, 137)
    assert vm.run("pgrep -f 'sleep 1000' | wc -l").output == "0"


def test_command_that_ends_the_guest_is_told_from_one_that_fails(vm: Vm) -> None:
    with pytest.raises(outcomes.GuestReset, match="waiting for the end of 'reboot -f; sleep 99'"):
        vm.run("reboot -f; sleep 99")


def test_guest_that_powers_off_has_that_result(vm: Vm) -> None:
    vm.sendline("poweroff -f")
    assert vm.wait().outcome is Outcome.POWERED_OFF


def test_panic_is_a_panic(vm: Vm) -> None:
    vm.sendline("echo c >/proc/sysrq-trigger")
    with pytest.raises(outcomes.KernelPanic, match="sysrq triggered crash") as caught:
        vm.expect("never")
    assert "sysrq_handle_crash" in caught.value.report
    assert "pyvmm run --kernel linux:tiny" in caught.value.report
    vm.allow(outcomes.KernelProblem)


def test_timeout_is_a_timeout(vm: Vm) -> None:
    vm.sendline("while :; do :; done")
    with pytest.raises(outcomes.GuestTimeout, match="no 'never' in 2 s") as caught:
        vm.expect("never", timeout_s=2)
    assert "vCPU 0:" in caught.value.report


def test_hang_is_a_hang(vm_factory: VmFactory) -> None:
    vm = vm_factory(hang_after_s=3)
    vm.wait_ready()
    began = time.monotonic()
    with pytest.raises(outcomes.GuestHang, match="no output and no movement for 3 s"):
        vm.expect("never", timeout_s=60)
    assert time.monotonic() - began < 30


def test_kernel_that_does_not_exist_is_no_verdict(vm_factory: VmFactory) -> None:
    with pytest.raises(outcomes.VmmError, match="neither a file nor a kernel's name"):
        vm_factory(kernel="linux:huge")


@pytest.mark.kernel("linux:tiny", "debian:6.12-cloud")
def test_symbols_found_in_memory_are_the_kernels_own(vm: Vm) -> None:
    # The kernel's own have three columns, its modules' four. They are megabytes, and a serial port
    # takes minutes for that: their checksum tells as well whether all are the same.
    done = vm.run("awk 'NF == 3 {print $1, $3}' /proc/kallsyms | sort | md5sum").check()
    symbols = kernel_symbols(vm.machine)
    assert symbols is not None
    assert len(symbols) > 5000
    lines = sorted(f"{symbol.gva:016x} {symbol.name}\n" for symbol in symbols)
    assert done.output.split()[0] == hashlib.md5("".join(lines).encode()).hexdigest()


@pytest.mark.kernel(cpus=[1, 2], mem="192M")
def test_matrix_makes_the_machine(vm: Vm) -> None:
    assert vm.run("nproc").output == str(vm.spec.cpus)
    assert int(vm.run("awk '/MemTotal/ {print $2}' /proc/meminfo").output) < 192 * 1024
