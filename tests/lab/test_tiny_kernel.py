"""linux:tiny, the kernel of our own configuration, and the small init: each way in, each end."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
from builders.stock_kernels import Boot, boot_kernel, stock_kernel

from pyvmm.initramfs import READY_MARKER, build_initramfs
from pyvmm.loader.image import KernelImage
from pyvmm.loader.load import extract_vmlinux

pytestmark = [pytest.mark.boot, pytest.mark.timeout(60)]

CONFIG = Path(__file__).parents[2] / "kernels" / "linux" / "tiny.config"


@pytest.fixture(scope="module")
def small_initramfs(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("initramfs") / "small")
    build_initramfs(path, busybox_path=None)
    return path


def boot_tiny(initramfs: str, init: str, *options: str) -> Boot:
    cmdline = f"console=ttyS0 quiet panic=-1 reboot=k -- {init}"
    kernel = stock_kernel("linux:tiny").path
    return boot_kernel(kernel, "--mem", "96M", *options, initrd=initramfs, cmdline=cmdline)


@pytest.mark.parametrize(
    ("init", "status", "message"),
    [
        ("poweroff", 0, "pyvmm: the guest powered itself off\n"),
        ("reboot", 0, "pyvmm: the guest reset itself\n"),
        ("exit 42", 42, "pyvmm: the guest exited with 42\n"),
    ],
)
def test_small_init_ends_as_it_is_told(
    small_initramfs: str, init: str, status: int, message: str
) -> None:
    boot = boot_tiny(small_initramfs, init)
    assert (boot.status, boot.messages) == (status, message), boot.console
    assert READY_MARKER in boot.console


def test_small_init_panics_as_it_is_told(small_initramfs: str) -> None:
    boot = boot_tiny(small_initramfs, "panic")
    assert boot.status == 3, boot.console
    assert "Attempted to kill init! exitcode=0x00000000" in boot.messages


# With one CPU stock kernels boot each way (test_stock_kernels.py).
@pytest.mark.parametrize(
    "way",
    [
        ("--protocol", "pvh"),
        ("--protocol", "linux64"),
        ("--protocol", "linux64", "--decompress", "guest"),
        ("--protocol", "linux32"),
    ],
    ids=" ".join,
)
def test_tiny_kernel_boots_each_way_with_two_cpus(
    small_initramfs: str, way: tuple[str, ...]
) -> None:
    boot = boot_tiny(small_initramfs, "poweroff", *way, "--cpus", "2")
    assert boot.status == 0, boot.messages
    assert READY_MARKER in boot.console


def test_tiny_kernel_has_the_configuration_in_it() -> None:
    """CONFIG_IKCONFIG: what kernel/configs.c puts between IKCFG_ST and IKCFG_ED."""
    with KernelImage.open(stock_kernel("linux:tiny").path) as image:
        found = re.search(rb"IKCFG_ST(\x1f\x8b.*?)IKCFG_ED", bytes(extract_vmlinux(image)), re.S)
    assert found
    config = gzip.decompress(found[1]).decode()
    wanted = [line for line in CONFIG.read_text().splitlines() if line.endswith("=y")]
    assert wanted
    assert [line for line in wanted if f"\n{line}\n" not in config] == []
