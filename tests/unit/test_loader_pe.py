"""PE headers and sections: each fault, and what binutils says of a real EFI program."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from builders.pe import Pe, Section
from builders.stock_kernels import package_file

from pyvmm.errors import KernelImageError
from pyvmm.loader import pe


def refusal(image: bytes) -> str:
    """The rule that ``image`` breaks."""
    with pytest.raises(KernelImageError) as caught:
        pe.parse(memoryview(image))
    assert "\n" not in str(caught.value)
    return caught.value.rule


def test_headers_are_read_by_the_specifications_offsets() -> None:
    headers = pe.parse(memoryview(Pe([Section(b".text", b"code"), Section(b".longname")]).build()))
    assert (headers.machine_name, headers.magic) == ("x86-64", 0x20B)
    assert headers.address_of_entry_point == 0x1234
    assert (headers.section_alignment, headers.file_alignment) == (0x1000, 0x200)
    assert (headers.size_of_image, headers.size_of_headers) == (0x9000, 0x400)
    assert headers.subsystem == pe.IMAGE_SUBSYSTEM_EFI_APPLICATION
    assert [section.name for section in headers.sections] == [".text", ".longnam"]


def test_pe32_has_the_same_fields_at_the_same_places() -> None:
    headers = pe.parse(memoryview(Pe(magic=0x10B, machine=0x14C, optional_bytes=0xE0).build()))
    assert (headers.machine_name, headers.subsystem) == ("i386", 10)


def test_contents_are_without_the_padding() -> None:
    image = memoryview(Pe([Section(b".cmdline", b"quiet")]).build())
    (section,) = pe.parse(image).sections
    assert bytes(pe.contents(image, section)) == b"quiet"


def test_contents_without_a_size_in_memory_are_all_of_the_raw_data() -> None:
    image = memoryview(Pe([Section(b".cmdline", b"quiet", virtual_size=0)]).build())
    (section,) = pe.parse(image).sections
    assert pe.contents(image, section) == b"quiet".ljust(0x200, b"\xcc")


def test_contents_with_more_in_memory_end_where_the_raw_data_does() -> None:
    image = memoryview(Pe([Section(b".data", b"x" * 0x200, virtual_size=0x1_0000)]).build())
    (section,) = pe.parse(image).sections
    assert pe.contents(image, section) == b"x" * 0x200


def test_section_that_ends_with_the_file_is_whole() -> None:
    image = Pe([Section(b".data", b"x" * 0x200)]).build()
    (section,) = pe.parse(memoryview(image)).sections
    assert pe.contents(memoryview(image), section) == b"x" * 0x200
    with pytest.raises(KernelImageError) as caught:
        pe.contents(memoryview(image)[:-1], section)
    assert caught.value.rule == "pe-section"


def test_section_beyond_the_file_is_refused() -> None:
    image = memoryview(Pe([Section(b".data", b"x", offset=0xFFFF_FFFF)]).build())
    (section,) = pe.parse(image).sections
    with pytest.raises(KernelImageError) as caught:
        pe.contents(image, section)
    assert caught.value.rule == "pe-section"


HEADERS_END = 0x80 + 4 + 20 + 0xF0 + 40
FAULTS = {
    "pe-dos-header": Pe().build()[:0x3F],
    "pe-signature": Pe(signature=b"NE\x00\x00").build(),
    "pe-file-header": Pe().build()[: 0x80 + 4 + 19],
    "pe-optional-header-size": Pe(optional_bytes=69).build(),
    "pe-optional-header": Pe().build()[: 0x80 + 4 + 20 + 0xEF],
    "pe-optional-header-magic": Pe(magic=0x107).build(),
    "pe-section-table": Pe([Section(b".text")]).build()[: HEADERS_END - 1],
}


@pytest.mark.parametrize("rule", FAULTS)
def test_fault_is_told_by_its_rule(rule: str) -> None:
    assert refusal(FAULTS[rule]) == rule


def test_headers_that_end_with_the_file_are_whole() -> None:
    assert len(pe.parse(memoryview(Pe([Section(b".text")]).build()[:HEADERS_END])).sections) == 1


def test_header_beyond_the_file_is_no_signature() -> None:
    assert refusal(b"MZ" + bytes(0x3A) + b"\xff\xff\xff\xff" + bytes(64)) == "pe-signature"


def test_more_sections_than_the_file_has_are_refused() -> None:
    assert refusal(Pe([Section(b".text")], section_count=0xFFFF).build()) == "pe-section-table"


def test_headers_of_systemds_stub_are_as_objdump_reads_them() -> None:
    if shutil.which("objdump") is None:
        pytest.skip("objdump (package binutils) is not installed")
    path = package_file("systemd-boot-efi", "usr/lib/systemd/boot/efi/linuxx64.efi.stub")
    with open(path, "rb") as file:
        headers = pe.parse(memoryview(file.read()))
    said = subprocess.run(
        ["objdump", "-h", "-p", path], capture_output=True, text=True, check=True
    ).stdout

    def field(name: str) -> int:
        found = re.search(rf"^{name}\s+(\w+)", said, re.MULTILINE)
        assert found, said
        return int(found[1], 16)

    assert headers.magic == field("Magic")
    assert headers.address_of_entry_point == field("AddressOfEntryPoint")
    assert headers.section_alignment == field("SectionAlignment")
    assert headers.file_alignment == field("FileAlignment")
    assert headers.size_of_image == field("SizeOfImage")
    assert headers.size_of_headers == field("SizeOfHeaders")
    assert headers.subsystem == field("Subsystem")
    rows = re.findall(r"^ +\d+ (\S+) +(\w+)  \w+  \w+  (\w+)", said, re.MULTILINE)
    assert [
        (section.name, section.size_bytes, section.pointer_to_raw_data)
        for section in headers.sections
    ] == [(name, int(size, 16), int(offset, 16)) for name, size, offset in rows]
