"""Stock kernels that pyvmm has moved: what they say themselves of where they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from builders.stock_kernels import CMDLINE, boot_kernel, make_initramfs, stock_kernel

pytestmark = [pytest.mark.boot, pytest.mark.timeout(150)]

LINKED_TO = 0xFFFF_FFFF_8100_0000  # __START_KERNEL_map and CONFIG_PHYSICAL_START

WHERE_AM_I = b"""\
echo "report: text $(grep -m 1 ' _text$' /proc/kallsyms)"
echo "report: code $(grep 'Kernel code' /proc/iomem)"
echo "report: end"
exit
"""


REPORT_INIT = Path(__file__).with_name("report-init.sh").read_bytes()


class Place(NamedTuple):
    """Where a kernel is."""

    physical_base: int
    virtual_base: int
    virtual_offset: int


@pytest.fixture(scope="session")
def panic_initramfs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its init reports where the kernel is, and ends, which makes the kernel panic."""
    init = REPORT_INIT.partition(b'echo "report: end"')[0] + WHERE_AM_I
    return make_initramfs(tmp_path_factory.mktemp("panic"), init)


@pytest.mark.parametrize("name", ["debian:6.1-cloud", "debian:6.12-cloud"])
@pytest.mark.parametrize(
    "option", [("--kaslr=0x9800000:0xffffffffa3a00000",), ("--kaslr",)], ids=["fixed", "random"]
)
def test_moved_kernel_finds_itself_where_it_was_put(
    name: str, option: tuple[str, ...], panic_initramfs: str
) -> None:
    boot = boot_kernel(
        stock_kernel(name).path,
        *("-v", *option),
        initrd=panic_initramfs,
        cmdline=f"{CMDLINE} quiet",
    )
    assert boot.report["end"] == [""], boot.console + boot.messages
    assert boot.status == 3
    told = re.search(
        r"^pyvmm: moved to physical (\w+), virtual (\w+) \(Kernel Offset: (\w+)\)$",
        boot.messages,
        re.MULTILINE,
    )
    assert told, boot.messages
    put = Place(*(int(number, 16) for number in told.groups()))
    if option != ("--kaslr",):
        assert put == (0x980_0000, 0xFFFF_FFFF_A3A0_0000, 0x22A0_0000)
    (text,), (code,) = boot.report["text"], boot.report["code"]
    panic = re.search(r"Kernel Offset: (\w+) from (\w+)", boot.console)
    assert panic, boot.console
    assert int(panic[2], 16) == LINKED_TO
    found = Place(int(code.split("-")[0], 16), int(text.split()[0], 16), int(panic[1], 16))
    assert found == put
    assert put.virtual_base == LINKED_TO + put.virtual_offset
