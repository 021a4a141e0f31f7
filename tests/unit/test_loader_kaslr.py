"""KASLR by the VMM: what a moved kernel looks like, against the linker and Linux's own rules.

Rules: Linux 6.12, arch/x86/boot/compressed/misc.c and kaslr.c.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import bzimage as bz
from builders.elf import Elf, Segment
from builders.elf_oracle import open_elf
from builders.kaslr import (
    BSS_BYTES,
    END_GPA,
    LINK_GPA,
    START_KERNEL_MAP,
    link,
    linkers_table,
    relocatable_vmlinux,
    relocation_table,
)
from builders.stock_kernels import SERIES, debian_vmlinuz

from pyvmm.errors import KernelImageError
from pyvmm.loader.image import ImageFormat, KernelImage
from pyvmm.loader.initrd import place_initrd
from pyvmm.loader.kaslr import Kaslr, Move
from pyvmm.loader.load import LoadedKernel, extract_vmlinux, load_kernel
from pyvmm.memory import GuestMemory
from pyvmm.units import GiB, MiB

OFFSET = 0x1260_0000
TEXT = START_KERNEL_MAP + LINK_GPA
BASES = Kaslr(6 * MiB, TEXT + OFFSET)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.create(16 * MiB) as memory:
        yield memory


def load(
    memory: GuestMemory, image: bytes, wanted: Kaslr = BASES, initrd_bytes: int = 0
) -> LoadedKernel:
    return load_kernel(
        KernelImage.from_bytes(image, "image"), memory, kaslr=wanted, initrd_bytes=initrd_bytes
    )


def refusal(
    memory: GuestMemory, image: bytes, wanted: Kaslr = BASES, initrd_bytes: int = 0
) -> tuple[str, str]:
    """The rule that is broken, and what is said."""
    with pytest.raises(KernelImageError) as caught:
        load(memory, image, wanted, initrd_bytes)
    message = str(caught.value)
    assert message.startswith("image: ")
    assert "\n" not in message
    return caught.value.rule, message


# What is moved


def test_kernel_lies_at_the_physical_base(memory: GuestMemory) -> None:
    image = relocatable_vmlinux(relocation_table(add32=[TEXT]), b"text")
    memory.view(6 * MiB, MiB)[:] = b"\xaa" * MiB
    kernel = load(memory, image)
    assert [(p.base_gpa, p.size_bytes) for p in kernel.placements] == [
        (6 * MiB, 0x1000),
        (6 * MiB + 0x2000, 0x100 + BSS_BYTES),
    ]
    assert (kernel.start_gpa, kernel.end_gpa) == (6 * MiB, 6 * MiB + END_GPA - LINK_GPA)
    assert kernel.linux64_entry_gpa == 6 * MiB + 0x10
    assert kernel.move == Move(6 * MiB, TEXT + OFFSET, OFFSET)
    assert memory.read(6 * MiB + 4, 0xFFC) == b"\xf4" * 0xFFC
    assert memory.read(6 * MiB + 0x2000, 0x100) == b"d" * 0x100
    assert memory.read(6 * MiB + 0x2100, BSS_BYTES) == bytes(BSS_BYTES)
    assert memory.read(LINK_GPA, 0x1000) == bytes(0x1000)


def test_moved_kernel_has_no_pvh_entry() -> None:
    with KernelImage.open(debian_vmlinuz("6.1")) as image, GuestMemory.create(128 * MiB) as memory:
        assert load_kernel(image, memory).pvh_entry_gpa is not None
        kernel = load_kernel(image, memory, kaslr=Kaslr())
        assert (kernel.pvh_entry_gpa, kernel.pvh_problem) == (None, None)


def test_kernel_of_a_bzimage_is_moved_alike(memory: GuestMemory) -> None:
    vmlinux = relocatable_vmlinux(relocation_table(add32=[TEXT + 8]), bytes(16))
    plain = load(memory, vmlinux)
    with GuestMemory.create(16 * MiB) as other:
        packed = load(other, bz.bzimage(bz.compress("gzip", vmlinux)))
        assert other.read(0, 16 * MiB) == memory.read(0, 16 * MiB)
    assert packed.setup_header is not None
    assert packed == plain._replace(format=ImageFormat.BZIMAGE, setup_header=packed.setup_header)


@pytest.mark.parametrize(
    ("lists", "before", "after"),
    [
        # The kernel's own arithmetic: 32-bit numbers wrap, the others have their whole width.
        ({"add32": [TEXT + 3]}, 0x8020_0123, 0x8020_0123 + OFFSET),
        ({"add32": [TEXT + 3]}, 0xFFFF_FFFF, OFFSET - 1),
        ({"subtract32": [TEXT + 3]}, 0x7FDF_E000, 0x7FDF_E000 - OFFSET),
        ({"subtract32": [TEXT + 3]}, 0, (1 << 32) - OFFSET),
        ({"add64": [TEXT + 3]}, 0xFFFF_FFFF_8020_0123, 0xFFFF_FFFF_8020_0123 + OFFSET),
        ({"add64": [TEXT + 3]}, (1 << 64) - 1, OFFSET - 1),
        ({"add64": [TEXT + 3], "subtract32": None}, 7, 7 + OFFSET),
        ({"add32": [TEXT + 3], "subtract32": None}, 7, 7 + OFFSET),
        ({"add32": [TEXT + 3, TEXT + 3]}, 7, 7 + 2 * OFFSET),
        ({"add32": [TEXT + 3], "subtract32": [TEXT + 3]}, 7, 7),
    ],
)
def test_number_is_moved_by_its_list(
    memory: GuestMemory, lists: dict[str, list[int]], before: int, after: int
) -> None:
    width = 8 if "add64" in lists else 4
    around = b"\x11" * 3, b"\x22" * 9
    text = around[0] + before.to_bytes(width, "little") + around[1]
    load(memory, relocatable_vmlinux(relocation_table(**lists), text))
    moved = around[0] + after.to_bytes(width, "little") + around[1]
    assert memory.read(6 * MiB, len(moved)) == moved


def test_number_in_the_per_cpu_data_is_found_by_its_physical_address(memory: GuestMemory) -> None:
    # That segment is linked to 0; its relocations are for where it lies, behind the others.
    table = relocation_table(add64=[TEXT + 0x2008])
    load(memory, relocatable_vmlinux(table))
    moved = int.from_bytes(b"d" * 8, "little") + OFFSET
    assert memory.read_u64(6 * MiB + 0x2008) == moved
    assert memory.read(6 * MiB + 0x2000, 8) + memory.read(6 * MiB + 0x2010, 8) == b"d" * 16


def test_kernel_that_keeps_its_virtual_base_is_unchanged(memory: GuestMemory) -> None:
    image = relocatable_vmlinux(relocation_table(add32=[TEXT], add64=[TEXT + 8]), b"text" * 4)
    kernel = load(memory, image, Kaslr(4 * MiB, TEXT))
    assert kernel.move == Move(4 * MiB, TEXT, 0)
    assert memory.read(4 * MiB, 16) == b"text" * 4


def test_moved_kernel_is_what_the_linker_makes_of_it(memory: GuestMemory, tmp_path: Path) -> None:
    here, there = link(tmp_path), link(tmp_path, OFFSET)
    table = linkers_table(here)
    assert struct.unpack(f"<{len(table) // 4}I", table).count(0) == 3
    kernel = load(memory, here + table)
    expected = load_kernel(KernelImage.from_bytes(there), other := GuestMemory.create(16 * MiB))
    with other:
        size_bytes = expected.end_gpa - expected.start_gpa
        assert memory.read(6 * MiB, size_bytes) == other.read(LINK_GPA, size_bytes)
        assert memory.read(6 * MiB, size_bytes) != load_and_read(here, size_bytes)
    assert kernel.end_gpa == 6 * MiB + size_bytes


def load_and_read(vmlinux: bytes, size_bytes: int) -> bytes:
    with GuestMemory.create(16 * MiB) as memory:
        load_kernel(KernelImage.from_bytes(vmlinux), memory)
        return memory.read(LINK_GPA, size_bytes)


# Debian's kernels


def reference(vmlinux: bytes, virtual_offset: int) -> tuple[bytes, int]:
    """The kernel from its lowest to its highest byte, moved slowly; and how many numbers were.

    misc.c, handle_relocations: from the end backwards, a list up to each zero.
    """
    segments = list(open_elf(vmlinux).iter_segments("PT_LOAD"))
    base = segments[0]["p_paddr"]
    image = bytearray(segments[-1]["p_paddr"] + segments[-1]["p_memsz"] - base)
    for segment in segments:
        start = segment["p_paddr"] - base
        image[start : start + segment["p_filesz"]] = segment.data()
    position, count = len(vmlinux) - 4, 0
    for width, delta in ((4, virtual_offset), (4, -virtual_offset), (8, virtual_offset)):
        while word := int.from_bytes(vmlinux[position : position + 4], "little"):
            start = word - 0x8000_0000 - base
            number = int.from_bytes(image[start : start + width], "little") + delta
            image[start : start + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
            position -= 4
            count += 1
        position -= 4
    return bytes(image), count


@pytest.mark.parametrize("series", SERIES)
def test_stock_kernel_is_moved_as_the_kernel_would_move_itself(series: str) -> None:
    with KernelImage.open(debian_vmlinuz(series)) as image, GuestMemory.create(256 * MiB) as memory:
        vmlinux = bytes(extract_vmlinux(image))
        text = START_KERNEL_MAP + 16 * MiB  # CONFIG_PHYSICAL_START is 0x1000000
        kernel = load_kernel(image, memory, kaslr=Kaslr(96 * MiB, text + OFFSET))
        expected, count = reference(vmlinux, OFFSET)
        assert memory.view(96 * MiB, len(expected)) == expected
        assert kernel.end_gpa == 96 * MiB + len(expected)
        assert kernel.move == Move(96 * MiB, text + OFFSET, OFFSET)
        entry = open_elf(vmlinux).header["e_entry"]
        assert kernel.linux64_entry_gpa == entry + 80 * MiB
    assert count > 200_000


# Where it goes


def test_bases_are_random_aligned_and_within_bounds(memory: GuestMemory) -> None:
    image = relocatable_vmlinux(relocation_table())
    moves = {load(memory, image, Kaslr()).move for _ in range(64)}
    assert None not in moves
    physical = {move.physical_base for move in moves if move}
    virtual = {move.virtual_base for move in moves if move}
    # 2, 4 .. 14 MiB; 510 places below START_KERNEL_MAP + 1 GiB: by chance the same one each time
    # once in 7 ** 63.
    assert physical <= set(range(2 * MiB, 16 * MiB, 2 * MiB))
    assert len(physical) > 1
    assert all(base % (2 * MiB) == 0 for base in virtual)
    assert all(TEXT <= base <= START_KERNEL_MAP + GiB - 2 * MiB for base in virtual)
    assert len(virtual) > 1


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, (2 * MiB, TEXT)),
        # 7 and 511 places: the last of each
        (7 * 511 - 1, (14 * MiB, START_KERNEL_MAP + GiB - 2 * MiB)),
    ],
)
def test_chance_reaches_from_the_first_place_to_the_last(
    memory: GuestMemory,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    expected: tuple[int, int],
) -> None:
    monkeypatch.setattr(os, "urandom", lambda count: number.to_bytes(count, "little"))
    move = load(memory, relocatable_vmlinux(relocation_table()), Kaslr()).move
    assert move is not None
    assert (move.physical_base, move.virtual_base) == expected


def test_one_base_may_be_given_alone(memory: GuestMemory) -> None:
    image = relocatable_vmlinux(relocation_table())
    kernel = load(memory, image, Kaslr(physical_base=8 * MiB))
    assert kernel.start_gpa == 8 * MiB
    kernel = load(memory, image, Kaslr(virtual_base=TEXT + 4 * MiB))
    assert kernel.move is not None
    assert kernel.move.virtual_offset == 4 * MiB


def test_kernel_stays_above_where_it_was_linked_to(memory: GuestMemory) -> None:
    image = relocatable_vmlinux(relocation_table(), link_gpa=8 * MiB)
    moves = {load(memory, image, Kaslr()).start_gpa for _ in range(64)}
    assert moves <= {8 * MiB, 10 * MiB, 12 * MiB, 14 * MiB}


def test_kernel_stays_below_the_32_bit_gap() -> None:
    image = relocatable_vmlinux(relocation_table())
    with GuestMemory.create(5 * GiB) as memory:
        last = 3 * GiB - 2 * MiB
        assert load(memory, image, Kaslr(last)).start_gpa == last
        rule, message = refusal(memory, image, Kaslr(last + 2 * MiB))
        assert rule == "kaslr-base"
        assert f"from 0x200000 to {last:#x}" in message


def test_alignment_of_the_setup_header_is_obeyed(memory: GuestMemory) -> None:
    payload = bz.compress("gzip", relocatable_vmlinux(relocation_table()))
    image = bz.bzimage(payload, kernel_alignment=4 * MiB)
    bases = {load(memory, image, Kaslr()).start_gpa for _ in range(64)}
    assert bases <= {4 * MiB, 8 * MiB, 12 * MiB}
    assert refusal(memory, image, Kaslr(6 * MiB))[0] == "kaslr-base"


def test_init_size_is_room_that_the_kernel_gets(memory: GuestMemory) -> None:
    payload = bz.compress("gzip", relocatable_vmlinux(relocation_table()))
    image = bz.bzimage(payload, init_size=10 * MiB)
    assert load(memory, image, Kaslr(6 * MiB)).start_gpa == 6 * MiB
    assert refusal(memory, image, Kaslr(8 * MiB))[0] == "kaslr-base"


def test_initrd_has_room_above_wherever_the_kernel_goes(memory: GuestMemory) -> None:
    image = relocatable_vmlinux(relocation_table())
    for _ in range(32):
        kernel = load(memory, image, Kaslr(), initrd_bytes=9 * MiB)
        assert kernel.start_gpa in (2 * MiB, 4 * MiB, 6 * MiB)
        initrd = place_initrd(bytes(9 * MiB), memory, kernel)
        assert initrd is not None
        assert initrd.base_gpa == 7 * MiB
    rule, message = refusal(memory, image, Kaslr(), initrd_bytes=14 * MiB)
    assert rule == "kaslr-physical-room"
    assert "--mem" in message


def test_initrd_stays_below_the_address_that_the_kernel_allows(memory: GuestMemory) -> None:
    payload = bz.compress("gzip", relocatable_vmlinux(relocation_table()))
    image = bz.bzimage(payload, initrd_addr_max=8 * MiB - 1, init_size=0)
    assert load(memory, image, Kaslr(4 * MiB), initrd_bytes=MiB).start_gpa == 4 * MiB
    assert refusal(memory, image, Kaslr(8 * MiB), initrd_bytes=MiB)[0] == "kaslr-base"


# What cannot be moved

GOOD = relocation_table(add32=[TEXT])


@pytest.mark.parametrize(
    ("rule", "said", "table"),
    [
        ("kaslr-no-relocations", "boot it without --kaslr", b""),
        ("kaslr-table-size", "has 9 bytes behind its ELF file", GOOD[:9]),
        ("kaslr-table-lists", "two or three lists", struct.pack("<III", 1, 0, 1)),
        ("kaslr-table-lists", "two or three lists", struct.pack("<II", 0, TEXT & 0xFFFF_FFFF)),
        ("kaslr-table-lists", "two or three lists", bytes(4 * 4)),
        ("kaslr-table-lists", "two or three lists", bytes(4 * 100_000)),
        ("kaslr-table-lists", "two or three lists", b"\xff" * 4000),
    ],
)
def test_table_that_is_none_is_refused(
    memory: GuestMemory, rule: str, said: str, table: bytes
) -> None:
    found, message = refusal(memory, relocatable_vmlinux(table))
    assert found == rule
    assert said in message


def test_empty_lists_are_lists(memory: GuestMemory) -> None:
    for table in (bytes(8), bytes(12)):
        assert load(memory, relocatable_vmlinux(table)).start_gpa == 6 * MiB


KERNEL_BYTES = END_GPA - LINK_GPA


@pytest.mark.parametrize(
    ("kind", "width", "name"),
    [("add32", 4, "32-bit"), ("subtract32", 4, "inverse 32-bit"), ("add64", 8, "64-bit")],
)
def test_relocation_must_be_inside_the_kernel(
    memory: GuestMemory, kind: str, width: int, name: str
) -> None:
    for inside in (TEXT, TEXT + KERNEL_BYTES - width):
        load(memory, relocatable_vmlinux(relocation_table(**{kind: [inside]})))
    outside = [TEXT - 1, TEXT + KERNEL_BYTES - width + 1, 1, 0x7FFF_FFFF, 0xFFFF_FFFF]
    for address in outside:
        image = relocatable_vmlinux(relocation_table(**{kind: [TEXT, address, TEXT]}))
        memory.view(0, 16 * MiB)[:] = b"\xaa" * (16 * MiB)
        rule, message = refusal(memory, image)
        assert rule == "kaslr-relocation-bounds"
        assert f"has a {name} relocation for address {address & 0xFFFF_FFFF:#x};" in message
        assert memory.read(0, 6 * MiB) == b"\xaa" * (6 * MiB)
        rest = 6 * MiB + KERNEL_BYTES
        assert memory.read(rest, 16 * MiB - rest) == b"\xaa" * (16 * MiB - rest)


def test_kernel_smaller_than_a_number_has_no_room_for_it(memory: GuestMemory) -> None:
    segment = Segment(LINK_GPA, b"\xf4" * 7, vaddr=TEXT)
    image = Elf([segment], entry=LINK_GPA).build() + relocation_table(add64=[TEXT])
    assert refusal(memory, image)[0] == "kaslr-relocation-bounds"


@pytest.mark.parametrize("vaddr", [LINK_GPA, 0, TEXT + 1, (1 << 64) - 1])
def test_kernel_that_is_not_linked_as_linux_is_refused(memory: GuestMemory, vaddr: int) -> None:
    rule, message = refusal(memory, relocatable_vmlinux(GOOD, vaddr=vaddr))
    assert rule == "kaslr-link-address"
    assert f"is linked to virtual address {vaddr:#x}" in message


@pytest.mark.parametrize("alignment", [0, 3, 1 * MiB, 6 * MiB, 0xFFFF_FFFF])
def test_alignment_must_be_a_power_of_two_from_2_mib_on(
    memory: GuestMemory, alignment: int
) -> None:
    image = bz.bzimage(relocatable_vmlinux(GOOD), kernel_alignment=alignment)
    rule, message = refusal(memory, image)
    assert rule == "kaslr-kernel-alignment"
    assert f"kernel_alignment {alignment:#x}" in message


def test_kernel_needs_memory_to_be_moved_in() -> None:
    image = bz.bzimage(relocatable_vmlinux(GOOD), init_size=14 * MiB)
    with GuestMemory.create(16 * MiB) as memory:
        assert load(memory, image, Kaslr()).start_gpa == 2 * MiB
    with GuestMemory.create(16 * MiB - 4096) as memory:
        rule, message = refusal(memory, image, Kaslr())
    assert rule == "kaslr-physical-room"
    assert "needs 14680064 bytes above 0x200000, and below 0xfff000" in message


def test_kernel_needs_addresses_to_be_moved_in() -> None:
    image = bz.bzimage(relocatable_vmlinux(GOOD), init_size=GiB - 2 * MiB)
    too_large = bz.bzimage(relocatable_vmlinux(GOOD), init_size=GiB - 2 * MiB + 1)
    with GuestMemory.create(2 * GiB) as memory:
        kernel = load(memory, image, Kaslr())
        assert kernel.move is not None
        assert kernel.move.virtual_base == TEXT
        rule, message = refusal(memory, too_large, Kaslr())
    assert rule == "kaslr-virtual-room"
    assert "of the 1 GiB that the kernel is mapped in" in message


@pytest.mark.parametrize(
    ("wanted", "kind"),
    [
        (Kaslr(physical_base=2 * MiB + 4096), "physical"),
        (Kaslr(physical_base=0), "physical"),
        (Kaslr(physical_base=16 * MiB), "physical"),
        (Kaslr(virtual_base=TEXT + 4096), "virtual"),
        (Kaslr(virtual_base=START_KERNEL_MAP), "virtual"),
        (Kaslr(virtual_base=START_KERNEL_MAP + GiB), "virtual"),
        (Kaslr(virtual_base=-1), "virtual"),
    ],
)
def test_base_where_it_cannot_go_is_refused(memory: GuestMemory, wanted: Kaslr, kind: str) -> None:
    rule, message = refusal(memory, relocatable_vmlinux(GOOD), wanted)
    assert rule == "kaslr-base"
    assert f"cannot be moved to {kind} address" in message
    assert "expected a multiple of 0x200000 from" in message
