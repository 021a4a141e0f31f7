"""Debian's Xen by Multiboot, with Debian's Linux as its first guest, which comes as a module.

Debian's Xen has no PVH note: it is built without CONFIG_PVH_GUEST.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from builders.stock_kernels import boot_kernel, make_initramfs, package_file, stock_kernel

pytestmark = [pytest.mark.boot, pytest.mark.timeout(240)]

# Under QEMU's emulated SVM a guest of Xen crashes on its first page fault with SMAP on.
CMDLINE = "com1=115200,8n1 console=com1 noreboot dom0_mem=256M smap=0 smep=0"
DOM0_INIT = b"""#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox cat /proc/cmdline
/bin/busybox poweroff -f
"""


def test_xen_boots_linux_from_its_modules_to_an_init(tmp_path: Path) -> None:
    xen = package_file("xen-hypervisor-4.17-amd64", r"boot/xen-.*-amd64\.gz")
    dom0 = stock_kernel("debian:6.1-generic")
    initramfs = make_initramfs(tmp_path, DOM0_INIT)
    boot = boot_kernel(
        xen,
        *("--module", f"{dom0.path} console=hvc0 quiet from=pyvmm", "--module", initramfs),
        *("--mem", "700M"),
        cmdline=CMDLINE,
    )
    assert (boot.status, boot.messages) == (0, "pyvmm: the guest powered itself off\n"), (
        boot.console
    )
    assert "(XEN) Bootloader: pyvmm\n" in boot.console
    # The first word, the kernel's own name, is what Xen takes off.
    assert f"(XEN) Command line: {CMDLINE}\n" in boot.console
    assert "(XEN)  [0000000000100000, 000000002bbfffff] (usable)\n" in boot.console
    lines = [line.rstrip("\r") for line in boot.console.split("\n")]
    assert "console=hvc0 quiet from=pyvmm" in lines, boot.console
