"""What a stock kernel finds in the machine: processors, power, a panic's way out, time."""

from __future__ import annotations

import time

import pytest
from builders.stock_kernels import CMDLINE, boot_kernel, stock_kernel

from pyvmm.config import MachineConfig
from pyvmm.initramfs import READY_MARKER
from pyvmm.machine import Machine

pytestmark = [pytest.mark.boot, pytest.mark.timeout(200)]

SHELL_TIMEOUT_S = 90.0


@pytest.mark.parametrize(("name", "cpus"), [("debian:6.1-cloud", 2), ("debian:6.12-cloud", 4)])
def test_all_cpus_are_online_and_poweroff_is_the_end(
    name: str, cpus: int, power_off_initramfs: str
) -> None:
    boot = boot_kernel(
        stock_kernel(name).path,
        *("--cpus", str(cpus)),
        initrd=power_off_initramfs,
        cmdline=f"{CMDLINE} quiet",
    )
    assert (boot.status, boot.messages) == (0, "pyvmm: the guest powered itself off\n"), (
        boot.console
    )
    assert boot.report["cpus"] == [f"0-{cpus - 1}"]


def test_a_panic_is_told_as_a_panic() -> None:
    boot = boot_kernel(stock_kernel("debian:6.1-cloud").path, cmdline=f"{CMDLINE} quiet")
    assert boot.status == 3, boot.console
    assert boot.messages.startswith("pyvmm: the guest's kernel panicked: VFS: Unable to mount root")


def test_a_guest_that_resets_itself_starts_again(shell_initramfs: str) -> None:
    config = MachineConfig(
        kernel=stock_kernel("debian:6.1-cloud").path,
        initrd=shell_initramfs,
        cmdline=f"{CMDLINE} quiet",
    )
    with Machine(config) as machine:
        machine.start()
        machine.console.expect(READY_MARKER.encode(), SHELL_TIMEOUT_S)
        machine.console.write(b"reboot -f\r")
        machine.console.expect(READY_MARKER.encode(), SHELL_TIMEOUT_S)
        assert machine.boots == 2
        machine.stop()
        machine.wait()


def test_the_guests_date_is_right_and_stays_right_over_a_pause(shell_initramfs: str) -> None:
    config = MachineConfig(
        kernel=stock_kernel("debian:6.1-cloud").path,
        initrd=shell_initramfs,
        cmdline=f"{CMDLINE} quiet",
    )
    with Machine(config) as machine:
        machine.start()
        machine.console.expect(READY_MARKER.encode(), SHELL_TIMEOUT_S)
        machine.console.expect(b"# ", SHELL_TIMEOUT_S)

        def seconds_behind() -> float:
            machine.console.write(b"date +at:%s\r")
            machine.console.expect(rb"\nat:", SHELL_TIMEOUT_S)
            shown = machine.console.expect(rb"\d+\r\n", SHELL_TIMEOUT_S)
            return time.time() - int(shown)

        before = seconds_behind()
        machine.pause()
        time.sleep(3)  # what is tested is that time goes by meanwhile
        machine.resume()
        after = seconds_behind()
        machine.stop()
        machine.wait()
    assert abs(before) < 2.5  # date counts whole seconds, and the RTC does
    assert abs(after) < 2.5
