"""The report as a whole: the boot that it tells of, the map, and what is wrong with an image."""

from __future__ import annotations

import gzip

import pytest
from builders import bzimage as bz
from builders import multiboot as mb
from builders.elf import Elf, Segment, notes_segment, pvh_note, vmlinux
from builders.flat_image import arm64_image, zboot
from builders.kaslr import LINK_GPA, START_KERNEL_MAP, relocatable_vmlinux, relocation_table
from builders.pe import uki
from builders.stock_kernels import SERIES, debian_vmlinuz

from pyvmm.boot import Protocol
from pyvmm.config import MachineConfig
from pyvmm.explain.model import Report, Section, Span, SpanKind
from pyvmm.explain.report import explain
from pyvmm.loader.image import KernelImage
from pyvmm.loader.kaslr import Kaslr
from pyvmm.loader.load import Decompress
from pyvmm.loader.rules import RULES
from pyvmm.units import GiB, KiB, MiB

CONFIG = MachineConfig(kernel="kernel", cmdline="console=ttyS0", memory_bytes=16 * MiB)
ELF = vmlinux()
BZIMAGE = bz.bzimage(bz.compress("gzip", ELF))


def report_of(data: bytes, config: MachineConfig = CONFIG) -> Report:
    return explain(KernelImage.from_bytes(data, "image"), config)


def section(report: Report, key: str) -> Section:
    (found,) = [
        section for section in (*report.sections, *report.boot_sections) if section.key == key
    ]
    return found


def value(report: Report, key: str, name: str) -> object:
    (found,) = [field.value for field in section(report, key).fields if field.name == name]
    return found


def rows(report: Report, key: str) -> list[tuple[object, ...]]:
    table = section(report, key).table
    assert table is not None
    return [tuple(cell.value for cell in row) for row in table.rows]


def spans(report: Report, *kinds: SpanKind) -> list[Span]:
    assert report.memory_map is not None
    return [span for span in report.memory_map.spans if span.kind in kinds]


# How it is entered. Register values: pvh.pandoc; boot.rst, 32-bit and 64-bit Boot Protocol;
# Multiboot Specification 3.2.


def test_pvh_entry_is_told() -> None:
    report = report_of(ELF)
    assert report.problem is None
    assert value(report, "entry_state", "rip") == 0x20_0010
    assert value(report, "entry_state", "rbx") == 0x6000
    assert value(report, "entry_state", "cr0") == 0x11
    assert value(report, "entry_state", "cr4") == 0
    assert value(report, "start_info", "magic") == 0x336E_C578
    assert rows(report, "protocols")[0] == ("pvh", 0x20_0010, "taken: the first that it has")


def test_linux64_entry_is_told() -> None:
    report = report_of(BZIMAGE, CONFIG._replace(protocol=Protocol.LINUX64))
    assert value(report, "entry_state", "rip") == 0x20_0100
    assert value(report, "entry_state", "rsi") == 0x7000
    assert value(report, "entry_state", "cr0") == 0x8000_0011
    assert value(report, "entry_state", "efer") == 0x500
    (cr3,) = [
        span.base_gpa for span in spans(report, SpanKind.PLACED) if span.name == "page tables"
    ]
    assert value(report, "entry_state", "cr3") == cr3
    assert value(report, "page_tables", "page") == 2 * MiB
    assert value(report, "page_tables", "mapped") == 4 * GiB
    assert value(report, "boot_params", "cmd_line_ptr") == 0x2_0000
    assert value(report, "boot_params", "version") == 0x020F


def test_linux32_entry_is_told() -> None:
    report = report_of(BZIMAGE, CONFIG._replace(protocol=Protocol.LINUX32))
    assert value(report, "entry_state", "rip") == 0x20_0000
    assert value(report, "entry_state", "cr0") == 0x11
    assert value(report, "boot_params", "code32_start") == 0x20_0000
    names = [span.name for span in spans(report, SpanKind.PLACED)]
    assert names[-2:] == ["protected-mode kernel", "room to decompress itself"]
    # The builder's init_size, from where it runs.
    assert spans(report, SpanKind.PLACED)[-1].end_gpa == 0x20_0000 + 0x30_0000


def test_multiboot_entry_is_told() -> None:
    report = report_of(mb.image(b"\xf4" * 64))
    assert value(report, "entry_state", "rax") == 0x2BADB002
    assert value(report, "entry_state", "rbx") == 0x6000
    assert value(report, "multiboot_info", "mem_lower") == 639
    assert report.format == "Multiboot"


def test_memory_map_that_the_kernel_is_given_is_told_by_each_protocol() -> None:
    expected = [(0, 0x9_FC00, 1), (0x9_FC00, 0x6_0400, 2), (0x10_0000, 15 * MiB, 1)]
    for protocol in (Protocol.PVH, Protocol.LINUX64):
        report = report_of(BZIMAGE, CONFIG._replace(protocol=protocol))
        assert [row[:3] for row in rows(report, "memory_map_entries")] == expected
    report = report_of(mb.image(b"\xf4" * 64))
    assert [row[1:] for row in rows(report, "memory_map_entries")] == expected


def test_gdt_is_told_as_the_sdm_has_it() -> None:
    # SDM 3A figure 3-8: flat 4 GiB, present, DPL 0, accessed; 32-bit code, then data.
    descriptors = [row[1] for row in rows(report_of(ELF), "gdt")]
    assert descriptors[2:4] == [0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF]


def test_modules_are_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("modules")
    (directory / "initrd").write_bytes(bytes(5000))
    (directory / "module").write_bytes(bytes(100))
    config = CONFIG._replace(
        initrd=str(directory / "initrd"), modules=((str(directory / "module"), "x"),)
    )
    report = report_of(ELF, config)
    assert [row[1] for row in rows(report, "modules")] == [5000, 100]
    assert value(report, "start_info", "nr_modules") == 2


@pytest.mark.parametrize("series", SERIES)
def test_stock_kernel_is_explained(series: str) -> None:
    config = CONFIG._replace(memory_bytes=256 * MiB)
    with KernelImage.open(debian_vmlinuz(series)) as image:
        report = explain(image, config)
    assert report.problem is None
    assert report.format == "bzImage"
    pvh_notes = [row for row in rows(report, "payload_elf_notes") if row[1:3] == ("Xen", 18)]
    entry = int.from_bytes(bytes.fromhex(str(pvh_notes[0][3])), "little")
    assert value(report, "entry_state", "rip") == entry
    # Debian's configuration: CONFIG_PHYSICAL_START=0x1000000.
    kernel = [span for span in spans(report, SpanKind.PLACED) if span.name.startswith("kernel")]
    assert kernel[0].base_gpa == 0x100_0000


def test_kernel_that_is_moved_is_told_where() -> None:
    text = START_KERNEL_MAP + LINK_GPA
    table = relocation_table(add64=[text + 8] * 3, subtract32=[], add32=[text + 16] * 2)
    config = CONFIG._replace(kaslr=Kaslr(4 * MiB, text + 64 * MiB))
    report = report_of(relocatable_vmlinux(table), config)
    names = ("add64", "subtract32", "add32")
    assert [value(report, "relocations", name) for name in names] == [3, 0, 2]
    assert value(report, "kaslr", "physical_base") == 4 * MiB
    assert value(report, "kaslr", "virtual_offset") == 64 * MiB
    assert value(report, "entry_state", "rip") == 4 * MiB + 0x10
    assert "--kaslr" in str(rows(report, "protocols")[0][2])
    # boot.rst, loadflags: KASLR_FLAG
    assert value(report, "boot_params", "loadflags") == 3


# The map


@pytest.mark.parametrize("memory_bytes", [16 * MiB, 5 * GiB])
def test_memory_map_is_without_holes_and_overlaps(memory_bytes: int) -> None:
    report = report_of(ELF, CONFIG._replace(memory_bytes=memory_bytes))
    assert report.memory_map is not None
    gpa = 0
    for span in report.memory_map.spans:
        assert span.base_gpa == gpa, span
        assert span.size_bytes > 0
        assert not span.problem
        gpa = span.end_gpa
    assert gpa == (4 * GiB if memory_bytes < 3 * GiB else 4 * GiB + memory_bytes - 3 * GiB)
    ram = spans(report, SpanKind.FREE, SpanKind.PLACED)
    reserved = 0x10_0000 - 0x9_FC00
    assert sum(span.size_bytes for span in ram) == memory_bytes - reserved


def test_segments_outside_ram_are_drawn_where_they_want_to_be() -> None:
    data = Elf(
        segments=[
            Segment(15 * MiB, b"x", memsz=2 * MiB),
            Segment(1 * GiB, b"y", memsz=MiB),
            Segment(0xFEC0_0000, b"z"),
        ],
        entry=15 * MiB,
    ).build()
    report = report_of(data)
    assert [(span.base_gpa, span.problem) for span in spans(report, SpanKind.PLACED)] == [
        (15 * MiB, "goes beyond RAM"),
        (1 * GiB, "not RAM"),
        (0xFEC0_0000, "not RAM"),
    ]
    assert report.problem is not None
    assert report.problem.rule == "elf-segment-ram"


def test_addresses_of_a_multiboot_header_are_drawn_even_of_an_elf_file() -> None:
    inside = mb.image(b"\xf4" * 64, load_addr=0x20_0000, bss_end_addr=0x4000_0000)
    data = Elf(segments=[Segment(0x30_0000, inside)], entry=0x30_0000).build()
    assert [(span.base_gpa, span.problem) for span in spans(report_of(data), SpanKind.PLACED)] == [
        (0x20_0000, "goes beyond RAM")
    ]


def test_segments_that_overlap_are_told() -> None:
    data = Elf(
        segments=[Segment(2 * MiB, b"x", memsz=MiB), Segment(2 * MiB + KiB, b"y", flags=6)],
        entry=2 * MiB,
    ).build()
    assert [span.problem for span in spans(report_of(data), SpanKind.PLACED)] == [
        "",
        "overlaps kernel r-x",
    ]


def test_room_that_is_not_there_is_drawn() -> None:
    config = CONFIG._replace(decompress=Decompress.GUEST)
    report = report_of(bz.bzimage(bz.compress("gzip", ELF), init_size=64 * MiB), config)
    assert [(span.name, span.problem) for span in spans(report, SpanKind.PLACED)] == [
        ("protected-mode kernel", ""),
        ("room to decompress itself", "goes beyond RAM"),
    ]


# What a kernel is wrapped in


def keys(report: Report) -> list[str]:
    return [section.key for section in report.sections]


def test_each_layer_is_told_from_the_outside_in() -> None:
    image = gzip.compress(uki(BZIMAGE, initrd=b"i" * 5000, cmdline=b"own"))
    report = report_of(image, CONFIG._replace(cmdline=None))
    assert report.problem is None
    assert report.format == "compressed file"
    assert keys(report)[:5] == ["summary", "compressed_file", "uki", "uki_pe_header",
                                "uki_pe_sections"]  # fmt: skip
    assert keys(report)[5:8] == ["setup_header", "bzimage_parts", "payload"]
    sizes = {span.name: span.size_bytes for span in spans(report, SpanKind.PLACED)}
    assert (sizes["initrd"], sizes["command line"]) == (5000, len("own") + 1)


def test_layers_of_the_same_kind_are_told_apart() -> None:
    report = report_of(gzip.compress(gzip.compress(ELF)))
    assert keys(report)[1:4] == ["compressed_file", "compressed_file_2", "elf_header"]


def test_kernel_for_another_machine_is_told_of_in_what_it_is_wrapped_in() -> None:
    image = arm64_image()
    payload = gzip.compress(image)
    report = report_of(zboot(payload, b"gzip", size_bytes=len(payload)))
    assert report.problem is not None
    assert report.problem.rule == "image-machine"
    assert {"zboot_header", "arm64_header"} < set(keys(report))
    assert (report.format, report.memory_map) == ("EFI zboot", None)


def test_layer_that_cannot_be_taken_off_is_told_all_the_same() -> None:
    report = report_of(gzip.compress(ELF)[:-20])
    assert report.problem is not None
    assert report.problem.rule == "file-stream"
    assert keys(report) == ["summary", "compressed_file"]


# What is wrong


ENTRY = {"entry": 0x20_0000}
BROKEN = {
    "elf-header-size": ELF[:40],
    "elf-class": Elf(elf_class=3).build(),
    "elf-data": Elf(elf_data=0).build(),
    "elf-machine": Elf(machine=183).build(),
    "elf-type": Elf(kind=1).build(),
    "elf-phnum-none": Elf(phnum=0).build(),
    "elf-phnum-many": Elf(phnum=0xFFFF).build(),
    "elf-phentsize": Elf(segments=[Segment(0x20_0000, b"x")], phentsize=32).build(),
    "elf-phdrs-truncated": ELF[:100],
    "elf-interpreter": Elf(segments=[Segment(0, b"/lib/ld.so\0", kind=3)]).build(),
    "elf-filesz": Elf(segments=[Segment(0x20_0000, b"x", filesz=2, memsz=1)]).build(),
    "elf-address-overflow": Elf(segments=[Segment((1 << 64) - 1, b"x", memsz=2)]).build(),
    "elf-segment-truncated": Elf(
        segments=[Segment(0x20_0000, b"x", filesz=2, memsz=2)], **ENTRY
    ).build(),
    "elf-segment-low": Elf(segments=[Segment(0x1000, b"x")]).build(),
    "elf-segment-ram": Elf(segments=[Segment(1 << 30, b"x")], entry=1 << 30).build(),
    "elf-entry-outside": Elf(segments=[Segment(0x20_0000, b"x")], entry=0x30_0000).build(),
    "multiboot-flags": mb.header(mb.ADDRESSES | 1 << 5, *[0x20_0000] * 5) + bytes(64),
    "multiboot-addresses": mb.header(0) + bytes(64),
    "multiboot-ram": mb.image(b"\xf4" * 64, bss_end_addr=0x4000_0000),
    "bzimage-version": bz.bzimage(b"", version=0x0205),
    "bzimage-jump": bz.bzimage(b"", jump=0x6AE9),
    "bzimage-header-length": bz.bzimage(b"", jump=0x39EB),
    "bzimage-header-truncated": BZIMAGE[:0x26B],
    "bzimage-boot-flag": bz.bzimage(b"", boot_flag=0),
    "bzimage-loaded-high": bz.bzimage(b"", loadflags=0),
    "bzimage-setup-sects": BZIMAGE[:2048],
    "bzimage-syssize": bz.bzimage(b"", syssize=0),
    "bzimage-truncated": BZIMAGE[:-16],
    "bzimage-kernel-info-magic": bz.bzimage(b"", bz.kernel_info(magic=b"PoTL")),
    "bzimage-kernel-info-bounds": bz.bzimage(b"", kernel_info_offset=1 << 31),
    "bzimage-no-payload": bz.bzimage(b"", payload_offset=0),
    "bzimage-payload-bounds": bz.bzimage(b"", payload_length=1 << 31),
    "bzimage-payload-elf": bz.bzimage(bz.compress("gzip", b"no kernel")),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_broken_rule_is_told_with_its_text_and_source(rule: str) -> None:
    problem = report_of(BROKEN[rule]).problem
    assert problem is not None
    assert problem.rule == rule
    assert (problem.text, problem.source) == RULES[rule]
    assert not problem.message.startswith("image: ")


def test_broken_image_is_described_all_the_same() -> None:
    report = report_of(bz.bzimage(b"\x1f\x8b damaged"))
    assert report.problem is not None
    assert value(report, "setup_header", "version") == 0x020F
    assert value(report, "payload", "compression") == "gzip"
    assert "cannot be unpacked" in section(report, "payload").about
    assert report.boot_sections == ()


def test_what_is_no_kernel_has_no_map() -> None:
    report = report_of(b"#!/bin/sh\n")
    assert (report.format, report.memory_map) == (None, None)
    assert report.problem is not None
    assert "is text" in report.problem.message


def test_entry_that_the_kernel_has_not_is_told() -> None:
    report = report_of(ELF, CONFIG._replace(protocol=Protocol.MULTIBOOT))
    assert report.problem is not None
    assert report.problem.rule == "protocol-entry"


def test_command_line_that_is_too_long_is_told() -> None:
    report = report_of(BZIMAGE, CONFIG._replace(cmdline="x" * 2048))
    assert report.problem is not None
    assert "the command line has 2048 bytes" in report.problem.message
    # The kernel is drawn where it would have been.
    assert [span.base_gpa for span in spans(report, SpanKind.PLACED)] == [0x20_0000, 0x40_0000]


def test_pvh_note_that_cannot_be_used_is_told_where_the_ways_in_are() -> None:
    data = Elf(
        segments=[Segment(0x20_0000, b"x" * 64), notes_segment(pvh_note(0x90_0000))],
        entry=0x20_0000,
    ).build()
    assert "is in none of the segments" in str(rows(report_of(data), "protocols")[0][2])


def test_nothing_that_is_shown_can_drive_a_terminal() -> None:
    data = bytearray(BZIMAGE)
    data[0x20E:0x210] = (0x100).to_bytes(2, "little")
    data[0x300:0x310] = b"\x1b[2J\x9b\xff evil\n\x00"
    report = explain(KernelImage.from_bytes(bytes(data), "a\x1b[31m"), CONFIG)
    assert report.name == r"a\x1b[31m"
    assert value(report, "summary", "kernel") == r"\x1b[2J\x9b\xff evil\n"
