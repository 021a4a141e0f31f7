"""The embedded kernel and the test guests, as files: their formats, against other tools' readings.

What they do when they run is in tests/boot.
"""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest
from build_guest import BuildError, available, build, build_embedded
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection, SymbolTableSection

LINK_ADDRESS = 0x0010_0000
SETUP_BYTES = 2 * 512  # a boot sector and one more

# Reads a bzImage from standard input through the kernel's own declaration of the header.
HEADER_READER = """
#include <stdio.h>
#include <string.h>
#include <asm/bootparam.h>
#define SHOW(field) printf(#field " %llu\\n", (unsigned long long)hdr.field)
int main(void)
{
    static unsigned char sector[1024];
    struct setup_header hdr;
    if (fread(sector, sizeof(sector), 1, stdin) != 1) return 1;
    memcpy(&hdr, sector + 0x1f1, sizeof(hdr));
    SHOW(setup_sects); SHOW(syssize); SHOW(boot_flag); SHOW(jump); SHOW(header); SHOW(version);
    SHOW(kernel_version); SHOW(loadflags); SHOW(code32_start); SHOW(initrd_addr_max);
    SHOW(kernel_alignment); SHOW(relocatable_kernel); SHOW(min_alignment); SHOW(xloadflags);
    SHOW(cmdline_size); SHOW(payload_offset); SHOW(payload_length); SHOW(setup_data);
    SHOW(pref_address); SHOW(init_size); SHOW(handover_offset); SHOW(kernel_info_offset);
    printf("end %lu\\n", 0x1f1 + sizeof(hdr));
    return 0;
}
"""


@pytest.fixture(scope="module")
def embedded_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("embedded")
    build_embedded(str(directory))
    return directory


@pytest.fixture(scope="module")
def setup_header(embedded_dir: Path) -> dict[str, int]:
    reader = embedded_dir / "header_reader"
    command = ["gcc", "-x", "c", "-o", str(reader), "-"]
    subprocess.run(command, input=HEADER_READER, text=True, check=True)
    with open(embedded_dir / "kernel.bzimage", "rb") as image:
        output = subprocess.run([reader], stdin=image, capture_output=True, check=True).stdout
    return {name: int(value) for name, value in map(str.split, output.decode().splitlines())}


def symbols(elf_path: Path) -> dict[str, int]:
    with open(elf_path, "rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        return {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}


def xen_notes(elf_path: Path) -> list[tuple[str, object, object]]:
    with open(elf_path, "rb") as file:
        return [
            (note["n_name"], note["n_type"], note["n_descdata"])
            for section in ELFFile(file).iter_sections()
            if isinstance(section, NoteSection)
            for note in section.iter_notes()
        ]


def memory_image(elf_path: Path) -> bytes:
    """What a loader would have in memory, from the link address to the last byte of the file."""
    image = bytearray()
    with open(elf_path, "rb") as file:
        for segment in ELFFile(file).iter_segments("PT_LOAD"):
            offset = segment["p_paddr"] - LINK_ADDRESS
            image.extend(bytes(offset - len(image)))
            image[offset:] = segment.data()
    return bytes(image)


def test_embedded_elf_has_its_64_bit_entry_0x200_after_its_32_bit_one(embedded_dir: Path) -> None:
    addresses = symbols(embedded_dir / "kernel.elf")
    assert addresses["startup_32"] == LINK_ADDRESS
    assert addresses["startup_64"] == LINK_ADDRESS + 0x200
    with open(embedded_dir / "kernel.elf", "rb") as file:
        assert ELFFile(file).header["e_entry"] == addresses["startup_64"]


def test_embedded_elf_names_its_pvh_entry(embedded_dir: Path) -> None:
    elf_path = embedded_dir / "kernel.elf"
    entry = symbols(elf_path)["pvh_entry"].to_bytes(4, "little")
    assert xen_notes(elf_path) == [("Xen", 18, entry)]


def test_embedded_kernel_has_no_instruction_that_kvm_does_not_emulate(embedded_dir: Path) -> None:
    disassembly = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(embedded_dir / "kernel.elf")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    mnemonics = {
        fields[1].split()[0]
        for line in disassembly.splitlines()
        if len(fields := line.split("\t")) > 1 and fields[1].split()
    }
    assert "iretq" in mnemonics, "the disassembly was read wrongly"
    unemulated = {"popcnt", "int3", "int", "fwait", "cmpxchg16b", "stac", "clac", "xgetbv", "verw"}
    assert mnemonics & (unemulated | {"xsave", "xrstor", "rdtscp", "invpcid"}) == set()
    assert "%xmm" not in disassembly


def test_bzimage_header_follows_the_boot_protocol(setup_header: dict[str, int]) -> None:
    variable = {"syssize", "payload_offset", "payload_length", "init_size", "kernel_info_offset"}
    assert {name: setup_header[name] for name in setup_header.keys() - variable} == {
        "setup_sects": 1,
        "boot_flag": 0xAA55,
        "jump": (setup_header["end"] - 0x202) << 8 | 0xEB,
        "header": int.from_bytes(b"HdrS", "little"),
        "version": 0x020F,
        "kernel_version": 0x80,
        "loadflags": 1,
        "code32_start": LINK_ADDRESS,
        "initrd_addr_max": 0x7FFF_FFFF,
        "kernel_alignment": 0x1000,
        "relocatable_kernel": 0,
        "min_alignment": 12,
        "xloadflags": 1,
        "cmdline_size": 2047,
        "setup_data": 0,
        "pref_address": LINK_ADDRESS,
        "handover_offset": 0,
        "end": 0x26C,
    }


def test_bzimage_code_is_the_kernel_as_it_lies_in_memory(embedded_dir: Path) -> None:
    bzimage = (embedded_dir / "kernel.bzimage").read_bytes()
    image = memory_image(embedded_dir / "kernel.elf")
    assert bzimage[SETUP_BYTES : SETUP_BYTES + len(image)] == image


def test_bzimage_payload_is_the_gzipped_elf(
    embedded_dir: Path, setup_header: dict[str, int]
) -> None:
    bzimage = (embedded_dir / "kernel.bzimage").read_bytes()
    start = SETUP_BYTES + setup_header["payload_offset"]
    payload = bzimage[start : start + setup_header["payload_length"]]
    assert gzip.decompress(payload) == (embedded_dir / "kernel.elf").read_bytes()


def test_bzimage_sizes_cover_the_code_and_the_memory_it_needs(
    embedded_dir: Path, setup_header: dict[str, int]
) -> None:
    code_bytes = (embedded_dir / "kernel.bzimage").stat().st_size - SETUP_BYTES
    assert setup_header["syssize"] * 16 == code_bytes
    with open(embedded_dir / "kernel.elf", "rb") as file:
        end = max(s["p_paddr"] + s["p_memsz"] for s in ELFFile(file).iter_segments("PT_LOAD"))
    assert setup_header["init_size"] == max(code_bytes, end - LINK_ADDRESS)


def test_bzimage_has_a_kernel_info(embedded_dir: Path, setup_header: dict[str, int]) -> None:
    bzimage = (embedded_dir / "kernel.bzimage").read_bytes()
    start = SETUP_BYTES + setup_header["kernel_info_offset"]
    assert bzimage[start : start + 8] == b"LToP\x10\0\0\0"


def test_embedded_kernel_is_reproducible(embedded_dir: Path, tmp_path: Path) -> None:
    build_embedded(str(tmp_path))
    for name in ("kernel.elf", "kernel.bzimage"):
        assert (tmp_path / name).read_bytes() == (embedded_dir / name).read_bytes()


def test_embedded_kernel_compiles_without_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "gcc -Werror")
    build_embedded(str(tmp_path))


# The others are entered by PVH and by the 64-bit protocol; this one in 32-bit mode alone.
BY_BOTH_ENTRIES = [name for name in available() if name != "hello_multiboot"]


@pytest.mark.parametrize("name", BY_BOTH_ENTRIES)
def test_test_guest_has_one_entry_for_pvh_and_64_bit(name: str, tmp_path: Path) -> None:
    elf_path = Path(build(name, str(tmp_path)))
    assert xen_notes(elf_path) == [("Xen", 18, LINK_ADDRESS.to_bytes(4, "little"))]
    with open(elf_path, "rb") as file:
        assert ELFFile(file).header["e_entry"] == LINK_ADDRESS


@pytest.mark.parametrize("name", BY_BOTH_ENTRIES)
def test_test_guest_means_the_same_in_32_and_64_bit_mode(name: str, tmp_path: Path) -> None:
    elf_path = build(name, str(tmp_path))

    def instructions(machine: str) -> list[str]:
        """The disassembly of the code, which ends where the data (if any) begins."""
        code = subprocess.run(
            ["objdump", "-d", "-m", machine, "--no-show-raw-insn", elf_path],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        code = code.partition("<message>:")[0].partition("<empty_idt>:")[0]
        lines = [line.partition("\t")[2] for line in code.splitlines() if "\t" in line]
        # One set of operands is named otherwise in the other mode, and LIDT has a suffix in one.
        return [line.replace("%r", "%e").replace("lidtl ", "lidt  ") for line in lines]

    assert instructions("i386") == instructions("i386:x86-64")


def test_build_defines_macros_of_the_source(tmp_path: Path) -> None:
    elf_path = build("pio_loop", str(tmp_path), {"COUNT": 0x1234, "PORT": 0x5678})
    image = memory_image(Path(elf_path))
    assert (0x1234).to_bytes(4, "little") in image
    assert (0x5678).to_bytes(4, "little") in image


def test_build_of_an_unknown_guest_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"no test guest 'nothing'; expected one of .*hello_pvh"):
        build("nothing", str(tmp_path))


def test_build_without_a_compiler_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="'gcc' was not found; install it with `apt-get install"):
        build_embedded(str(tmp_path))


def test_build_without_an_assembler_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gcc").symlink_to("/usr/bin/gcc")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="`apt-get install binutils`"):
        build("spin", str(tmp_path))


def test_build_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"could not build pio_loop\.elf"):
        build("pio_loop", str(tmp_path), {"COUNT": -(1 << 70)})
    assert list(tmp_path.iterdir()) == []
