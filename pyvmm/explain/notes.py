"""ELF notes: what a kernel says of itself to debuggers, to Xen, and to any VMM that speaks PVH.

    namesz, descsz, type    4 bytes each
    name                    with its NUL, padded to 4 bytes: who defined the type
    desc                    padded to 4 bytes

Specifications: System V gABI, chapter 5, "Note Section"; GNU's notes: <elf.h>; Xen's:
xen/include/public/elfnote.h; Linux's own: include/linux/build-salt.h and elfnote-lto.h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pyvmm.explain.fields import address, cell, text_cell
from pyvmm.explain.model import Cell, Column, Section, Table, printable
from pyvmm.loader.pvh_note import Note

MAX_NOTES = 128
"""More than any kernel has; Linux has about 20. Of a hostile file no more are shown."""


# How a description is shown.


def _text(desc: bytes) -> str:
    return f'"{printable(desc.rstrip(bytes(1)).decode("utf-8", "backslashreplace"))}"'


def _hexadecimal(desc: bytes) -> str:
    return desc.hex() if len(desc) <= 32 else f"{desc[:32].hex()}..."


def _number(desc: bytes) -> str:
    return address(int.from_bytes(desc, "little")) if len(desc) in (4, 8) else _hexadecimal(desc)


def _numbers(desc: bytes) -> str:
    words = (desc[start : start + 4] for start in range(0, len(desc), 4))
    return ", ".join(address(int.from_bytes(word, "little")) for word in words)


class _Kind(NamedTuple):
    """What a type of note is called, how its description is shown, and what it is for."""

    name: str
    show: Callable[[bytes], str]
    meaning: str


_KINDS = {
    (b"GNU", 1): _Kind("NT_GNU_ABI_TAG", _hexadecimal, "the oldest kernel that this program needs"),
    (b"GNU", 3): _Kind("NT_GNU_BUILD_ID", _hexadecimal, "the same for the same build: a hash"),
    (b"GNU", 5): _Kind("NT_GNU_PROPERTY_TYPE_0", _hexadecimal, "properties, such as IBT and SHSTK"),
    (b"Linux", 0x100): _Kind(
        "LINUX_ELFNOTE_BUILD_SALT", _text, "makes build ids differ (CONFIG_BUILD_SALT)"
    ),
    (b"Linux", 0x101): _Kind(
        "LINUX_ELFNOTE_LTO_INFO", _number, "1 if built with link-time optimization"
    ),
    (b"Xen", 0): _Kind("XEN_ELFNOTE_INFO", _hexadecimal, "not used"),
    (b"Xen", 1): _Kind("XEN_ELFNOTE_ENTRY", _number, "PV: the entry, a virtual address"),
    (b"Xen", 2): _Kind("XEN_ELFNOTE_HYPERCALL_PAGE", _number, "PV: where calls to Xen go"),
    (b"Xen", 3): _Kind("XEN_ELFNOTE_VIRT_BASE", _number, "PV: the virtual address of memory"),
    (b"Xen", 4): _Kind("XEN_ELFNOTE_PADDR_OFFSET", _number, "PV: what p_paddr counts from"),
    (b"Xen", 5): _Kind("XEN_ELFNOTE_XEN_VERSION", _text, "PV: the interface that is spoken"),
    (b"Xen", 6): _Kind("XEN_ELFNOTE_GUEST_OS", _text, "the operating system"),
    (b"Xen", 7): _Kind("XEN_ELFNOTE_GUEST_VERSION", _text, "its version, or what it says"),
    (b"Xen", 8): _Kind("XEN_ELFNOTE_LOADER", _text, "PV: the kind of loader"),
    (b"Xen", 9): _Kind("XEN_ELFNOTE_PAE_MODE", _text, "PV, 32-bit: page tables of 64-bit entries"),
    (b"Xen", 10): _Kind("XEN_ELFNOTE_FEATURES", _text, "features; ! marks what it needs"),
    (b"Xen", 11): _Kind("XEN_ELFNOTE_BSD_SYMTAB", _text, "wants its symbol table loaded"),
    (b"Xen", 12): _Kind("XEN_ELFNOTE_HV_START_LOW", _number, "PV: the lowest address for Xen"),
    (b"Xen", 13): _Kind("XEN_ELFNOTE_L1_MFN_VALID", _hexadecimal, "PV: mask and value of PTEs"),
    (b"Xen", 14): _Kind("XEN_ELFNOTE_SUSPEND_CANCEL", _number, "PV: can cancel a suspend"),
    (b"Xen", 15): _Kind("XEN_ELFNOTE_INIT_P2M", _number, "PV: where the frame list is mapped"),
    (b"Xen", 16): _Kind("XEN_ELFNOTE_MOD_START_PFN", _number, "PV: takes an initrd not mapped"),
    (b"Xen", 17): _Kind("XEN_ELFNOTE_SUPPORTED_FEATURES", _number, "features, by their numbers"),
    (b"Xen", 18): _Kind("XEN_ELFNOTE_PHYS32_ENTRY", _number, "PVH: the 32-bit physical entry"),
    (b"Xen", 19): _Kind(
        "XEN_ELFNOTE_PHYS32_RELOC", _numbers, "PVH: can be moved: alignment, lowest, highest"
    ),
}

_COLUMNS = (
    Column("offset", "where the note lies in the file"),
    Column("owner", "who defined the type"),
    Column("type", "what the description is"),
    Column("desc", "the description"),
    Column("meaning", "what it says"),
)


def describe(key: str, title: str, notes: list[Note], problem: str) -> Section:
    """The section about ``notes``, and the ``problem`` that kept more from being read, if any."""
    about = (
        "A PT_NOTE segment holds notes. Those of Xen that say PV are for its paravirtual mode, "
        "which pyvmm does not have; PHYS32_ENTRY is PVH's, and makes that protocol possible."
    )
    if problem:
        about = f"There is more that cannot be read: {problem}. {about}"
    return Section(
        key,
        title,
        "System V gABI 5, Note Section; xen/include/public/elfnote.h",
        about,
        table=Table(_COLUMNS, tuple(_row(note) for note in notes)),
    )


def _row(note: Note) -> tuple[Cell, ...]:
    name, desc = note.name.rstrip(b"\0"), bytes(note.desc)
    kind = _KINDS.get((name, note.type))
    if kind is None:
        kind = _Kind(f"type {note.type:#x}", _hexadecimal, "not known here")
    return (
        cell(note.offset),
        text_cell(printable(name.decode("latin-1"))),
        Cell(note.type, kind.name),
        Cell(desc.hex(), kind.show(desc)),
        text_cell(kind.meaning),
    )
