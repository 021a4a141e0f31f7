"""linux:tiny, a Linux with nothing changed in it, to user space and back: on any KVM.

Where KVM emulates the guest's kernel mode that needs all of pyvmm/completion, and up to a minute.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from builders.host import kvm_is_software
from builders.stock_kernels import stock_kernel

from pyvmm.config import MachineConfig
from pyvmm.initramfs import READY_MARKER, build_initramfs
from pyvmm.machine import Machine
from pyvmm.outcome import Outcome
from pyvmm.units import MiB

LIMIT_S = 300.0

pytestmark = [pytest.mark.boot, pytest.mark.timeout(LIMIT_S + 20)]

# Where kernel mode is emulated it is added to (pyvmm/tuning.py).
CMDLINE = "console=ttyS0 quiet panic=-1 reboot=k -- exit 42"


def test_tiny_kernel_reaches_user_space_and_its_init_ends_the_run(tmp_path: Path) -> None:
    initramfs = str(tmp_path / "small")
    build_initramfs(initramfs, busybox_path=None)
    config = MachineConfig(
        kernel=stock_kernel("linux:tiny").path,
        cmdline=CMDLINE,
        initrd=initramfs,
        memory_bytes=64 * MiB,
    )
    with Machine(config) as machine:
        result = machine.run(timeout_s=LIMIT_S)
        console = machine.console.output.decode(errors="replace")
        completions = machine.completions
    assert (result.outcome, result.exit_status) == (Outcome.GUEST_EXIT, 42), console
    assert READY_MARKER in console
    assert bool(completions) is kvm_is_software()
