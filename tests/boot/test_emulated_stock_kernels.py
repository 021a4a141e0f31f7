"""Debian's own kernels to user space where KVM emulates kernel mode: minutes each.

pytest -m long -k 6.1-cloud
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

LIMIT_S = 1800.0

pytestmark = [pytest.mark.boot, pytest.mark.long, pytest.mark.timeout(LIMIT_S + 60)]


@pytest.mark.parametrize(
    ("name", "memory_bytes"), [("debian:6.1-cloud", 96 * MiB), ("debian:6.12-cloud", 128 * MiB)]
)
def test_stock_kernel_reaches_user_space_and_powers_off(
    name: str, memory_bytes: int, tmp_path: Path
) -> None:
    initramfs = str(tmp_path / "small")
    build_initramfs(initramfs, busybox_path=None)
    config = MachineConfig(
        kernel=stock_kernel(name).path, initrd=initramfs, memory_bytes=memory_bytes
    )
    with Machine(config) as machine:
        result = machine.run(timeout_s=LIMIT_S)
        console = machine.console.output.decode(errors="replace")
        completions = machine.completions
    assert result.outcome is Outcome.POWERED_OFF, console
    assert READY_MARKER in console
    assert bool(completions) is kvm_is_software()
