"""What a kernel may be wrapped in: a compressed file, EFI zboot, a unified kernel image.

Specifications: drivers/firmware/efi/libstub/zboot-header.S (Linux 6.12); UAPI.5 (Unified Kernel
Image).
"""

from __future__ import annotations

from collections.abc import Iterator

from pyvmm.errors import KernelImageError
from pyvmm.explain.fields import FieldSpec, human_size, magic, read_fields, size, text
from pyvmm.explain.model import Field, Section, printable
from pyvmm.loader import compressed_file, uki

_ZBOOT = (
    FieldSpec("e_magic", 4, "the magic number of EFI programs: MZ", magic(4)),
    FieldSpec("image_type", 4, "the magic number: zimg", magic(4)),
    FieldSpec("payload_offset", 4, "where the compressed kernel begins"),
    FieldSpec("payload_size", 4, "its size", size),
    FieldSpec("reserved0", 4, "zero"),
    FieldSpec("reserved1", 4, "zero"),
    FieldSpec("comp_type", 8, "how it is compressed", text(8)),
)

# What of a UKI is shown, as text or by its size: names and what they hold.
_UKI_TEXTS = {
    "cmdline": "the kernel's command line, used unless --cmdline is given",
    "osrel": "the system that it is for: its os-release",
    "uname": "what `uname -r` will say",
}
_UKI_TEXT_MAX = 4096


def describe_compressed_file(data: memoryview) -> Iterator[Section]:
    """The section about a file that is compressed as a whole."""
    name = compressed_file.name_of(data)
    yield Section(
        "compressed_file",
        "Compressed file",
        "",
        "The whole file is compressed; the kernel is what is in it.",
        (
            Field("compression", name, name, "by its magic number"),
            Field("size", len(data), human_size(len(data)), "compressed"),
        ),
    )


def describe_zboot(data: memoryview) -> Iterator[Section]:
    """The section about EFI zboot's header."""
    yield Section(
        "zboot_header",
        "EFI zboot header",
        "drivers/firmware/efi/libstub/zboot-header.S",
        "An EFI program that decompresses a kernel, which is another file in this one.",
        read_fields(data, 0, _ZBOOT),
    )


def describe_uki(data: memoryview) -> Iterator[Section]:
    """The section about what a unified kernel image brings along."""
    try:
        parts = uki.parse(data)
    except KernelImageError:
        return
    fields = [
        Field("linux", len(parts.linux), human_size(len(parts.linux)), "the kernel",
              parts.linux_offset),
    ]  # fmt: skip
    if parts.initrd is not None:
        size_bytes = len(parts.initrd)
        meaning = "its initrd, used unless --initrd is given"
        fields.append(Field("initrd", size_bytes, human_size(size_bytes), meaning))
    for name, meaning in _UKI_TEXTS.items():
        value = getattr(parts, name)
        if value is not None:
            shown = printable(value[:_UKI_TEXT_MAX].decode("utf-8", "backslashreplace"))
            fields.append(Field(name, shown, shown, meaning))
    yield Section(
        "uki",
        "Unified kernel image",
        "UAPI.5, Unified Kernel Image",
        "An EFI program with the kernel and all that it needs in its sections.",
        tuple(fields),
    )
