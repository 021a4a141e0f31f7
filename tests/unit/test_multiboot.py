"""Multiboot 1: the header in the file, what is loaded by it, and what the kernel is told.

Layouts and rules: Multiboot Specification 0.6.96, 3.1 to 3.3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from builders import multiboot as mb
from builders.assembler import assemble
from builders.elf import Elf, Segment, notes_segment, pvh_note

from pyvmm import boot
from pyvmm.arch.x86_64 import layout
from pyvmm.boot import Protocol, multiboot
from pyvmm.boot.handover import Handover, Module
from pyvmm.boot.memory_map import memory_map
from pyvmm.errors import KernelImageError
from pyvmm.loader.image import ImageFormat, KernelImage
from pyvmm.loader.load import LoadedKernel, Placement, load_kernel
from pyvmm.loader.multiboot import find_header
from pyvmm.memory import GuestMemory, HugePages
from pyvmm.units import GiB, MiB

CODE = bytes(range(256)) * 8


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.create(16 * MiB) as memory:
        yield memory


def load(data: bytes, memory: GuestMemory) -> LoadedKernel:
    return load_kernel(KernelImage.from_bytes(data, "image"), memory)


def broken_rule(data: bytes, memory: GuestMemory) -> str:
    with pytest.raises(KernelImageError) as caught:
        load(data, memory)
    assert str(caught.value).startswith("image: ")
    return caught.value.rule


def elf_kernel(header: bytes, *, bits: int = 32, **fields: int) -> bytes:
    code = header + CODE
    return Elf([Segment(0x10_0000, code)], entry=0x10_0040, bits=bits, **fields).build()


# The header.


@pytest.mark.parametrize("offset", [0, 4, 8192 - 12])
def test_header_is_found_in_the_first_8_kib(offset: int) -> None:
    header = find_header(memoryview(bytes(offset) + mb.header() + bytes(8192)))
    assert header is not None
    assert (header.offset, header.flags, header.has_addresses) == (offset, 0, False)


@pytest.mark.parametrize(
    "data",
    [
        bytes(8192 - 8) + mb.header(),
        bytes(8192) + mb.header(),
        bytes(2) + mb.header() + bytes(2),
        mb.header(checksum=1),
        mb.header()[:-1],
        mb.header(mb.ADDRESSES, 1, 2, 3, 4),
    ],
    ids=["across the end", "behind the end", "unaligned", "checksum", "cut", "addresses cut"],
)
def test_what_is_no_header_is_not_found(data: bytes) -> None:
    assert find_header(memoryview(data)) is None


def test_header_behind_a_magic_number_with_a_wrong_sum_is_found() -> None:
    header = find_header(memoryview(mb.header(checksum=1) + mb.header(3)))
    assert header is not None
    assert (header.offset, header.flags) == (12, 3)


# Loading.


def test_elf_with_a_header_is_entered_at_its_elf_entry(memory: GuestMemory) -> None:
    kernel = load(elf_kernel(mb.header(3)), memory)
    assert kernel.format is ImageFormat.ELF
    assert boot.choose(Protocol.AUTO, kernel) == (Protocol.MULTIBOOT, 0x10_0040)


@pytest.mark.parametrize("bits", [32, 64])
def test_addresses_are_used_instead_of_the_elf_file_s(bits: int, memory: GuestMemory) -> None:
    memory.write(0x20_0000, b"\xff" * 0x4000)
    addresses = (0x20_0000, 0x20_0000, 0x20_0800, 0x20_3000, 0x20_0080)
    kernel = load(elf_kernel(mb.header(mb.ADDRESSES, *addresses), bits=bits), memory)
    assert kernel.placements == (Placement("kernel", 0x20_0000, 0x3000),)
    assert memory.read(0x20_0020, 0x7E0) == CODE[:0x7E0]
    assert memory.read(0x20_0800, 0x2801) == bytes(0x2800) + b"\xff"
    assert memory.read(0x10_0000, 0x1000) == bytes(0x1000)
    assert boot.choose(Protocol.AUTO, kernel) == (Protocol.MULTIBOOT, 0x20_0080)
    with pytest.raises(KernelImageError, match="by the addresses in its Multiboot header"):
        boot.choose(Protocol.LINUX64, kernel)


def test_video_mode_is_a_recommendation(memory: GuestMemory) -> None:
    kernel = load(elf_kernel(mb.header(1 << 2) + bytes(4 * 9)), memory)
    assert kernel.multiboot_entry_gpa == 0x10_0040


def test_pvh_is_preferred(memory: GuestMemory) -> None:
    segments = [Segment(0x10_0000, mb.header() + CODE), notes_segment(pvh_note(0x10_0020))]
    kernel = load(Elf(segments, entry=0x10_0000).build(), memory)
    assert boot.choose(Protocol.AUTO, kernel) == (Protocol.PVH, 0x10_0020)
    assert boot.choose(Protocol.MULTIBOOT, kernel) == (Protocol.MULTIBOOT, 0x10_0000)


def test_file_is_loaded_by_its_addresses(memory: GuestMemory) -> None:
    memory.write(0x20_0000, b"\xff" * MiB)
    before = b"not loaded " * 8
    data = mb.image(
        CODE,
        before=before,
        load_addr=0x20_0000,
        header_addr=0x20_0000,
        load_end_addr=0x20_0000 + 32 + 1024,
        bss_end_addr=0x20_1000,
        entry_addr=0x20_0020,
    )
    kernel = load(data, memory)
    assert memory.read(0x20_0020, 1024) == CODE[:1024]
    assert memory.read(0x20_0420, 0x1000 - 0x420) == bytes(0x1000 - 0x420)
    assert memory.read(0x20_1000, 1) == b"\xff"
    assert kernel.format is ImageFormat.MULTIBOOT
    assert kernel.placements == (Placement("kernel", 0x20_0000, 0x1000),)
    assert boot.choose(Protocol.AUTO, kernel) == (Protocol.MULTIBOOT, 0x20_0020)


def test_end_of_the_file_is_the_end_of_the_data_by_default(memory: GuestMemory) -> None:
    kernel = load(mb.image(CODE), memory)
    assert memory.read(0x20_0020, len(CODE)) == CODE
    assert kernel.end_gpa == 0x20_0020 + len(CODE)


FAULTS = {
    "multiboot-flags": elf_kernel(mb.header(1 << 3)),
    "multiboot-addresses": mb.header(3) + CODE,
    "multiboot-load-addr": mb.image(CODE, load_addr=0x20_0004, header_addr=0x20_0000),
    "multiboot-load-end-addr": mb.image(CODE, load_end_addr=0x20_0020 + len(CODE) + 1),
    "multiboot-bss-end-addr": mb.image(CODE, bss_end_addr=0x20_0010),
    "multiboot-entry-addr": mb.image(CODE, entry_addr=0x20_0020 + len(CODE)),
    "multiboot-load-low": mb.image(CODE, load_addr=0xF_F000, entry_addr=0xF_F020),
    "multiboot-ram": mb.image(CODE, load_addr=16 * MiB - 64, entry_addr=16 * MiB - 32),
}


@pytest.mark.parametrize("rule", FAULTS)
def test_each_fault_has_its_rule(memory: GuestMemory, rule: str) -> None:
    assert broken_rule(FAULTS[rule], memory) == rule


@pytest.mark.parametrize("bit", range(3, 16))
def test_unknown_demand_is_refused_of_a_file_with_addresses_too(
    memory: GuestMemory, bit: int
) -> None:
    addresses = (0x20_0000, 0x20_0000, 0, 0, 0x20_0020)
    assert broken_rule(mb.header(mb.ADDRESSES | 1 << bit, *addresses) + CODE, memory) == (
        "multiboot-flags"
    )


def test_header_before_the_file_is_refused(memory: GuestMemory) -> None:
    data = mb.image(CODE, header_addr=0x20_0000 + 4)
    assert broken_rule(data, memory) == "multiboot-load-addr"


def test_kernel_without_a_header_says_so(memory: GuestMemory) -> None:
    kernel = load(Elf([Segment(0x10_0000, CODE)], entry=0x10_0000).build(), memory)
    with pytest.raises(KernelImageError, match="no Multiboot header in its first 8 KiB"):
        boot.choose(Protocol.MULTIBOOT, kernel)


# What the kernel is told.


def handover(*modules: Module, memory_bytes: int = 5 * GiB) -> Handover:
    kernel: Any = SimpleNamespace()
    with GuestMemory.create(memory_bytes, huge_pages=HugePages.NEVER) as memory:
        cmdline = Placement("command line", layout.CMDLINE_GPA, 10)
        return Handover(kernel, memory_map(memory), cmdline, modules=modules)


def information(handover: Handover) -> bytes:
    plan = multiboot.plan(handover, 0x10_0040)
    (data,) = (blob.data for blob in plan.blobs if blob.gpa == layout.START_INFO_GPA)
    return data


def u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def string(data: bytes, gpa: int) -> bytes:
    start = gpa - layout.START_INFO_GPA
    return data[start : data.index(b"\0", start)]


def test_registers_are_the_specifications() -> None:
    entry = multiboot.plan(handover(), 0x10_0040).entry
    assert (entry.rip, entry.rax, entry.rbx) == (0x10_0040, 0x2BADB002, layout.START_INFO_GPA)
    assert entry.cr0 & 1  # PE
    assert not entry.cr0 >> 31  # PG
    assert entry.efer == 0


def test_information_tells_memory_and_command_line() -> None:
    data = information(handover())
    assert u32(data, 0) == 0b10_0100_0101  # memory, cmdline, mmap, boot_loader_name
    assert u32(data, 4) == 639  # KiB below the EBDA
    assert u32(data, 8) == (3 * GiB - MiB) // 1024
    assert u32(data, 16) == layout.CMDLINE_GPA
    assert string(data, u32(data, 64)) == b"pyvmm"


def test_information_is_as_long_as_the_header_file_has_it() -> None:
    # sizeof (multiboot_info_t) of 0.6.96's multiboot.h, its framebuffer fields included
    assert u32(information(handover()), 48) - layout.START_INFO_GPA == 120


def test_real_mode_vectors_lead_to_the_stub() -> None:
    blobs = {blob.name: blob for blob in multiboot.plan(handover(), 0x10_0040).blobs}
    vectors, stub = blobs["real-mode vectors"], blobs["BIOS stub"]
    assert vectors.gpa == 0
    assert set(struct.iter_unpack("<HH", vectors.data)) == {(stub.gpa, 0)}
    assert len(vectors.data) == 256 * 4
    assert stub.data == assemble("push %bp; mov %sp, %bp; orb $1, 6(%bp); pop %bp; iret", 16)


def test_memory_map_has_every_range() -> None:
    data = information(handover())
    length, start = u32(data, 44), u32(data, 48) - layout.START_INFO_GPA
    entries = list(struct.iter_unpack("<IQQI", data[start : start + length]))
    assert entries == [
        (20, 0, 639 * 1024, 1),
        (20, 639 * 1024, 385 * 1024, 2),
        (20, MiB, 3 * GiB - MiB, 1),
        (20, 4 * GiB, 2 * GiB, 1),
    ]


def test_modules_have_their_places_and_strings() -> None:
    first = Module(Placement("initrd", 0x50_0000, 0x123), b"initrd")
    second = Module(Placement("module", 0x40_0000, 0x1000), b"dom0", b"console=hvc0 quiet")
    data = information(handover(first, second))
    assert u32(data, 0) & 8
    count, start = u32(data, 20), u32(data, 24) - layout.START_INFO_GPA
    entries = list(struct.iter_unpack("<IIII", data[start : start + count * 16]))
    assert [entry[:2] for entry in entries] == [(0x50_0000, 0x50_0123), (0x40_0000, 0x40_1000)]
    assert [string(data, entry[2]) for entry in entries] == [b"initrd", b"dom0 console=hvc0 quiet"]


def test_information_that_does_not_fit_is_refused() -> None:
    room = layout.START_INFO_MAX_BYTES - len(information(handover(_module(0)))) + 1
    assert len(information(handover(_module(room - 1)))) == layout.START_INFO_MAX_BYTES
    with pytest.raises(KernelImageError) as caught:
        information(handover(_module(room)))
    assert caught.value.rule == "multiboot-info-size"


def _module(cmdline_bytes: int) -> Module:
    return Module(Placement("module", 0x40_0000, 1), b"", b"x" * cmdline_bytes)
