"""A unified kernel image of Debian's kernel, to its init: nothing is given but the one file."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders.stock_kernels import (
    BOOT_TIMEOUT_S,
    CMDLINE,
    boot_image,
    release,
    stock_kernel,
)
from builders.systemd_uki import make_systemd_uki

pytestmark = [pytest.mark.boot, pytest.mark.timeout(BOOT_TIMEOUT_S + 60)]


@pytest.mark.parametrize("name", ["debian:6.1-cloud", "debian:6.12-cloud"])
def test_uki_boots_to_init_and_resets(name: str, report_initramfs: str, tmp_path: Path) -> None:
    kernel = stock_kernel(name)
    cmdline = f"{CMDLINE} quiet from=uki"
    uki = make_systemd_uki(tmp_path, kernel.path, report_initramfs, cmdline)
    boot = boot_image(str(uki))
    assert (boot.status, boot.messages) == (0, "pyvmm: the guest reset itself\n"), boot.console
    assert boot.report["kernel"] == [release(kernel)]
    assert boot.report["cmdline"] == [cmdline]
