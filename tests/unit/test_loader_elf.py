"""vmlinux: where its segments go, where it is entered, and what is refused.

Layouts and constants are the gABI's; pyelftools and gcc are the oracles.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders.elf import PT_INTERP, Elf, Segment, note, notes_segment, pvh_note, vmlinux
from builders.elf_oracle import open_elf, pvh_entries

from pyvmm.errors import KernelImageError
from pyvmm.loader import elf
from pyvmm.loader.image import ImageFormat, KernelImage
from pyvmm.loader.load import Decompress, LoadedKernel, Placement, extract_vmlinux, load_kernel
from pyvmm.loader.pvh_note import PvhState
from pyvmm.memory import GuestMemory, HugePages
from pyvmm.units import GiB, MiB

CODE = bytes(range(256)) * 16


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.create(16 * MiB) as memory:
        yield memory


def load(memory: GuestMemory, image: Elf) -> LoadedKernel:
    return load_kernel(KernelImage.from_bytes(image.build(), "image"), memory)


def refusal(memory: GuestMemory, image: Elf | bytes) -> str:
    data = image if isinstance(image, bytes) else image.build()
    with pytest.raises(KernelImageError) as caught:
        load_kernel(KernelImage.from_bytes(data, "image"), memory)
    message = str(caught.value)
    assert message.startswith("image: ")
    assert "\n" not in message
    return message


def one_segment(**fields: int) -> Elf:
    return Elf([Segment(0x10_0000, CODE)], entry=0x10_0000, **fields)


def test_segments_go_to_their_physical_addresses(memory: GuestMemory) -> None:
    image = Elf(
        [
            Segment(0x20_0000, CODE, vaddr=0xFFFF_FFFF_8020_0000),
            Segment(0x30_0000, b"percpu", vaddr=0),
        ],
        entry=0x20_0000,
    )
    kernel = load(memory, image)
    assert memory.read(0x20_0000, len(CODE)) == CODE
    assert memory.read(0x30_0000, 6) == b"percpu"
    assert kernel.format is ImageFormat.ELF
    assert kernel.placements == (
        Placement("kernel r-x", 0x20_0000, len(CODE)),
        Placement("kernel r-x", 0x30_0000, 6),
    )
    assert (kernel.start_gpa, kernel.end_gpa) == (0x20_0000, 0x30_0006)
    assert kernel.setup_header is None
    assert kernel.linux32_entry_gpa is None


def test_segments_are_read_from_the_file(memory: GuestMemory, tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(vmlinux(CODE))
    with KernelImage.open(str(tmp_path / "vmlinux")) as image:
        load_kernel(image, memory)
    assert memory.read(0x20_0000, len(CODE)) == CODE
    assert memory.read(0x40_0000, 64) == b"data" * 16


def test_bss_is_zeroed(memory: GuestMemory) -> None:
    memory.write(0x10_0000, b"\xff" * 0x4000)
    kernel = load(memory, Elf([Segment(0x10_0000, b"code", memsz=0x3000)], entry=0x10_0000))
    assert memory.read(0x10_0000, 0x3000) == b"code" + bytes(0x3000 - 4)
    assert memory.read(0x10_3000, 4) == b"\xff" * 4
    assert kernel.end_gpa == 0x10_3000


def test_bss_counts_for_the_end_of_the_kernel(memory: GuestMemory) -> None:
    image = Elf([Segment(0x20_0000, b"x", memsz=0x9000), Segment(0x10_0000, b"y")], entry=0x10_0000)
    assert load(memory, image).end_gpa == 0x20_9000


def test_empty_segment_is_skipped(memory: GuestMemory) -> None:
    image = Elf([Segment(0x10_0000, CODE), Segment(0, b"", memsz=0)], entry=0x10_0000)
    assert len(load(memory, image).placements) == 1


def test_segments_may_share_bytes_of_the_file(memory: GuestMemory) -> None:
    image = Elf(
        [Segment(0x10_0000, CODE), Segment(0x20_0000, b"", offset=0, filesz=4, memsz=4)],
        entry=0x10_0000,
    )
    load(memory, image)
    assert memory.read(0x20_0000, 4) == b"\x7fELF"


def test_adjacent_segments_do_not_overlap(memory: GuestMemory) -> None:
    image = Elf(
        [Segment(0x10_1000, CODE), Segment(0x10_0000, bytes(0x1000))],
        entry=0x10_0000,
    )
    assert load(memory, image).start_gpa == 0x10_0000


def test_decompress_guest_changes_nothing_for_elf(memory: GuestMemory) -> None:
    image = KernelImage.from_bytes(vmlinux())
    guest = load_kernel(image, memory, decompress=Decompress.GUEST)
    assert guest == load_kernel(image, memory)


def test_et_dyn_is_loaded_where_it_is_linked(memory: GuestMemory) -> None:
    assert load(memory, one_segment(kind=3)).start_gpa == 0x10_0000


def test_segment_above_the_gap_is_loaded() -> None:
    image = Elf([Segment(0x10_0000, CODE), Segment(4 * GiB, CODE)], entry=0x10_0000)
    with GuestMemory.create(4 * GiB, huge_pages=HugePages.NEVER) as memory:
        load(memory, image)
        assert memory.read(4 * GiB, len(CODE)) == CODE


# Entry points


def test_entry_need_not_be_the_lowest_address(memory: GuestMemory) -> None:
    image = one_segment()
    image.entry = 0x10_0B53
    assert load(memory, image).linux64_entry_gpa == 0x10_0B53


def test_virtual_entry_is_translated(memory: GuestMemory) -> None:
    image = Elf(
        [Segment(0x10_0000, CODE, vaddr=0xFFFF_FFFF_8010_0000)], entry=0xFFFF_FFFF_8010_0123
    )
    assert load(memory, image).linux64_entry_gpa == 0x10_0123


def test_physical_entry_is_preferred_to_virtual(memory: GuestMemory) -> None:
    image = Elf(
        [
            Segment(0x20_0000, CODE, vaddr=0xFFFF_FFFF_8020_0000),
            Segment(0x30_0000, CODE, vaddr=0x20_0000),
        ],
        entry=0x20_0000,
    )
    assert load(memory, image).linux64_entry_gpa == 0x20_0000


@pytest.mark.parametrize("entry", [0x10_1000, 1 << 63])
def test_entry_outside_the_segments_is_refused(memory: GuestMemory, entry: int) -> None:
    image = one_segment()
    image.entry = entry
    assert f"entry point at {entry:#x}, in none of its segments" in refusal(memory, image)


def test_entry_above_4_gib_is_refused() -> None:
    with GuestMemory.create(4 * GiB, huge_pages=HugePages.NEVER) as memory:
        image = Elf([Segment(4 * GiB, CODE)], entry=4 * GiB)
        assert "expected one below 4 GiB" in refusal(memory, image)


# Segments that are refused


def test_overlapping_segments_are_refused(memory: GuestMemory) -> None:
    image = Elf([Segment(0x10_0000, CODE), Segment(0x10_0FFF, CODE)], entry=0x10_0000)
    assert "overlap in memory: 0x100000..0x101000 and 0x100fff..0x101fff" in refusal(memory, image)


def test_bss_that_overlaps_is_refused(memory: GuestMemory) -> None:
    image = Elf([Segment(0x20_0000, CODE), Segment(0x10_0000, b"x", memsz=0x10_0001)])
    assert "overlap in memory" in refusal(memory, image)


def test_more_bytes_in_file_than_in_memory_are_refused(memory: GuestMemory) -> None:
    image = Elf([Segment(0x10_0000, CODE, memsz=0xFFF)], entry=0x10_0000)
    assert "more bytes in the file, 0x1000, than in memory, 0xfff" in refusal(memory, image)


def test_segment_cut_off_is_refused(memory: GuestMemory) -> None:
    data = one_segment().build()
    assert f"is cut off after {len(data) - 1} bytes" in refusal(memory, data[:-1])


@pytest.mark.parametrize("offset", [1 << 40, (1 << 64) - 1])
def test_segment_beyond_the_file_is_refused(memory: GuestMemory, offset: int) -> None:
    image = Elf([Segment(0x10_0000, CODE, offset=offset)], entry=0x10_0000)
    assert "is cut off" in refusal(memory, image)


@pytest.mark.parametrize("paddr", [0, 0x7000, 0xF_FFFF])
def test_segment_in_the_first_mib_is_refused(memory: GuestMemory, paddr: int) -> None:
    image = Elf([Segment(paddr, CODE)], entry=paddr)
    assert f"segment at physical address {paddr:#x}; below 0x100000" in refusal(memory, image)


def test_segment_above_ram_is_refused(memory: GuestMemory) -> None:
    image = Elf([Segment(16 * MiB - 0xFFF, CODE)], entry=16 * MiB - 0xFFF)
    message = refusal(memory, image)
    assert "0xfff001..0x1000001, which is not RAM; RAM is 0x0..0x1000000" in message
    assert "more than 17 MiB with --mem" in message


def test_segment_in_the_gap_is_refused() -> None:
    with GuestMemory.create(4 * GiB, huge_pages=HugePages.NEVER) as memory:
        image = Elf([Segment(0xFEE0_0000, CODE)], entry=0xFEE0_0000)
        assert "0xc0000000..0x100000000 holds devices" in refusal(memory, image)


def test_segment_across_the_end_of_the_address_space_is_refused(memory: GuestMemory) -> None:
    image = Elf([Segment((1 << 64) - 0x1000, CODE, memsz=0x2000)], entry=(1 << 64) - 0x1000)
    assert "reaches beyond the highest address" in refusal(memory, image)


def test_segment_above_4_gib_without_ram_there_is_refused(memory: GuestMemory) -> None:
    image = Elf([Segment(0x10_0000, CODE), Segment(5 * GiB, CODE)], entry=0x10_0000)
    assert "link it lower, or give the guest more with --mem" in refusal(memory, image)


def test_huge_bss_is_refused_without_touching_memory(memory: GuestMemory) -> None:
    image = Elf([Segment(0x10_0000, CODE, memsz=1 << 63)], entry=0x10_0000)
    assert "which is not RAM" in refusal(memory, image)
    assert memory.read(0x10_0000, len(CODE)) == bytes(len(CODE))


def test_no_segment_is_refused(memory: GuestMemory) -> None:
    assert "without a loadable segment" in refusal(memory, Elf([notes_segment(pvh_note(0))]))


def test_no_program_headers_are_refused(memory: GuestMemory) -> None:
    assert "without program headers" in refusal(memory, Elf())


# Headers that are refused


def test_truncated_header_is_refused(memory: GuestMemory) -> None:
    assert "cut off after 63 bytes" in refusal(memory, one_segment().build()[:63])


def test_truncated_program_headers_are_refused(memory: GuestMemory) -> None:
    message = refusal(memory, one_segment().build()[:119])
    assert "cut off after 119 bytes; its program headers end at 120" in message


def test_program_headers_beyond_the_file_are_refused(memory: GuestMemory) -> None:
    assert "program headers end at" in refusal(memory, one_segment(phoff=(1 << 64) - 1))


def test_phentsize_is_checked(memory: GuestMemory) -> None:
    assert "e_phentsize is 32; expected 56" in refusal(memory, one_segment(phentsize=32))


@pytest.mark.parametrize("phnum", [257, 0xFFFF])
def test_absurd_number_of_program_headers_is_refused(memory: GuestMemory, phnum: int) -> None:
    assert f"with {phnum} program headers" in refusal(memory, one_segment(phnum=phnum))


@pytest.mark.parametrize(
    ("fields", "explanation"),
    [
        ({"elf_class": 1}, "is a 32-bit ELF file for x86-64"),
        ({"elf_class": 1, "machine": 40}, "is an ELF file for ARM;"),
        ({"elf_class": 0}, "EI_CLASS 0"),
        ({"elf_data": 3}, "EI_DATA 3"),
        ({"machine": 183}, "is an ELF file for ARM64;"),
        ({"machine": 243}, "is an ELF file for RISC-V;"),
        ({"machine": 0x1234}, "is an ELF file for machine 4660;"),
        ({"machine": 22 << 8, "elf_data": 2}, "is an ELF file for S/390;"),
        ({"machine": 62 << 8, "elf_data": 2}, "is a big-endian ELF file"),
        ({"kind": 1}, "object file or kernel module"),
        ({"kind": 4}, "core dump"),
        ({"kind": 0}, "ELF file of type 0"),
    ],
)
def test_other_elf_files_are_explained(
    memory: GuestMemory, fields: dict[str, int], explanation: str
) -> None:
    assert explanation in refusal(memory, one_segment(**fields))


def test_user_program_is_explained(memory: GuestMemory) -> None:
    image = one_segment()
    image.segments.append(Segment(0, b"/lib64/ld-linux-x86-64.so.2\x00", kind=PT_INTERP))
    assert "user program" in refusal(memory, image)


# The PVH note


def with_notes(*notes: bytes, align: int = 4) -> Elf:
    return Elf(
        [Segment(0x10_0000, CODE), *(notes_segment(data, align=align) for data in notes)],
        entry=0x10_0000,
    )


@pytest.mark.parametrize("size", [4, 8])
def test_pvh_entry_of_either_size(memory: GuestMemory, size: int) -> None:
    kernel = load(memory, with_notes(pvh_note(0x10_0850, size=size)))
    assert (kernel.pvh_entry_gpa, kernel.pvh_problem) == (0x10_0850, None)


def test_pvh_entry_absent(memory: GuestMemory) -> None:
    for image in (one_segment(), with_notes(note(b"GNU\x00", 3, b"build id")), with_notes(b"")):
        kernel = load(memory, image)
        assert (kernel.pvh_entry_gpa, kernel.pvh_problem) == (None, None)


def test_pvh_note_needs_the_name_xen(memory: GuestMemory) -> None:
    kernel = load(memory, with_notes(note(b"GNU\x00", 18, bytes(8))))
    assert (kernel.pvh_entry_gpa, kernel.pvh_problem) == (None, None)


def test_pvh_note_behind_unpadded_notes(memory: GuestMemory) -> None:
    before = note(b"Linux\x00", 1, b"6.1.0\x00") + note(b"", 7, b"") + note(b"Xen\x00", 6, b"linux")
    assert load(memory, with_notes(before + pvh_note(0x10_0000))).pvh_entry_gpa == 0x10_0000


def test_pvh_note_in_a_segment_aligned_to_8_is_packed_by_4(memory: GuestMemory) -> None:
    notes = note(b"Xen\x00", 9, b"yes\x00") + pvh_note(0x10_0000, size=4)
    assert load(memory, with_notes(notes, align=8)).pvh_entry_gpa == 0x10_0000


@pytest.mark.parametrize("size_bytes", [1, 4, 11])
def test_padding_behind_the_notes_is_ignored(memory: GuestMemory, size_bytes: int) -> None:
    kernel = load(memory, with_notes(note(b"GNU\x00", 3, b"id") + bytes(size_bytes)))
    assert (kernel.pvh_entry_gpa, kernel.pvh_problem) == (None, None)


def test_pvh_note_in_a_later_segment(memory: GuestMemory) -> None:
    image = with_notes(note(b"GNU\x00", 3, bytes(20)), pvh_note(0x10_0010))
    assert load(memory, image).pvh_entry_gpa == 0x10_0010


def test_good_pvh_note_outweighs_a_malformed_one(memory: GuestMemory) -> None:
    kernel = load(memory, with_notes(pvh_note(0, size=2), pvh_note(0x10_0010)))
    assert (kernel.pvh_entry_gpa, kernel.pvh_problem) == (0x10_0010, None)


@pytest.mark.parametrize(
    ("notes", "problem"),
    [
        (pvh_note(0, size=2), "it has 2 bytes; expected 4 or 8"),
        (pvh_note(0, size=16), "it has 16 bytes; expected 4 or 8"),
        (pvh_note(0x10_1000), "its entry 0x101000 is in none of the segments"),
        (note(b"Xen\x00", 18, bytes(8))[:-1], "reaches beyond their end"),
        (note(b"Xen\x00", 18, bytes(8), namesz=0xFFFF_FFFF), "namesz 4294967295"),
        (bytes(64 * 1024) + pvh_note(0x10_0000), "expected at most 64 KiB"),
    ],
)
def test_malformed_pvh_note_leaves_the_other_entry(
    memory: GuestMemory, notes: bytes, problem: str
) -> None:
    kernel = load(memory, with_notes(notes))
    assert kernel.pvh_entry_gpa is None
    assert kernel.pvh_problem is not None
    assert problem in kernel.pvh_problem
    assert kernel.linux64_entry_gpa == 0x10_0000


def test_pvh_notes_beyond_the_file(memory: GuestMemory) -> None:
    image = with_notes(pvh_note(0x10_0000))
    image.segments[1].offset = 1 << 40
    assert load(memory, image).pvh_problem == "the notes reach beyond the end of the file"


def test_pvh_entry_above_4_gib() -> None:
    image = Elf(
        [Segment(0x10_0000, CODE), Segment(4 * GiB, CODE), notes_segment(pvh_note(4 * GiB))],
        entry=0x10_0000,
    )
    with GuestMemory.create(4 * GiB, huge_pages=HugePages.NEVER) as memory:
        assert "is not a 32-bit address" in str(load(memory, image).pvh_problem)


# Files


def test_extract_vmlinux_of_an_elf_is_the_image_itself() -> None:
    image = KernelImage.from_bytes(vmlinux())
    assert extract_vmlinux(image) is image.data


def test_file_that_shrinks_while_it_is_loaded(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(vmlinux())
    with KernelImage.open(str(path)) as opened:
        # The bytes come from a copy: the mapped file's own would end the process (SIGBUS).
        image = KernelImage(opened.name, memoryview(vmlinux()), opened.fd)
        os.truncate(path, 0x100)
        with pytest.raises(KernelImageError, match=r"vmlinux: the file ended .* changed"):
            load_kernel(image, memory)


# Oracles

LINKER_SCRIPT = """
ENTRY(start_phys)
PHDRS { text PT_LOAD FLAGS(5); data PT_LOAD FLAGS(6); note PT_NOTE FLAGS(4); }
SECTIONS {
  . = 0xffffffff80200000;
  start_phys = start - 0xffffffff80000000;
  .text : AT(ADDR(.text) - 0xffffffff80000000) { *(.text) } :text
  .notes : AT(ADDR(.notes) - 0xffffffff80000000) { *(.note.Xen) } :text :note
  . = ALIGN(0x1000);
  .data : AT(ADDR(.data) - 0xffffffff80000000) { *(.data) } :data
  .bss : AT(ADDR(.bss) - 0xffffffff80000000) { *(.bss) } :data
  /DISCARD/ : { *(.note.gnu*) }
}
"""
ASSEMBLY = """
  .text
  nop; nop; nop
  .globl start, pvh_start
start: hlt
pvh_start: jmp start
  .data
  .ascii "initialized"
  .bss
  .skip 0x12345
  .section .note.Xen, "a", @note
  .long 4, 8, 18
  .asciz "Xen"
  .quad pvh_start - 0xffffffff80000000
"""


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A kernel with Linux's shape, made by gcc and ld."""
    directory = tmp_path_factory.mktemp("linked")
    (directory / "kernel.lds").write_text(LINKER_SCRIPT)
    (directory / "kernel.S").write_text(ASSEMBLY)
    command = "gcc -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-T,kernel.lds -o kernel"
    subprocess.run([*command.split(), "kernel.S"], cwd=directory, check=True)
    return (directory / "kernel").read_bytes()


def assert_agrees_with_pyelftools(data: bytes) -> None:
    oracle = open_elf(data)
    kernel = elf.parse(memoryview(data))
    expected = [
        {key: segment[key] for key in segment.header if key != "p_type"}
        for segment in oracle.iter_segments("PT_LOAD")
    ]
    actual = [segment._asdict() for segment in kernel.segments]
    for fields in actual:
        del fields["p_type"]
    assert actual == sorted(expected, key=lambda fields: fields["p_paddr"])
    header = elf.read_header(memoryview(data))
    for key in ("e_entry", "e_phoff", "e_shoff", "e_phnum", "e_shnum", "e_shstrndx", "e_flags"):
        assert getattr(header, key) == oracle.header[key]
    assert [kernel.pvh.entry_gpa] == pvh_entries(oracle)


def test_parse_agrees_with_pyelftools_on_a_linked_kernel(linked: bytes) -> None:
    assert_agrees_with_pyelftools(linked)


def test_parse_agrees_with_pyelftools_on_a_built_one() -> None:
    assert_agrees_with_pyelftools(vmlinux())


def test_linked_kernel_is_placed_as_its_symbols_say(memory: GuestMemory, linked: bytes) -> None:
    memory.write(0x10_0000, b"\xff" * MiB * 8)
    kernel = load_kernel(KernelImage.from_bytes(linked), memory)
    table = open_elf(linked).get_section_by_name(".symtab")
    symbols = {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}
    assert kernel.linux64_entry_gpa == symbols["start"] - 0xFFFF_FFFF_8000_0000
    assert kernel.pvh_entry_gpa == symbols["pvh_start"] - 0xFFFF_FFFF_8000_0000
    assert memory.read_u8(symbols["start"] - 0xFFFF_FFFF_8000_0000) == 0xF4  # hlt
    data = kernel.placements[1]
    assert memory.read(data.base_gpa, 11) == b"initialized"
    assert not any(memory.read(data.end_gpa - 0x12345, 0x12345))
    assert memory.read_u8(data.end_gpa) == 0xFF


# Each fault by its rule: one image, or one call, that breaks nothing else.

FAULTS = {
    "elf-class": one_segment(elf_class=3),
    "elf-data": one_segment(elf_data=0),
    "elf-machine": one_segment(machine=183),
    "elf-class-machine": one_segment(machine=3),
    "elf-big-endian": one_segment(elf_data=2, machine=62 << 8),
    "elf-type": one_segment(kind=1),
    "elf-phnum-none": one_segment(phnum=0),
    "elf-phnum-many": one_segment(phnum=257),
    "elf-phentsize": one_segment(phentsize=32),
    "elf-phoff": one_segment(phoff=63),
    "elf-phdrs-truncated": one_segment(phoff=0x10_0000),
    "elf-interpreter": Elf(
        [Segment(0x10_0000, CODE), Segment(0, b"ld.so\0", kind=PT_INTERP)], entry=0x10_0000
    ),
    "elf-filesz": Elf([Segment(0x10_0000, CODE, memsz=8)], entry=0x10_0000),
    "elf-address-overflow": Elf([Segment(2**64 - 0x1000, CODE, memsz=0x1001)], entry=2**64 - 1),
    "elf-segment-truncated": Elf([Segment(0x10_0000, CODE, filesz=2**20, memsz=2**20)]),
    "elf-segment-low": Elf([Segment(0xF_F000, CODE)], entry=0xF_F000),
    "elf-segment-overlap": Elf([Segment(0x10_0000, CODE), Segment(0x10_0FFF, CODE)]),
    "elf-no-segment": Elf([notes_segment(pvh_note(0x10_0000))]),
    "elf-entry-outside": Elf([Segment(0x10_0000, CODE)], entry=0x10_1000),
    "elf-entry-low": Elf([Segment(0x10_0000, CODE)], entry=0xF_FFFF),
    "elf-entry-high": Elf([Segment(2**32, CODE)], entry=2**32),
    "elf-segment-ram": Elf([Segment(0x10_0000, CODE, memsz=16 * MiB)], entry=0x10_0000),
}


@pytest.mark.parametrize("rule", FAULTS)
def test_each_fault_has_its_rule(memory: GuestMemory, rule: str) -> None:
    with pytest.raises(KernelImageError) as caught:
        load_kernel(KernelImage.from_bytes(FAULTS[rule].build()), memory)
    assert caught.value.rule == rule


@pytest.mark.parametrize(("bits", "size"), [(64, 63), (32, 51)])
def test_cut_off_header_has_its_rule(memory: GuestMemory, bits: int, size: int) -> None:
    data = Elf([Segment(0x10_0000, CODE)], entry=0x10_0000, bits=bits).build()[:size]
    with pytest.raises(KernelImageError) as caught:
        load_kernel(KernelImage.from_bytes(data), memory)
    assert caught.value.rule == "elf-header-size"


def test_wrong_magic_has_its_rule() -> None:
    with pytest.raises(KernelImageError) as caught:
        elf.parse(memoryview(b"\x7fELG" + bytes(100)))
    assert caught.value.rule == "elf-magic"


def test_callers_minimum_is_obeyed() -> None:
    data = memoryview(one_segment().build())
    assert elf.parse(data, lowest_gpa=0x10_0000).entry_gpa == 0x10_0000
    with pytest.raises(KernelImageError) as caught:
        elf.parse(data, lowest_gpa=0x10_0001)
    assert caught.value.rule == "elf-segment-low"


def test_file_that_shrinks_while_it_is_read_has_its_rule(
    memory: GuestMemory, tmp_path: Path
) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(Elf([Segment(0x10_0000, bytes(3 * MiB))], entry=0x10_0000).build())
    with KernelImage.open(str(path)) as image:
        os.truncate(path, 2 * MiB)
        with pytest.raises(KernelImageError) as caught:
            load_kernel(image, memory)
    assert caught.value.rule == "file-read"


def test_elf32_is_loaded_and_has_no_64_bit_entry(memory: GuestMemory) -> None:
    kernel = load(memory, Elf([Segment(0x10_0000, CODE, flags=6)], entry=0x10_0000, bits=32))
    assert memory.read(0x10_0000, len(CODE)) == CODE
    assert kernel.placements == (Placement("kernel rw-", 0x10_0000, len(CODE)),)
    assert kernel.linux64_entry_gpa is None


def test_elf32_has_a_pvh_entry(memory: GuestMemory) -> None:
    notes = notes_segment(pvh_note(0x10_0010, size=4))
    kernel = load(memory, Elf([Segment(0x10_0000, CODE), notes], entry=0x10_0000, bits=32))
    assert kernel.pvh_entry_gpa == 0x10_0010


def test_elf32_address_space_ends_at_4_gib() -> None:
    segment = Segment(2**32 - 0x1000, CODE[:8], memsz=0x1001)
    with pytest.raises(KernelImageError) as caught:
        elf.parse(memoryview(Elf([segment], entry=2**32 - 1, bits=32).build()))
    assert caught.value.rule == "elf-address-overflow"


def test_relocated_kernel_lies_higher_and_is_entered_there(memory: GuestMemory) -> None:
    image = KernelImage.from_bytes(
        Elf(
            [Segment(0x10_0000, CODE), Segment(0x20_0000, b"data", memsz=8)], entry=0x10_0010
        ).build()
    )
    memory.write(0x10_0000, b"\xff" * 4 * MiB)
    kernel = load_kernel(image, memory, relocate_by=MiB)
    assert memory.read(0x20_0000, len(CODE)) == CODE
    assert memory.read(0x30_0000, 9) == b"data\0\0\0\0\xff"
    assert memory.read(0x10_0000, 16) == b"\xff" * 16
    assert kernel.linux64_entry_gpa == 0x20_0010
    assert (kernel.start_gpa, kernel.end_gpa) == (0x20_0000, 0x30_0008)


# XEN_ELFNOTE_PHYS32_RELOC, 19: alignment, lowest and highest address (Xen, public/elfnote.h).


def relocatable(*values: int) -> Elf:
    desc = b"".join(value.to_bytes(4, "little") for value in values)
    notes = pvh_note(0x20_0010) + note(b"Xen\0", 19, desc)
    segment = Segment(0x20_0000, CODE, align=0x20_0000)
    return Elf([segment, notes_segment(notes)], entry=0x20_0000)


def pvh_after_move(memory: GuestMemory, image: Elf, relocate_by: int) -> tuple[int | None, str]:
    data = KernelImage.from_bytes(image.build())
    kernel = load_kernel(data, memory, relocate_by=relocate_by)
    return kernel.pvh_entry_gpa, kernel.pvh_problem or ""


def test_moved_kernel_without_the_reloc_note_loses_its_pvh_entry(memory: GuestMemory) -> None:
    image = Elf([Segment(0x20_0000, CODE), notes_segment(pvh_note(0x20_0010))], entry=0x20_0000)
    assert pvh_after_move(memory, image, 0) == (0x20_0010, "")
    entry, problem = pvh_after_move(memory, image, 0x20_0000)
    assert entry is None
    assert "no PHYS32_RELOC note" in problem


@pytest.mark.parametrize(
    ("values", "moved_by", "problem"),
    [
        ((0x1000,), 0x1000, ""),
        ((0x1000,), 0x800, "alignment of 0x1000"),
        ((0x1000, 0x40_0000), 0x20_0000, ""),
        ((0x1000, 0x40_0000), 0x1F_F000, "a place in 0x400000..0xffffffff"),
        ((0x1000, 0, 0x40_0FFF), 0x20_0000, ""),
        ((0x1000, 0, 0x40_0FFE), 0x20_0000, "a place in 0x0..0x400ffe"),
        ((), 0x20_0000, ""),
        ((), 0x10_0000, "alignment of 0x200000"),
        ((0,), 0x20_0000, "no PHYS32_RELOC note"),
        ((3,), 0x30_0000, "no PHYS32_RELOC note"),
    ],
)
def test_reloc_note_says_where_a_moved_kernel_can_be_entered(
    memory: GuestMemory, values: tuple[int, ...], moved_by: int, problem: str
) -> None:
    entry, said = pvh_after_move(memory, relocatable(*values), moved_by)
    assert problem in said
    assert entry == (None if problem else 0x20_0010 + moved_by)


def test_pvh_states_are_told_apart() -> None:
    def state(*notes: bytes) -> PvhState:
        image = Elf(
            [Segment(0x10_0000, CODE), *(notes_segment(data) for data in notes)], entry=0x10_0000
        )
        return elf.parse(memoryview(image.build())).pvh.state

    assert state(pvh_note(0x10_0010)) is PvhState.PRESENT
    assert state(note(b"GNU\0", 18, bytes(4))) is PvhState.ABSENT
    assert state(note(b"Xen\0", 18, b"\x10\0")) is PvhState.MALFORMED
    parsed = elf.parse(memoryview(vmlinux()))
    assert parsed.pvh.moved(MiB, 0x30_0000, 0x50_3000).state is PvhState.IGNORED
