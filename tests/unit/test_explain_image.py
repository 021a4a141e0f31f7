"""What is told of an image, against what other programs and the kernel's headers say of it."""

from __future__ import annotations

import gzip
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from builders import bzimage as bz
from builders import multiboot as mb
from builders.c_compiler import evaluate
from builders.elf import Elf, Segment, note, notes_segment, pvh_note, vmlinux
from builders.elf_oracle import open_elf
from builders.flat_image import arm64_image, riscv64_image, zboot
from builders.pe import uki
from builders.stock_kernels import SERIES, debian_vmlinuz, stock_kernel

from pyvmm.explain import bzimage, elf, fdt, flat, linux, multiboot, pe, wrapping
from pyvmm.explain.model import Field, Section
from pyvmm.loader.image import KernelImage
from pyvmm.loader.load import extract_vmlinux


def elf_sections(data: bytes | bytearray | memoryview) -> dict[str, Section]:
    return {section.key: section for section in elf.describe(memoryview(data))}


def bz_sections(data: bytes) -> dict[str, Section]:
    return {section.key: section for section in bzimage.describe(memoryview(data))}


def fields_of(section: Section) -> dict[str, Field]:
    fields = {field.name: field for field in section.fields}
    assert len(fields) == len(section.fields)  # names are the keys of the JSON form
    return fields


def values_of(section: Section) -> dict[str, object]:
    return {name: field.value for name, field in fields_of(section).items()}


def rows_of(section: Section) -> list[dict[str, object]]:
    assert section.table is not None
    names = [column.name for column in section.table.columns]
    return [
        {name: cell.value for name, cell in zip(names, row, strict=True)}
        for row in section.table.rows
    ]


def shown_rows(section: Section) -> list[dict[str, str]]:
    assert section.table is not None
    names = [column.name for column in section.table.columns]
    return [
        {name: cell.shown for name, cell in zip(names, row, strict=True)}
        for row in section.table.rows
    ]


# ELF


@pytest.mark.parametrize("bits", [64, 32])
def test_elf_header_and_program_headers_are_as_pyelftools_reads_them(bits: int) -> None:
    image = Elf(
        bits=bits,
        segments=[
            Segment(0x20_0000, b"text" * 9, vaddr=0x8020_0000, align=16),
            Segment(0x40_0000, b"data", memsz=0x3000, flags=6),
            notes_segment(pvh_note(0x20_0010)),
        ],
        entry=0x20_0004,
    ).build()
    check_against_pyelftools(memoryview(image))


@pytest.mark.parametrize("series", SERIES)
def test_elf_of_a_stock_kernel_is_as_pyelftools_reads_it(series: str) -> None:
    with KernelImage.open(debian_vmlinuz(series)) as image:
        check_against_pyelftools(extract_vmlinux(image))


def check_against_pyelftools(data: memoryview) -> None:
    oracle = open_elf(bytes(data))
    sections = elf_sections(data)
    header = values_of(sections["elf_header"])
    struct = {name: value for name, value in header.items() if name.startswith("e_")}
    machine = oracle.header["e_machine"]
    as_names = ("e_type", "e_machine", "e_version")  # as pyelftools has them
    expected = {name: oracle.header[name] for name in struct if name not in as_names}
    assert {name: struct[name] for name in expected} == expected
    shown = fields_of(sections["elf_header"])
    assert f"({machine})" in shown["e_machine"].shown
    assert "(ET_EXEC)" in shown["e_type"].shown
    assert shown["EI_CLASS"].shown == f"{oracle.elfclass // 32} (ELFCLASS{oracle.elfclass})"

    values = rows_of(sections["elf_program_headers"])
    for row, text, segment in zip(
        values, shown_rows(sections["elf_program_headers"]), oracle.iter_segments(), strict=True
    ):
        numbers = {name: segment.header[name] for name in row if name not in ("index", "p_type")}
        assert {name: row[name] for name in numbers} == numbers
        assert text["p_type"] == segment.header["p_type"]

    expected_notes = [
        (note["n_name"], note["n_offset"], note["n_descdata"].hex())
        for segment in oracle.iter_segments("PT_NOTE")
        for note in segment.iter_notes()
    ]
    assert [
        (row["owner"], row["offset"], row["desc"]) for row in rows_of(sections["elf_notes"])
    ] == expected_notes


def test_elf_header_offsets_are_those_of_elf_h() -> None:
    for bits in (64, 32):
        data = Elf(bits=bits, segments=[Segment(0x20_0000, b"x")]).build()
        fields = fields_of(elf_sections(data)["elf_header"])
        names = [name for name in fields if name.startswith("e_")]
        struct = f"Elf{bits}_Ehdr"
        offsets = evaluate(["elf.h"], [f"offsetof({struct}, {name})" for name in names])
        sizes = evaluate(["elf.h"], [f"sizeof((({struct} *)0)->{name})" for name in names])
        assert [(fields[name].offset, fields[name].size) for name in names] == list(
            zip(offsets, sizes, strict=True)
        )


def test_notes_are_shown_by_what_their_owners_say_they_are() -> None:
    notes = (
        note(b"GNU\x00", 3, bytes.fromhex("00112233"))
        + note(b"Linux\x00", 0x100, b"salt\x00")
        + note(b"Xen\x00", 6, b"linux\x00")
        + note(b"Xen\x00", 19, bytes.fromhex("000020000000000 1ffffff3f".replace(" ", "")))
        + note(b"Xen\x00", 18, bytes.fromhex("10002000"))
        + note(b"me\x00", 77, b"\x01\x02")
    )
    data = Elf(segments=[Segment(0x20_0000, b"x"), notes_segment(notes)]).build()
    rows = shown_rows(elf_sections(data)["elf_notes"])
    assert [(row["owner"], row["type"], row["desc"]) for row in rows] == [
        ("GNU", "NT_GNU_BUILD_ID", "00112233"),
        ("Linux", "LINUX_ELFNOTE_BUILD_SALT", '"salt"'),
        ("Xen", "XEN_ELFNOTE_GUEST_OS", '"linux"'),
        ("Xen", "XEN_ELFNOTE_PHYS32_RELOC", "0x0020_0000, 0x0100_0000, 0x3fff_ffff"),
        ("Xen", "XEN_ELFNOTE_PHYS32_ENTRY", "0x0020_0010"),
        ("me", "type 0x4d", "0102"),
    ]


def test_build_id_of_a_stock_kernel_is_readelfs(tmp_path: Path) -> None:
    with KernelImage.open(debian_vmlinuz("6.1")) as image:
        data = bytes(extract_vmlinux(image))
    path = tmp_path / "vmlinux"
    path.write_bytes(data)
    output = subprocess.run(
        ["readelf", "-nW", path], capture_output=True, text=True, check=True
    ).stdout
    build_id = re.search(r"Build ID: ([0-9a-f]+)", output)
    assert build_id is not None
    rows = shown_rows(elf_sections(data)["elf_notes"])
    assert build_id[1] in [row["desc"] for row in rows if row["type"] == "NT_GNU_BUILD_ID"]


def test_damaged_note_is_told_and_those_before_it_are_shown() -> None:
    notes = note(b"GNU\x00", 3, b"id") + note(b"Xen\x00", 18, b"1234", namesz=0xFFFF_FFFF)
    data = Elf(segments=[Segment(0x20_0000, b"x"), notes_segment(notes)]).build()
    section = elf_sections(data)["elf_notes"]
    assert [row["type"] for row in rows_of(section)] == [3]
    assert "reaches beyond their end" in section.about


@pytest.mark.parametrize(
    ("length", "last"), [(4, "EI_CLASS"), (17, "e_type"), (24, "e_entry"), (63, "e_shstrndx")]
)
def test_elf_header_that_is_cut_off_is_told_up_to_there(length: int, last: str) -> None:
    fields = fields_of(elf_sections(vmlinux()[:length])["elf_header"])
    *whole, cut_off = fields.values()
    assert (cut_off.name, cut_off.value, cut_off.shown) == (last, None, "cut off")
    assert all(field.value is not None for field in whole)


def test_big_endian_elf_is_read_as_such() -> None:
    image = bytearray(vmlinux())
    image[5] = 2  # EI_DATA: ELFDATA2MSB
    image[18:20] = (21).to_bytes(2, "big")
    assert fields_of(elf_sections(image)["elf_header"])["e_machine"].shown == "21 (EM_PPC64)"


def test_segments_are_where_the_file_wants_them_however_wrong() -> None:
    data = Elf(
        segments=[Segment(0x1000, b"x"), Segment(1 << 63, b"y", memsz=1 << 63, flags=6)]
    ).build()
    assert [tuple(segment) for segment in elf.segments(memoryview(data))] == [
        ("kernel r-x", 0x1000, 1),
        ("kernel rw-", 1 << 63, 1 << 63),
    ]


# bzImage


def test_setup_header_has_the_layout_of_bootparam_h() -> None:
    specs = bzimage.SETUP_HEADER
    offsets = evaluate(
        ["asm/bootparam.h"], [f"offsetof(struct setup_header, {spec.name})" for spec in specs]
    )
    member = "((struct setup_header *)0)->"
    sizes = evaluate(["asm/bootparam.h"], [f"sizeof({member}{spec.name})" for spec in specs])
    fields = bz_sections(bz.bzimage(b""))["setup_header"].fields
    assert [field.name for field in fields] == [spec.name for spec in specs]
    assert [(field.offset, field.size) for field in fields] == [
        (0x1F1 + offset, size) for offset, size in zip(offsets, sizes, strict=True)
    ]


def test_setup_header_flags_are_those_of_bootparam_h() -> None:
    fields = fields_of(
        bz_sections(bz.bzimage(b"", loadflags=0x81, xloadflags=0x15))["setup_header"]
    )
    for name, value in (("loadflags", 0x81), ("xloadflags", 0x15)):
        bits = [bit for bit in fields[name].bits if bit.name != "XLF_MEM_ENCRYPTION"]  # Linux 6.9
        masks = evaluate(["asm/bootparam.h"], [bit.name for bit in bits])
        assert [bit.mask for bit in bits] == masks
        assert [bit.is_set for bit in bits] == [bool(value & mask) for mask in masks]


def test_setup_header_values_are_what_the_builder_wrote() -> None:
    image = bz.bzimage(bz.compress("gzip", vmlinux()), setup_sects=6, cmdline_size=777)
    values = values_of(bz_sections(image)["setup_header"])
    assert values["cmdline_size"] == 777
    assert values["version"] == 0x020F
    assert values["payload_offset"] == bz.PAYLOAD_OFFSET
    shown = fields_of(bz_sections(image)["setup_header"])
    assert shown["setup_sects"].shown == "6 (kernel at 0xe00)"
    assert shown["version"].shown == "2.15"
    assert shown["jump"].shown == "eb 6a (to 0x26c)"
    assert shown["header"].shown == '"HdrS"'


@pytest.mark.parametrize(
    ("version", "last"),
    [(0x0206, "cmdline_size"), (0x0208, "payload_length"), (0x020A, "init_size")],
)
def test_fields_later_than_the_protocol_are_left_out(version: int, last: str) -> None:
    fields = bz_sections(bz.bzimage(b"", version=version))["setup_header"].fields
    assert fields[-1].name == last


def test_fields_behind_the_headers_own_end_are_left_out() -> None:
    image = bz.bzimage(b"", jump=(0x24C - 0x202) << 8 | 0xEB)
    assert bz_sections(image)["setup_header"].fields[-1].name == "payload_offset"


def test_parts_of_the_file_are_told_and_what_is_missing() -> None:
    payload = bz.compress("gzip", vmlinux())
    whole = bz.bzimage(payload)
    kernel_bytes = len(whole) - 2048  # the builder's setup is 4 sectors
    rows = [(row["offset"], row["size"]) for row in rows_of(bz_sections(whole)["bzimage_parts"])]
    assert rows == [(0, 512), (512, 1536), (2048, kernel_bytes), (2048 + 0x300, len(payload))]
    signed = rows_of(bz_sections(whole + b"signature")["bzimage_parts"])[-1]
    assert (signed["offset"], signed["size"]) == (len(whole), 9)
    cut_off = rows_of(bz_sections(whole[:-1600])["bzimage_parts"])[-1]
    assert (cut_off["offset"], cut_off["size"]) == (len(whole) - 1600, 1600)
    assert "missing" in str(cut_off["part"])


@pytest.mark.parametrize("series", SERIES)
def test_version_string_of_a_stock_kernel_is_what_file_tells(series: str) -> None:
    if shutil.which("file") is None:
        pytest.skip("file is not installed")
    path = debian_vmlinuz(series)
    output = subprocess.run(
        ["file", "-bL", path], capture_output=True, text=True, check=True
    ).stdout
    with KernelImage.open(path) as image:
        version = bzimage.parts(image.data).version_string
        banner = linux.version_string(extract_vmlinux(image))
    assert f"version {version}, " in output
    release, _, build = version.partition(" ")
    assert banner.startswith(f"Linux version {release} ")
    assert banner.endswith(build.partition(") ")[2])


# PE


PE_NAMES = {"MajorOperatingSystemVersion": "MajorOSystemVersion",
            "MinorOperatingSystemVersion": "MinorOSystemVersion",
            "Win32VersionValue": "Win32Version"}  # fmt: skip


def test_pe_headers_of_a_stock_kernel_are_what_objdump_tells() -> None:
    path = debian_vmlinuz("6.12")
    output = subprocess.run(
        ["objdump", "-ph", path], capture_output=True, text=True, check=True
    ).stdout
    with KernelImage.open(path) as image:
        header, sections = pe.describe(image.data)
        fields = values_of(header)
        assert fields["e_lfanew"] == int.from_bytes(image.data[0x3C:0x40], "little")
    names = list(fields)
    for name in names[names.index("SizeOfCode") : names.index("NumberOfRvaAndSizes") + 1]:
        told = re.search(rf"^{PE_NAMES.get(name, name)}\s+([0-9a-f]+)", output, re.MULTILINE)
        assert told is not None, name
        assert fields[name] == int(told[1], 16), name
    # A section: index, name, size, VMA, LMA, file offset.
    told_rows = re.findall(r"^ +\d+ (\S+) +([0-9a-f]+)  ([0-9a-f]+)  \S+  ([0-9a-f]+) ", output,
                           re.MULTILINE)  # fmt: skip
    assert [
        (row["Name"], row["SizeOfRawData"], row["VirtualAddress"], row["PointerToRawData"])
        for row in rows_of(sections)
    ] == [(name, *(int(number, 16) for number in numbers)) for name, *numbers in told_rows]


def test_what_is_no_pe_file_has_no_pe_headers() -> None:
    assert list(pe.describe(memoryview(bz.bzimage(b"")))) == []
    assert list(pe.describe(memoryview(b"MZ" + bytes(100)))) == []
    assert list(pe.describe(memoryview(b"MZ"))) == []


def test_section_table_that_is_cut_off_is_told_up_to_there() -> None:
    with KernelImage.open(debian_vmlinuz("6.12")) as image:
        _, sections = pe.describe(image.data[: 0x58 + 160 + 2 * 40 + 39])
    assert len(rows_of(sections)) == 2


# The Images of other machines. Layouts: the u32 and u64 of booting.rst and boot-image-header.rst.


def test_arm64_header_is_told() -> None:
    (section,) = flat.describe_arm64(memoryview(arm64_image(image_size=0x218_0000)))
    fields = fields_of(section)
    assert (fields["magic"].offset, fields["magic"].value) == (0x38, 0x644D5241)
    assert (fields["image_size"].offset, fields["image_size"].value) == (0x10, 0x218_0000)
    assert fields["flags"].shown == "0xa (pages: 4 KiB)"
    assert {bit.name: bit.is_set for bit in fields["flags"].bits} == {
        "big-endian": False,
        "anywhere": True,
    }
    assert sum(field.size or 0 for field in section.fields) == 64


@pytest.mark.parametrize("name", ["debian:6.1-arm64", "debian:6.12-arm64"])
def test_stock_arm64_kernel_is_what_file_tells(name: str) -> None:
    if shutil.which("file") is None:
        pytest.skip("file is not installed")
    path = stock_kernel(name).path
    output = subprocess.run(
        ["file", "-bL", path], capture_output=True, text=True, check=True
    ).stdout
    told = re.search(r"ARM64 boot executable Image, (little|big)-endian, (\d+)K pages", output)
    assert told is not None, output
    with KernelImage.open(path) as image:
        (section,) = flat.describe_arm64(image.data)
        pe_header, _ = pe.describe(image.data)
        version = linux.version_string(image.data)
    flags = fields_of(section)["flags"]
    assert flags.shown.endswith(f"(pages: {told[2]} KiB)")
    assert flags.bits[0].is_set is (told[1] == "big")
    assert "(ARM64)" in fields_of(pe_header)["Machine"].shown
    assert re.match(r"Linux version 6\.\d+\.\S+-arm64 ", version)


def test_riscv64_header_is_told() -> None:
    (section,) = flat.describe_riscv64(memoryview(riscv64_image(text_offset=0x40_0000)))
    fields = fields_of(section)
    assert (fields["magic2"].offset, fields["magic2"].value) == (0x38, 0x05435352)
    assert fields["text_offset"].value == 0x40_0000
    assert fields["version"].shown == "0.2"
    assert sum(field.size or 0 for field in section.fields) == 64


def test_device_tree_header_is_told() -> None:
    # Devicetree Specification 0.4, 5.2
    header = struct.pack(">10I", 0xD00D_FEED, 0x200, 56, 0x100, 40, 17, 16, 3, 0x50, 0x80)
    (section,) = fdt.describe(memoryview(header))
    values = values_of(section)
    assert values["totalsize"] == 0x200
    assert (values["version"], values["last_comp_version"]) == (17, 16)
    assert (values["boot_cpuid_phys"], values["size_dt_struct"]) == (3, 0x80)
    assert list(fdt.describe(memoryview(bytes(40)))) == []


# What a kernel is wrapped in


def test_zboot_header_is_told() -> None:
    (section,) = wrapping.describe_zboot(memoryview(zboot(b"payload", b"gzip", size_bytes=7)))
    values = values_of(section)
    assert (values["payload_offset"], values["payload_size"]) == (0x40, 7)
    assert fields_of(section)["comp_type"].shown == "gzip"


def test_parts_of_a_uki_are_told() -> None:
    image = uki(
        b"k" * 1000, initrd=b"i" * 50, cmdline=b"a=b\n", osrel=b"ID=x\n", uname=b"6.1\x1b[2J"
    )
    (section,) = wrapping.describe_uki(memoryview(image))
    values = values_of(section)
    assert (values["linux"], values["initrd"]) == (1000, 50)
    assert (values["cmdline"], values["uname"]) == (r"a=b\n", r"6.1\x1b[2J")
    offset = fields_of(section)["linux"].offset
    assert offset is not None
    assert image[offset : offset + 1000] == b"k" * 1000


# What a kernel says of itself


CONFIG = '# comment\nCONFIG_SMP=y\nCONFIG_PVH=y\n# CONFIG_ACPI is not set\nCONFIG_X="a=b"\n'


def test_configuration_in_a_kernel_is_found() -> None:
    stream = gzip.compress(CONFIG.encode())
    data = b"code IKCFG_ST no stream" + b"IKCFG_ST" + stream + b"IKCFG_EDmore"
    assert linux.configuration(memoryview(data)) == (31, CONFIG)
    (section,) = linux.describe(memoryview(data))
    values = values_of(section)
    assert (values["options"], values["stream"]) == (3, 31)
    assert (values["CONFIG_SMP"], values["CONFIG_ACPI"]) == ("y", "n")


@pytest.mark.parametrize("stream", [b"\x1f\x8b damaged", gzip.compress(CONFIG.encode())[:12]])
def test_configuration_that_is_damaged_is_none_or_what_can_be_read(stream: bytes) -> None:
    found = linux.configuration(memoryview(b"IKCFG_ST" + stream))
    assert found is None or CONFIG.startswith(found[1])


def test_configuration_that_unpacks_to_gigabytes_is_cut_off() -> None:
    stream = gzip.compress(bytes(64 << 20))
    found = linux.configuration(memoryview(b"IKCFG_ST" + stream))
    assert found is not None
    assert len(found[1]) == 4 << 20


def test_version_string_is_the_banner_with_a_build_number() -> None:
    data = (
        b"Linux version %s (%s)\n\0Linux version 6.1 (a@b) # SMP\n\0Linux version 6.1 (a) #7 x\n\0"
    )
    assert linux.version_string(memoryview(data)) == "Linux version 6.1 (a) #7 x"
    assert linux.version_string(memoryview(b"no Linux version here")) == ""


# Multiboot


def test_multiboot_header_with_addresses_is_told() -> None:
    image = mb.image(b"\xf4" * 64, before=bytes(16), load_addr=0x20_0000, bss_end_addr=0x20_1000)
    (section,) = multiboot.describe(memoryview(image))
    assert values_of(section) == {
        "magic": 0x1BADB002,
        "flags": 0x1_0000,
        "checksum": -(0x1BADB002 + 0x1_0000) & 0xFFFF_FFFF,
        "header_addr": 0x20_0010,
        "load_addr": 0x20_0000,
        "load_end_addr": 0,
        "bss_end_addr": 0x20_1000,
        "entry_addr": 0x20_0030,
    }
    assert section.fields[0].offset == 16
    (segment,) = multiboot.segments(memoryview(image))
    assert (segment.base_gpa, segment.size_bytes) == (0x20_0000, 0x1000)


def test_multiboot_header_without_addresses_has_none_to_tell() -> None:
    (section,) = multiboot.describe(memoryview(mb.header(3) + bytes(99)))
    assert [field.name for field in section.fields] == ["magic", "flags", "checksum"]
    assert list(multiboot.describe(memoryview(bytes(99)))) == []
