"""Kernels that are wrapped in something, booted as they are: UKIs, compressed files."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from builders.cli import pyvmm, running
from builders.pe import uki
from builders.stock_kernels import debian_vmlinuz, make_initramfs
from builders.systemd_uki import make_systemd_uki

from pyvmm import embedded

pytestmark = pytest.mark.boot

LIMIT_S = 180.0
VMLINUX = Path(embedded.path("kernel.elf")).read_bytes()
BZIMAGE = Path(embedded.path("kernel.bzimage")).read_bytes()


def run_kernel(kernel: bytes, directory: Path, *options: str) -> tuple[str, str]:
    """Boot ``kernel`` and have it power off: what it printed, and what pyvmm said."""
    (directory / "kernel").write_bytes(kernel)
    result = pyvmm(
        "run", "--kernel", directory / "kernel", "--mem", "16M", *options, typed=b"poweroff\n"
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.decode().replace("\r\n", "\n"), result.stderr.decode()


@pytest.mark.parametrize("kernel", [VMLINUX, BZIMAGE], ids=["vmlinux", "bzImage"])
def test_uki_boots_with_its_own_command_line_and_initrd(kernel: bytes, tmp_path: Path) -> None:
    image = uki(kernel, initrd=b"x" * 12345, cmdline=b"from=uki\n")
    console, said = run_kernel(image, tmp_path, "-v")
    assert "command line: from=uki\n" in console
    assert "initrd:\n  0x" in console
    assert f"UKI: the kernel is the {len(kernel)} bytes at 0x" in said
    assert "the image's own cmdline, 8 bytes, is used\n" in said
    assert "the image's own initrd, 12345 bytes, is used\n" in said


def test_command_line_that_is_given_wins_over_the_ukis(tmp_path: Path) -> None:
    image = uki(BZIMAGE, cmdline=b"from=uki\n")
    console, said = run_kernel(image, tmp_path, "-v", "--cmdline", "from=user")
    assert "command line: from=user\n" in console
    assert "the image's own cmdline, 8 bytes, is not used, as --cmdline was given\n" in said


@pytest.mark.parametrize("protocol", ["linux64", "linux32"])
def test_uki_boots_by_the_protocols_of_its_bzimage(protocol: str, tmp_path: Path) -> None:
    image = uki(BZIMAGE, cmdline=b"from=uki\n")
    console, _ = run_kernel(image, tmp_path, "--protocol", protocol, "--decompress", "guest")
    assert "command line: from=uki\n" in console


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_compressed_vmlinux_boots(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    console, _ = run_kernel(compress(VMLINUX), tmp_path, "--cmdline", "a=1")
    assert "command line: a=1\n" in console


def test_kernel_is_extracted_from_a_uki(tmp_path: Path) -> None:
    (tmp_path / "uki").write_bytes(gzip.compress(uki(BZIMAGE)))
    assert pyvmm("extract", tmp_path / "uki", "-o", tmp_path / "vmlinux").returncode == 0
    assert (tmp_path / "vmlinux").read_bytes() == VMLINUX


@pytest.mark.timeout(LIMIT_S + 20)
def test_uki_of_a_stock_kernel_made_with_systemds_stub_prints_its_banner(tmp_path: Path) -> None:
    cmdline = "earlyprintk=ttyS0 console=ttyS0 from=uki"
    initrd = make_initramfs(tmp_path, None)
    path = make_systemd_uki(tmp_path, debian_vmlinuz("6.1"), initrd, cmdline)
    with running("run", "--kernel", path, "--mem", "96M", "--tune", "none") as guest:
        guest.wait_for(b"] RAMDISK: [mem ", LIMIT_S)
    assert f"\r\n[    0.000000] Command line: {cmdline}\r\n" in guest.output.decode()
