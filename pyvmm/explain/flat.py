"""The Images of arm64 and riscv64: a header in the first 64 bytes.

pyvmm's machine is an x86 PC and boots neither; what they say is told all the same.

Specifications: Documentation/arch/arm64/booting.rst, Documentation/arch/riscv/
boot-image-header.rst (Linux 6.12).
"""

from __future__ import annotations

from collections.abc import Iterator

from pyvmm.explain.fields import BitSpec, FieldSpec, magic, read_fields, size
from pyvmm.explain.model import Section

_PAGE_SIZES = ("unspecified", "4 KiB", "16 KiB", "64 KiB")


def _arm64_flags(value: int) -> str:
    return f"{value:#x} (pages: {_PAGE_SIZES[value >> 1 & 3]})"


def _version(value: int) -> str:
    return f"{value >> 16}.{value & 0xFFFF}"


_ARM64 = (
    FieldSpec("code0", 4, "the first instruction; it spells MZ if there is an EFI stub"),
    FieldSpec("code1", 4, "the second: a branch to the kernel's start"),
    FieldSpec(
        "text_offset", 8, "where it goes, from a 2 MiB-aligned base; 0x80000 if image_size is 0"
    ),
    FieldSpec("image_size", 8, "the memory it takes, its BSS included", size),
    FieldSpec(
        "flags",
        8,
        "byte order, page size, place",
        _arm64_flags,
        (
            BitSpec("big-endian", 1 << 0, "the kernel's byte order; else it is little-endian"),
            BitSpec("anywhere", 1 << 3, "may be anywhere in memory; else as low as possible"),
        ),
    ),
    FieldSpec("res2", 8, "zero"),
    FieldSpec("res3", 8, "zero"),
    FieldSpec("res4", 8, "zero"),
    FieldSpec("magic", 4, "the magic number: ARM and 0x64", magic(4)),
    FieldSpec("res5", 4, "where the PE header is"),
)
_RISCV64 = (
    *_ARM64[:2],
    FieldSpec("text_offset", 8, "where it goes, from a 2 MiB-aligned base"),
    FieldSpec("image_size", 8, "the memory it takes, its BSS included", size),
    FieldSpec(
        "flags",
        8,
        "byte order",
        hex,
        (BitSpec("big-endian", 1 << 0, "the kernel's byte order; else it is little-endian"),),
    ),
    FieldSpec("version", 4, "the header's version", _version),
    FieldSpec("res1", 4, "zero"),
    FieldSpec("res2", 8, "zero"),
    FieldSpec("magic", 8, "the magic number: RISCV; obsolete", magic(8)),
    FieldSpec("magic2", 4, "the magic number: RSC and 0x05", magic(4)),
    FieldSpec("res3", 4, "where the PE header is"),
)


def describe_arm64(data: memoryview) -> Iterator[Section]:
    """The section about an arm64 Image's header."""
    yield Section(
        "arm64_header",
        "arm64 Image header",
        "Documentation/arch/arm64/booting.rst, Call the kernel image",
        "The kernel's memory as it is, behind a header of 64 bytes: it is entered at its first.",
        read_fields(data, 0, _ARM64),
    )


def describe_riscv64(data: memoryview) -> Iterator[Section]:
    """The section about a riscv64 Image's header."""
    yield Section(
        "riscv64_header",
        "riscv64 Image header",
        "Documentation/arch/riscv/boot-image-header.rst",
        "The kernel's memory as it is, behind a header of 64 bytes: it is entered at its first.",
        read_fields(data, 0, _RISCV64),
    )
