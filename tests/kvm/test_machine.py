"""The machine as a program uses it: building, ending it from elsewhere, what goes wrong."""

from __future__ import annotations

import os
import re
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from build_guest import build
from builders.elf import vmlinux
from builders.host import kvm_is_software

from kvm_bindings import host_address
from pyvmm import embedded
from pyvmm.cli.progress import where_it_boots
from pyvmm.config import MachineConfig, Tune
from pyvmm.errors import (
    ConfigError,
    ConsoleError,
    HostError,
    KernelImageError,
    MachineStateError,
)
from pyvmm.machine import STOPPED, Machine, _park
from pyvmm.memory import Backing, HugePages
from pyvmm.outcome import Outcome, RunResult
from pyvmm.units import GiB, MiB

pytestmark = pytest.mark.kvm


@pytest.fixture(scope="module")
def spin(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A guest that does nothing, for ever."""
    return build("spin", str(tmp_path_factory.mktemp("guests")))


@pytest.fixture
def machine(spin: str) -> Iterator[Machine]:
    with Machine(MachineConfig(kernel=spin, memory_bytes=16 * MiB), bytes) as machine:
        yield machine


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_kick_hypercall_is_offered_only_where_hypercalls_return(machine: Machine) -> None:
    leaves = {leaf.function: leaf for leaf in machine.vcpus[0].get_cpuid2()}
    # KVM_FEATURE_PV_UNHALT, which all KVMs of these days have.
    assert leaves[0x4000_0001].eax >> 7 & 1 == (not kvm_is_software())


@pytest.mark.parametrize("tune", [Tune.SOFTWARE, Tune.NONE])
def test_timer_is_ours_where_ticks_are_dear_and_linux_is_told(tune: Tune, tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(vmlinux(b"\xf4" * 0x100 + b"Linux version 6.1.0 (w@w) #1 SMP\n\0"))
    config = MachineConfig(kernel=str(kernel), memory_bytes=16 * MiB, tune=tune)
    with Machine(config, bytes) as machine:
        names = {claim.name for claim in machine.board.ports.devices()}
        leaves = {leaf.function: leaf for leaf in machine.vcpus[0].get_cpuid2()}
    is_ours = kvm_is_software() and tune is Tune.SOFTWARE
    assert ("PIT" in names, "port B" in names) == (is_ours, is_ours)
    if is_ours:
        assert not leaves[1].ecx >> 24 & 1  # TSC deadline: Linux would not use the PIT with it


def test_slow_boot_can_be_looked_at_and_a_quick_one_is_not(machine: Machine) -> None:
    machine.start()
    where = where_it_boots(machine)
    if kvm_is_software():
        assert where is not None
        assert re.fullmatch(r"at 0x[0-9a-f]+", where)  # this guest has no symbols
    else:
        assert where is None


def test_pause_of_a_machine_whose_vcpu_has_just_ended_comes_back(machine: Machine) -> None:
    (loop,) = machine.board.loops
    loop.end = STOPPED
    loop.vcpu.immediate_exit = True
    loop.run()
    _park([loop])  # what the supervisor does before it has heard of the end
    assert not loop.parked.is_set()


def test_resumed_vcpu_is_parked_no_more(machine: Machine) -> None:
    machine.start()
    for _ in range(50):
        machine.pause()
        machine.resume()
        assert not any(loop.parked.is_set() for loop in machine.board.loops)


def test_guest_that_waits_is_not_looked_at_as_one_that_boots() -> None:
    config = MachineConfig(kernel=embedded.path("kernel.elf"), memory_bytes=16 * MiB)
    with Machine(config) as machine:
        machine.start()
        machine.console.expect(rb"> $", timeout_s=20)
        while where_it_boots(machine) is not None:
            pass


def test_cmpxchg16b_is_hidden_where_kernel_mode_is_emulated(machine: Machine) -> None:
    if not kvm_is_software():
        pytest.skip("hardware runs the guest's kernel mode here")
    leaves = {leaf.function: leaf for leaf in machine.vcpus[0].get_cpuid2()}
    assert leaves[1].ecx >> 13 & 1 == 0


def test_stop_ends_the_run_from_another_thread(machine: Machine) -> None:
    results: list[RunResult] = []
    runner = threading.Thread(target=lambda: results.append(machine.run()))
    runner.start()
    machine.stop()
    runner.join(30)
    assert results == [STOPPED]


def test_stop_before_the_run_ends_it_at_once(machine: Machine) -> None:
    machine.stop()
    assert machine.run(timeout_s=30) is STOPPED


def test_stop_again_does_not_change_how_it_ended(machine: Machine) -> None:
    machine.stop(RunResult(Outcome.SIGNAL, "first", 15))
    machine.stop()
    assert machine.run(timeout_s=30).summary == "first"


def test_stop_from_a_signal_handler_does_not_wait_for_itself(machine: Machine) -> None:
    # The handler runs in this very thread, wherever it is in waiting for the end of the run. A
    # signal every half millisecond hits it everywhere.
    signals = 0

    def handle(number: int, frame: object) -> None:
        nonlocal signals
        signals += 1
        if signals >= 200:
            machine.stop()

    previous = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        assert machine.run(timeout_s=60) is STOPPED
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_stop_comes_through_to_a_thread_started_with_signals_blocked(machine: Machine) -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        assert machine.run(timeout_s=0.05).outcome is Outcome.TIMEOUT
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_host_without_another_thread_is_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(HostError, match=r"can't start new thread.*ulimit -u"):
        machine.run()


def test_timeout_is_told(machine: Machine) -> None:
    result = machine.run(timeout_s=0.05)
    assert (result.outcome, result.exit_status) == (Outcome.TIMEOUT, 124)
    assert "0.05 s" in result.summary


def test_an_error_in_a_device_reaches_the_caller(tmp_path: Path) -> None:
    def output(data: bytes) -> None:
        raise ZeroDivisionError("a defect")

    config = MachineConfig(kernel=build("hello_pvh", str(tmp_path)), memory_bytes=16 * MiB)
    with Machine(config, output) as machine, pytest.raises(ZeroDivisionError, match="a defect"):
        machine.run(timeout_s=30)


def test_closing_gives_everything_back(spin: str) -> None:
    before = open_fds()
    with Machine(MachineConfig(kernel=spin, memory_bytes=16 * MiB), bytes):
        assert open_fds() > before
    assert open_fds() == before


def test_a_failure_while_building_gives_everything_back(tmp_path: Path) -> None:
    before = open_fds()
    (tmp_path / "kernel").write_bytes(b"no kernel at all")
    machine = Machine(MachineConfig(kernel=str(tmp_path / "kernel")), bytes)
    with pytest.raises(KernelImageError):
        machine.__enter__()
    assert open_fds() == before


def test_a_guest_of_5_gib_sees_memory_above_the_gap() -> None:
    output = bytearray()
    config = MachineConfig(
        kernel=embedded.path("kernel.elf"), memory_bytes=5 * GiB, huge_pages=HugePages.NEVER
    )

    def take(data: bytes) -> None:
        output.extend(data)
        if b"powers off" in output:
            guest.stop()

    with Machine(config, take) as guest:
        assert guest.run(timeout_s=30) is STOPPED
    assert b"0x0000000100000000..0x0000000180000000  RAM" in output
    assert b"0x0000000000100000..0x00000000c0000000  RAM" in output


@pytest.mark.parametrize("backing", list(Backing))
def test_a_guest_runs_on_every_backing(backing: Backing, tmp_path: Path) -> None:
    output = bytearray()
    config = MachineConfig(
        kernel=build("hello_pvh", str(tmp_path)), memory_bytes=16 * MiB, backing=backing
    )
    with Machine(config, output.extend) as machine:
        assert machine.run(timeout_s=30).outcome is Outcome.POWERED_OFF
    assert b"hello" in output


def test_guest_memory_can_be_mapped_by_huge_pages(spin: str) -> None:
    # KVM does so only where guest and host address are alike below 2 MiB. An odd size, as Linux
    # aligns mappings of whole huge pages by itself since 6.7.
    with Machine(MachineConfig(kernel=spin, memory_bytes=17 * MiB), bytes) as machine:
        assert host_address(machine.memory.regions[0].view) % (2 * MiB) == 0


def test_huge_pages_that_the_host_has_not_got_are_told(spin: str) -> None:
    free = int(Path("/proc/sys/vm/nr_hugepages").read_text())
    config = MachineConfig(
        kernel=spin, memory_bytes=(free + 1) * 2 * MiB, huge_pages=HugePages.HUGETLB
    )
    with pytest.raises(HostError, match=r"vm\.nr_hugepages"):
        Machine(config, bytes).__enter__()


def test_memory_that_the_host_has_not_got_is_told_in_all(spin: str) -> None:
    # Not just too much: how much that is, is for the host's overcommit policy to say.
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + GiB, limits[1]))
    try:
        with pytest.raises(HostError, match=r"did not give 8 GiB of memory .* ask for less"):
            Machine(MachineConfig(kernel=spin, memory_bytes=8 * GiB), bytes).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_config_that_makes_no_machine_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(ConfigError, match="99 CPUs"):
        Machine(MachineConfig(kernel="there is no such file", cpus=99), bytes)


def test_placements_are_told_by_address(machine: Machine) -> None:
    placements = list(machine.placements())
    assert placements == sorted(placements, key=lambda placement: placement[1])
    assert {"GDT", "start_info", "command line", "MP table"} < {name for name, _, _ in placements}


def test_run_twice_is_refused(machine: Machine) -> None:
    machine.stop()
    machine.run()
    with pytest.raises(MachineStateError, match="started before"):
        machine.start()


def test_wait_before_the_start_is_refused(machine: Machine) -> None:
    with pytest.raises(MachineStateError, match="call start"):
        machine.wait()


def test_wait_that_runs_out_leaves_the_machine_running(machine: Machine) -> None:
    machine.start()
    assert machine.wait(timeout_s=0.05) is None
    machine.stop()
    assert machine.wait(timeout_s=30) is STOPPED


def test_pause_lets_registers_be_seen_and_resume_goes_on(machine: Machine) -> None:
    machine.start()
    with pytest.raises(MachineStateError, match=r"pause\(\) it first"):
        _ = machine.vcpus
    machine.pause()
    assert machine.paused
    (vcpu,) = machine.vcpus
    assert vcpu.get_regs().rip == vcpu.get_regs().rip
    exits = machine.exits
    machine.pause()  # as good as nothing
    assert machine.exits == exits
    machine.resume()
    assert not machine.paused
    machine.stop()
    assert machine.wait(timeout_s=30) is STOPPED


def test_registers_written_while_paused_are_what_the_guest_goes_on_with(spin: str) -> None:
    # The guest loops in place; sent to a HLT of ours, with interrupts off, it halts for good.
    config = MachineConfig(kernel=spin, memory_bytes=16 * MiB)
    with Machine(config, bytes) as machine:
        machine.start()
        machine.pause()
        machine.memory.write_u8(0x5000, 0xF4)
        (vcpu,) = machine.vcpus
        regs = vcpu.get_regs()
        regs.rip = 0x5000
        vcpu.set_regs(regs)
        machine.resume()
        result = machine.wait(timeout_s=30)
    assert result is not None
    assert result.outcome is Outcome.HALTED
    assert "0x5001" in result.summary


def test_stop_while_paused_ends_the_run(machine: Machine) -> None:
    machine.start()
    machine.pause()
    machine.stop()
    assert machine.wait(timeout_s=30) is STOPPED


def test_pause_after_the_end_returns(machine: Machine) -> None:
    machine.start()
    machine.stop()
    machine.wait(timeout_s=30)
    machine.pause()
    assert len(machine.vcpus) == 1


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_200_starts_and_stops(spin: str, cpus: int) -> None:
    # With pauses in between: each a kick of every vCPU, wherever it is, that must not get lost.
    config = MachineConfig(kernel=spin, memory_bytes=2 * MiB, cpus=cpus)
    for _ in range(200 // cpus):
        with Machine(config, bytes) as machine:
            machine.start()
            machine.pause()
            machine.resume()
            machine.stop()
            assert machine.wait(timeout_s=30) is STOPPED


def test_cpus_that_nobody_starts_do_not_keep_a_halted_machine_alive(tmp_path: Path) -> None:
    config = MachineConfig(
        kernel=build("halt_forever", str(tmp_path)), memory_bytes=16 * MiB, cpus=2
    )
    with Machine(config, bytes) as machine:
        assert machine.run(timeout_s=30).outcome is Outcome.HALTED


def embedded_machine(**values: Any) -> Machine:
    config = MachineConfig(
        kernel=embedded.path("kernel.elf"), memory_bytes=64 * MiB, cmdline="", **values
    )
    return Machine(config)


def test_console_is_a_stream() -> None:
    with embedded_machine() as machine:
        machine.start()
        greeting = machine.console.expect(rb"\n> ", timeout_s=30)
        assert b"pyvmm embedded kernel" in greeting
        machine.console.write(b"hello there\n")
        assert b"hello there" in machine.console.expect(rb"\n> ", timeout_s=30)
        machine.console.write(b"exit 9\n")
        result = machine.wait(timeout_s=30)
    assert result is not None
    assert result.exit_status == 9
    assert machine.console.read(timeout_s=0)
    assert machine.console.read() == b""  # it ended: there is nothing to wait for


def test_console_that_does_not_show_what_is_expected_says_what_it_showed() -> None:
    with embedded_machine() as machine:
        machine.start()
        machine.console.expect(rb"\n> ", timeout_s=30)
        with pytest.raises(ConsoleError, match=r"nothing more came in 0\.05 s"):
            machine.console.expect(b"never", timeout_s=0.05)
        machine.console.write(b"poweroff\n")
        with pytest.raises(ConsoleError, match=r"the run ended.*poweroff"):
            machine.console.expect(b"never", timeout_s=30)


def test_64_kib_typed_arrive_whole() -> None:
    lines = [b"%05d %s" % (number, b"x" * 57) for number in range(1024)]
    with embedded_machine() as machine:
        machine.start()
        machine.console.expect(rb"\n> ", timeout_s=30)
        machine.console.write(b"\n".join(lines) + b"\npoweroff\n")
        result = machine.wait(timeout_s=60)
    assert result is not None
    assert result.outcome is Outcome.POWERED_OFF
    shown = machine.console.read().splitlines()
    # Each line twice: as it is typed, and as the answer.
    expected = [line for line in lines for _ in range(2)] + [b"poweroff"]
    assert [line.removeprefix(b"> ") for line in shown] == expected


def test_reset_starts_the_guest_again() -> None:
    with embedded_machine() as machine:
        machine.start()
        machine.console.expect(rb"\n> ", timeout_s=30)
        machine.console.write(b"reboot\n")
        assert b"pyvmm embedded kernel" in machine.console.expect(rb"\n> ", timeout_s=30)
        assert machine.boots == 2
        machine.console.write(b"exit 5\n")
        result = machine.wait(timeout_s=30)
    assert result is not None
    assert result.exit_status == 5


def test_reset_without_reboot_is_the_end() -> None:
    with embedded_machine(reboot=False) as machine:
        machine.console.write(b"reboot\n")
        assert machine.run(timeout_s=30).outcome is Outcome.RESET
        assert machine.boots == 1
