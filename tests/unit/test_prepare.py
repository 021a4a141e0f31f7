"""What lies in a guest's memory before it runs: what an image brings along, and what was given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from builders.elf import vmlinux
from builders.pe import uki

from pyvmm.arch.x86_64 import layout
from pyvmm.boot import Protocol
from pyvmm.config import DEFAULT_CMDLINE, MachineConfig
from pyvmm.errors import ConfigError
from pyvmm.loader.image import KernelImage
from pyvmm.loader.kaslr import Kaslr
from pyvmm.memory import GuestMemory
from pyvmm.prepare import Prepared, prepare
from pyvmm.units import MiB

CONFIG = MachineConfig(kernel="dir/a kernel.efi")
UKI = uki(vmlinux(), initrd=b"the image's initrd", cmdline=b"own=1\n")


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.create(16 * MiB) as memory:
        yield memory


def prepared(memory: GuestMemory, image: bytes, config: MachineConfig = CONFIG) -> Prepared:
    return prepare(config, KernelImage.from_bytes(image), memory)


def cmdline(memory: GuestMemory) -> bytes:
    """The command line, which ends in a NUL."""
    return memory.read(layout.CMDLINE_GPA, 0x200).partition(b"\x00")[0]


def contents(result: Prepared, memory: GuestMemory, name: str) -> list[bytes]:
    """What was placed under ``name``."""
    placements = [placement for placement in result.placements if placement.name == name]
    return [memory.read(placement.base_gpa, placement.size_bytes) for placement in placements]


def test_plain_kernel_gets_the_default_command_line_and_no_initrd(memory: GuestMemory) -> None:
    result = prepared(memory, vmlinux())
    assert cmdline(memory).decode() == DEFAULT_CMDLINE
    assert contents(result, memory, "initrd") == []
    assert result.notes == []


@pytest.mark.parametrize("protocol", [Protocol.PVH, Protocol.LINUX64])
def test_uki_brings_its_command_line_and_initrd(protocol: Protocol, memory: GuestMemory) -> None:
    result = prepared(memory, UKI, CONFIG._replace(protocol=protocol))
    assert cmdline(memory) == b"own=1"
    assert contents(result, memory, "initrd") == [b"the image's initrd"]
    assert result.notes[1:] == [
        "the image's own cmdline, 5 bytes, is used",
        "the image's own initrd, 18 bytes, is used",
    ]


def test_initrd_of_a_uki_is_the_first_module_of_start_info(memory: GuestMemory) -> None:
    result = prepared(memory, UKI, CONFIG._replace(protocol=Protocol.PVH))
    (initrd,) = [placement for placement in result.placements if placement.name == "initrd"]
    # xen/include/public/arch-x86/hvm/start_info.h: nr_modules at 12, modlist_paddr at 16.
    start_info = layout.START_INFO_GPA
    assert memory.read_u32(start_info + 12) == 1
    module = memory.read_u64(start_info + 16)
    assert memory.read_u64(module) == initrd.base_gpa
    assert memory.read_u64(module + 8) == len(b"the image's initrd")


def test_what_is_given_wins_over_what_is_in_a_uki(memory: GuestMemory, tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(b"the user's")
    config = CONFIG._replace(cmdline="given=1", initrd=str(tmp_path / "initrd"))
    result = prepared(memory, UKI, config)
    assert cmdline(memory) == b"given=1"
    assert contents(result, memory, "initrd") == [b"the user's"]
    assert result.notes[1:] == [
        "the image's own cmdline, 5 bytes, is not used, as --cmdline was given",
        "the image's own initrd, 18 bytes, is not used, as --initrd was given",
    ]


def test_command_line_that_is_given_empty_wins_too(memory: GuestMemory) -> None:
    prepared(memory, UKI, CONFIG._replace(cmdline=""))
    assert cmdline(memory) == b""


def test_command_line_of_a_uki_is_checked_as_one_that_is_given(memory: GuestMemory) -> None:
    config = CONFIG._replace(kaslr=Kaslr())
    with pytest.raises(ConfigError, match="--kaslr was given, and nokaslr"):
        prepared(memory, uki(vmlinux(), cmdline=b"quiet nokaslr\n"), config)


def test_uki_with_nothing_but_a_kernel_gets_the_default_command_line(memory: GuestMemory) -> None:
    result = prepared(memory, uki(vmlinux()))
    assert cmdline(memory).decode() == DEFAULT_CMDLINE
    assert contents(result, memory, "initrd") == []


def test_command_line_of_a_uki_that_is_no_utf8_passes_unchanged(memory: GuestMemory) -> None:
    prepared(memory, uki(vmlinux(), cmdline=b"name=\xe4\xff"))
    assert cmdline(memory) == b"name=\xe4\xff"


def test_note_says_where_in_a_uki_the_kernel_is(memory: GuestMemory) -> None:
    offset, size_bytes = UKI.index(b"\x7fELF"), len(vmlinux())
    assert prepared(memory, UKI).notes[0] == (
        f"UKI: the kernel is the {size_bytes} bytes at {offset:#x} in it"
    )
