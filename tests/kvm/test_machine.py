"""The machine as a program uses it: building, ending it from elsewhere, what goes wrong."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from build_guest import build

from pyvmm import embedded
from pyvmm.config import MachineConfig
from pyvmm.errors import ConfigError, HostError, KernelImageError
from pyvmm.machine import STOPPED, Machine
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


def test_huge_pages_that_the_host_has_not_got_are_told(spin: str) -> None:
    free = int(Path("/proc/sys/vm/nr_hugepages").read_text())
    config = MachineConfig(
        kernel=spin, memory_bytes=(free + 1) * 2 * MiB, huge_pages=HugePages.HUGETLB
    )
    with pytest.raises(HostError, match=r"vm\.nr_hugepages"):
        Machine(config, bytes).__enter__()


def test_a_config_that_makes_no_machine_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(ConfigError, match="2 CPUs"):
        Machine(MachineConfig(kernel="there is no such file", cpus=2), bytes)


def test_placements_are_told_by_address(machine: Machine) -> None:
    placements = list(machine.placements())
    assert placements == sorted(placements, key=lambda placement: placement[1])
    assert {"GDT", "start_info", "command line", "MP table"} < {name for name, _, _ in placements}
