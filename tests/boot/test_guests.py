"""The small guests of kernels/tests: each does the one thing it is there for, by both entries."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_guest import build
from builders.guest_session import GuestSession
from builders.host import kvm_is_software

from pyvmm.boot import Protocol
from pyvmm.config import MachineConfig
from pyvmm.machine import Machine
from pyvmm.outcome import Outcome
from pyvmm.units import MiB

pytestmark = [
    pytest.mark.boot,
    pytest.mark.parametrize("protocol", [Protocol.PVH, Protocol.LINUX64]),
]


def config(
    name: str, directory: Path, protocol: Protocol, defines: dict[str, int] | None = None
) -> MachineConfig:
    kernel = build(name, str(directory), defines)
    return MachineConfig(kernel=kernel, memory_bytes=16 * MiB, protocol=protocol)


def test_hello_pvh_prints_its_line(protocol: Protocol, tmp_path: Path) -> None:
    with GuestSession(config("hello_pvh", tmp_path, protocol)) as guest:
        assert guest.expect("\n") == "hello from a test guest\n"
        assert guest.result().outcome is Outcome.POWERED_OFF


def test_pio_loop_exits_for_each_write(protocol: Protocol, tmp_path: Path) -> None:
    with Machine(config("pio_loop", tmp_path, protocol, {"COUNT": 500}), bytes) as machine:
        result = machine.run(timeout_s=30)
        assert (result.outcome, result.exit_status) == (Outcome.GUEST_EXIT, 0)
        assert machine.exits == 501


@pytest.mark.parametrize(
    ("name", "outcome"),
    [("triple_fault", Outcome.TRIPLE_FAULT), ("halt_forever", Outcome.HALTED)],
)
def test_guest_ends_in_its_own_way(
    name: str, outcome: Outcome, protocol: Protocol, tmp_path: Path
) -> None:
    with Machine(config(name, tmp_path, protocol), bytes) as machine:
        assert machine.run(timeout_s=30).outcome is outcome


def test_spin_runs_into_the_timeout(protocol: Protocol, tmp_path: Path) -> None:
    with Machine(config("spin", tmp_path, protocol), bytes) as machine:
        assert machine.run(timeout_s=0.2).outcome is Outcome.TIMEOUT


def test_instruction_that_kvm_cannot_emulate_is_executed(
    protocol: Protocol, tmp_path: Path
) -> None:
    with Machine(config("unemulated", tmp_path, protocol), bytes) as machine:
        result = machine.run(timeout_s=30)
        assert (result.outcome, result.exit_status) == (Outcome.GUEST_EXIT, 0)
        assert machine.completions == ({"popcnt": 1} if kvm_is_software() else {})


def test_instruction_that_nobody_knows_ends_the_run(protocol: Protocol, tmp_path: Path) -> None:
    with Machine(config("unknown", tmp_path, protocol), bytes) as machine:
        result = machine.run(timeout_s=30)
    if kvm_is_software():
        assert result.outcome is Outcome.EMULATION_FAILURE
        assert "d9 e8" in result.summary
    else:
        assert (result.outcome, result.exit_status) == (Outcome.GUEST_EXIT, 0)
