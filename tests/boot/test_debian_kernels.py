"""Debian's stock kernels, as they come, in both forms and by both protocols.

Where KVM emulates the guest's kernel mode that takes up to 50 s.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from builders.cli import pyvmm, running
from builders.stock_kernels import debian_vmlinuz

LIMIT_S = 180.0

pytestmark = [pytest.mark.boot, pytest.mark.timeout(LIMIT_S + 20)]

CMDLINE = "earlyprintk=ttyS0 console=ttyS0"
ARGUMENTS = ["--mem", "96M", "--cmdline", CMDLINE]


@pytest.fixture(scope="module")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the vmlinux of each series, as `pyvmm extract` gives it."""
    directory = tmp_path_factory.mktemp("vmlinux")
    for series in ("6.1", "6.12"):
        pyvmm("extract", debian_vmlinuz(series), "-o", directory / series)
    return directory


TO_THE_END = [("6.1", "bzImage", "pvh"), ("6.12", "vmlinux", "linux64")]
TO_THE_BANNER = sorted(
    set(itertools.product(("6.1", "6.12"), ("bzImage", "vmlinux"), ("pvh", "linux64")))
    - set(TO_THE_END)
)


@pytest.mark.parametrize(("series", "form", "protocol"), TO_THE_BANNER)
def test_debian_kernel_prints_its_banner(
    series: str, form: str, protocol: str, vmlinux: Path
) -> None:
    kernel = debian_vmlinuz(series) if form == "bzImage" else str(vmlinux / series)
    arguments = ["--kernel", kernel, "--protocol", protocol, *ARGUMENTS]
    with running("run", *arguments) as guest:
        guest.wait_for(b"\r\n[    0.000000] Command line: " + CMDLINE.encode(), LIMIT_S)
    assert is_banner(guest.output, series)


@pytest.mark.parametrize(("series", "form", "protocol"), TO_THE_END)
def test_debian_kernel_goes_on_where_kvm_cannot(
    series: str, form: str, protocol: str, vmlinux: Path
) -> None:
    """To the slab allocator: past the first instructions that a software KVM does not know."""
    kernel = debian_vmlinuz(series) if form == "bzImage" else str(vmlinux / series)
    arguments = ["--kernel", kernel, "--protocol", protocol, *ARGUMENTS]
    with running("run", *arguments) as guest:
        guest.wait_for(b"] SLUB: HWalign=", LIMIT_S)
    assert is_banner(guest.output, series)


@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_debian_kernel_that_was_moved_prints_its_banner(series: str) -> None:
    arguments = ["--kernel", debian_vmlinuz(series), "--kaslr", "-v", *ARGUMENTS]
    with running("run", *arguments) as guest:
        guest.wait_for(b"\r\n[    0.000000] Command line: " + CMDLINE.encode(), LIMIT_S)
    assert is_banner(guest.output, series)


def is_banner(output: bytes, series: str) -> bool:
    """Whether ``output`` begins as this kernel's does, with nothing before it."""
    return output.startswith(f"[    0.000000] Linux version {series}.".encode())
