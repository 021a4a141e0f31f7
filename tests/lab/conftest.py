"""The tests here boot stock kernels, often: each takes minutes where KVM emulates kernel mode.

On a software KVM they are skipped. `scripts/lab test` runs them on a hardware-style one; there
(PYVMM_LAB=1) a test that cannot run fails.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from builders.stock_kernels import make_initramfs

from kvm_bindings import Kvm
from pyvmm.probe import Virtualization, probe_virtualization


@pytest.fixture(scope="session", autouse=True)
def hardware_kvm() -> None:
    """A KVM that runs kernel mode natively, or no test."""
    with Kvm() as kvm:
        if probe_virtualization(kvm) is Virtualization.HARDWARE:
            return
    reason = "this KVM emulates kernel mode; `scripts/lab test` has a hardware-style one"
    if os.environ.get("PYVMM_LAB") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def report_initramfs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An initramfs whose init reports on its kernel and its machine, and resets it."""
    return make_initramfs(tmp_path_factory.mktemp("report"), REPORT_INIT)


@pytest.fixture(scope="session")
def power_off_initramfs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same, but it powers the machine off."""
    init = REPORT_INIT.replace(b"reboot -f", b"poweroff -f")
    return make_initramfs(tmp_path_factory.mktemp("power-off"), init)


@pytest.fixture(scope="session")
def shell_initramfs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The initramfs that `pyvmm initramfs` makes: a shell on the console."""
    return make_initramfs(tmp_path_factory.mktemp("shell"), None)


REPORT_INIT = Path(__file__).with_name("report-init.sh").read_bytes()
