"""The embedded kernel on KVM: every way in, every way out, and what it is told on the way."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from builders.guest_session import GuestSession

from pyvmm import embedded
from pyvmm.arch.x86_64 import layout
from pyvmm.boot import Protocol
from pyvmm.config import MachineConfig
from pyvmm.loader.load import Decompress
from pyvmm.outcome import Outcome
from pyvmm.units import MiB

pytestmark = pytest.mark.boot

MEMORY_BYTES = 64 * MiB
PROMPT = "\n> "


def session(
    kernel: str = "kernel.elf",
    *,
    cmdline: str = "console=ttyS0",
    protocol: Protocol = Protocol.AUTO,
    decompress: Decompress | None = None,
    initrd: str | None = None,
) -> GuestSession:
    return GuestSession(
        MachineConfig(
            kernel=embedded.path(kernel),
            cmdline=cmdline,
            memory_bytes=MEMORY_BYTES,
            protocol=protocol,
            decompress=decompress,
            initrd=initrd,
            reboot=False,
        )
    )


@pytest.mark.parametrize(
    ("kernel", "protocol", "decompress", "entered_by"),
    [
        ("kernel.elf", Protocol.PVH, None, "PVH, hvm_start_info"),
        ("kernel.elf", Protocol.LINUX64, None, "Linux 64-bit, boot_params"),
        ("kernel.bzimage", Protocol.PVH, Decompress.HOST, "PVH, hvm_start_info"),
        ("kernel.bzimage", Protocol.LINUX64, Decompress.HOST, "Linux 64-bit, boot_params"),
        ("kernel.bzimage", Protocol.LINUX64, Decompress.GUEST, "Linux 64-bit, boot_params"),
        ("kernel.bzimage", Protocol.LINUX32, Decompress.GUEST, "Linux 32-bit, boot_params"),
    ],
)
def test_embedded_kernel_boots_by_every_protocol(
    kernel: str, protocol: Protocol, decompress: Decompress | None, entered_by: str
) -> None:
    with session(kernel, cmdline="a=1 b", protocol=protocol, decompress=decompress) as guest:
        output = guest.expect(PROMPT)
        guest.send("poweroff\n")
        assert guest.result().outcome is Outcome.POWERED_OFF
    assert f"entered by: {entered_by} at 0x" in output
    assert "command line: a=1 b\n" in output
    assert f"  0x{layout.HIMEM_GPA:016x}..0x{MEMORY_BYTES:016x}  RAM\n" in output
    assert re.search(r"^CPU: \w+, under KVMKVMKVM$", output, re.MULTILINE)
    assert re.search(r"^timer: [1-9]\d* ticks$", output, re.MULTILINE)


def test_embedded_kernel_boots_by_pvh_as_elf32(tmp_path: Path) -> None:
    # As Xen and others are shipped: 64-bit code that starts in 32-bit mode, in an ELF32 file.
    kernel = tmp_path / "kernel32.elf"
    command = ["objcopy", "-O", "elf32-i386", embedded.path("kernel.elf"), str(kernel)]
    subprocess.run(command, check=True)
    with GuestSession(MachineConfig(kernel=str(kernel), memory_bytes=MEMORY_BYTES)) as guest:
        output = guest.expect(PROMPT)
        guest.send("poweroff\n")
        assert guest.result().outcome is Outcome.POWERED_OFF
    assert "entered by: PVH, hvm_start_info at 0x" in output


@pytest.mark.parametrize("protocol", [Protocol.PVH, Protocol.LINUX64])
def test_embedded_kernel_is_told_where_the_initrd_is(protocol: Protocol, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"x" * 12345)
    with session(protocol=protocol, initrd=str(initrd)) as guest:
        found = re.search(r"initrd:\n  0x(\w+)\.\.0x(\w+)\n", guest.expect(PROMPT))
    assert found is not None
    assert int(found[2], 16) - int(found[1], 16) == 12345


def test_timer_ticks_while_the_guest_waits() -> None:
    with session() as guest:
        guest.expect(PROMPT)
        counts: set[int] = set()
        for _ in range(1000):  # a request takes a fraction of a tick
            guest.send("ticks\n")
            guest.expect("timer: ")
            counts.add(int(guest.expect(" ticks\n").split()[0]))
            if len(counts) == 3:
                break
    assert len(counts) == 3


def test_typed_line_is_echoed_and_can_be_edited() -> None:
    with session() as guest:
        guest.expect(PROMPT)
        guest.send("hellp\x7fo world\r")
        assert guest.expect(PROMPT) == "hellp\b \bo world\nhello world\n> "


def test_ctrl_c_drops_the_line() -> None:
    with session() as guest:
        guest.expect(PROMPT)
        guest.send("poweroff\x03")
        assert guest.expect(PROMPT) == "poweroff\n> "


def test_input_that_is_there_before_the_guest_is_not_lost() -> None:
    with session() as guest:
        guest.send("exit 9\n")
        assert guest.result().exit_status == 9


@pytest.mark.parametrize(
    ("typed", "outcome", "exit_status"),
    [
        ("poweroff\n", Outcome.POWERED_OFF, 0),
        ("\x04", Outcome.POWERED_OFF, 0),
        ("reboot\n", Outcome.RESET, 0),
        ("exit 42\n", Outcome.GUEST_EXIT, 42),
        ("exit\n", Outcome.GUEST_EXIT, 0),
        ("halt\n", Outcome.HALTED, 4),
        ("crash\n", Outcome.TRIPLE_FAULT, 5),
    ],
)
def test_guest_ends_as_it_is_told(typed: str, outcome: Outcome, exit_status: int) -> None:
    with session() as guest:
        guest.expect(PROMPT)
        guest.send(typed)
        result = guest.result()
    assert (result.outcome, result.exit_status) == (outcome, exit_status)


def test_exception_is_reported_and_ends_the_run() -> None:
    with session() as guest:
        guest.expect(PROMPT)
        guest.send("fault\n")
        output = guest.expect("cr2 0x0000000100000000\n")
        assert guest.result().exit_status == 0xEE
    assert "exception 14, error code 0x0000000000000002\n" in output  # a write, not present
