"""Debian's kernels, unmodified, from their bzImage to an init and through a reset."""

from __future__ import annotations

import os

import pytest
from builders.stock_kernels import CMDLINE, boot_kernel, release, stock_kernel

from pyvmm.arch.x86_64 import layout
from pyvmm.units import GiB, MiB

pytestmark = [pytest.mark.boot, pytest.mark.timeout(150)]

KERNELS = ("debian:6.1-cloud", "debian:6.1-generic", "debian:6.12-cloud", "debian:6.12-generic")

WAYS_IN = {
    "pvh": ("--protocol", "pvh"),
    "linux64": ("--protocol", "linux64"),
    "linux64-guest": ("--protocol", "linux64", "--decompress", "guest"),
    "linux32-guest": ("--protocol", "linux32"),
}

# A boot takes 7 to 14 s in the lab. Each kernel and each way in is here; the two smallest kernels,
# one for each compressor, by more ways. PYVMM_LAB_FULL=1 tries each kernel by each way.
EVERY_TIME = (
    *(("debian:6.1-cloud", way) for way in WAYS_IN),
    ("debian:6.12-cloud", "pvh"),
    ("debian:6.12-cloud", "linux64-guest"),
    ("debian:6.1-generic", "linux64"),
    ("debian:6.12-generic", "pvh"),
)
FULL = tuple((kernel, way) for kernel in KERNELS for way in WAYS_IN)
MATRIX = FULL if os.environ.get("PYVMM_LAB_FULL") == "1" else EVERY_TIME


@pytest.mark.parametrize(("name", "way"), MATRIX)
def test_stock_kernel_boots_to_init_and_resets(name: str, way: str, report_initramfs: str) -> None:
    kernel = stock_kernel(name)
    cmdline = f"{CMDLINE} quiet"  # all messages take 5 to 10 s more
    boot = boot_kernel(kernel.path, *WAYS_IN[way], initrd=report_initramfs, cmdline=cmdline)
    assert (boot.status, boot.messages) == (0, "pyvmm: the guest reset itself\n"), boot.console
    assert boot.report["kernel"] == [release(kernel)]
    assert boot.report["cmdline"] == [cmdline]
    assert boot.report["clocksource"] == ["kvm-clock"]
    assert boot.report["end"] == [""]


def test_stock_kernel_is_seen_from_its_first_line_to_its_last(report_initramfs: str) -> None:
    boot = boot_kernel(stock_kernel("debian:6.1-cloud").path, initrd=report_initramfs)
    lines = boot.console.splitlines()
    assert lines[0].startswith("[    0.000000] Linux version "), boot.console
    assert lines[-1].endswith("reboot: machine restart"), boot.console


# The 32-bit gap: below 4 GiB is no RAM from GAP_BASE on; what does not fit goes on from 4 GiB. The
# kernel shows the ends of RAM as inclusive addresses.
LAST_BELOW_GAP = layout.GAP_BASE - 1


@pytest.mark.parametrize(
    ("memory_bytes", "last_addresses"),
    [
        (layout.GAP_BASE - MiB, [LAST_BELOW_GAP - MiB]),
        (layout.GAP_BASE, [LAST_BELOW_GAP]),
        (layout.GAP_BASE + MiB, [LAST_BELOW_GAP, 4 * GiB + MiB - 1]),
    ],
    ids=["gap-1M", "gap", "gap+1M"],
)
def test_stock_kernel_finds_all_memory_around_the_gap(
    memory_bytes: int, last_addresses: list[int], report_initramfs: str
) -> None:
    boot = boot_kernel(
        stock_kernel("debian:6.1-cloud").path,
        *("--mem", f"{memory_bytes // MiB}M"),
        initrd=report_initramfs,
        cmdline=f"{CMDLINE} quiet",
    )
    assert boot.status == 0, boot.console + boot.messages
    # The first is the conventional memory below 640 KiB.
    ranges = [line.split("-") for line in boot.report["ram"]][1:]
    assert [int(last, 16) for _, last in ranges] == last_addresses
    assert [int(first, 16) for first, _ in ranges] == [MiB, 4 * GiB][: len(ranges)]
