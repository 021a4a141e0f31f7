"""ELF64: the header, the program headers, the notes; what of them says how to load a kernel.

    Elf64_Ehdr      64 bytes at 0: machine, entry, where the program headers are
    Elf64_Phdr[]    56 bytes each: PT_LOAD goes to memory, PT_NOTE holds notes
    Elf64_Nhdr      12 bytes, then the name and the description, each padded to 4 bytes

A kernel is loaded by physical address: every PT_LOAD at its p_paddr. (Debian's vmlinux has a
segment with p_vaddr 0, the per-CPU data, so virtual addresses would not do.) Sections, symbols
and relocations are not read: what is linked to its place needs none of them.

Specification: System V gABI, chapters 4 and 5; x86-64 psABI 4.1; names are <elf.h>'s. The PVH
note: Xen, docs/misc/pvh.pandoc and public/elfnote.h.

The structures are read here and not with a library because pyvmm starts in less time than an ELF
library takes to be imported. The tests hold the two against each other.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import NamedTuple

from pyvmm.arch.x86_64 import layout
from pyvmm.errors import KernelImageError
from pyvmm.units import KiB, align_up

ELFMAG = b"\x7fELF"
EI_CLASS, EI_DATA = 4, 5
ELFCLASS32, ELFCLASS64 = 1, 2
ELFDATA2LSB, ELFDATA2MSB = 1, 2
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
EM_X86_64 = 62
PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
PF_X, PF_W, PF_R = 1, 2, 4

XEN_NOTE_NAME = b"Xen\x00"
XEN_ELFNOTE_PHYS32_ENTRY = 18

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_NHDR = struct.Struct("<III")

# Limits on the work that an image can make us do. Linux's vmlinux has 5 program headers and
# 512 bytes of notes. The first rules out PN_XNUM, too: e_phnum 0xffff, the count is elsewhere.
MAX_PROGRAM_HEADERS = 256
MAX_NOTES_BYTES = 64 * KiB

_MACHINES = {
    3: "i386",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC 64",
    22: "S/390",
    40: "ARM",
    183: "ARM64",
    243: "RISC-V",
    258: "LoongArch",
}

_NOT_A_KERNEL = {
    ET_REL: "an object file or kernel module (ET_REL); link it into a kernel first",
    ET_CORE: "a core dump (ET_CORE); use the kernel that dumped it",
}


class Ehdr(NamedTuple):
    """``Elf64_Ehdr``."""

    e_ident: bytes
    e_type: int
    e_machine: int
    e_version: int
    e_entry: int
    e_phoff: int
    e_shoff: int
    e_flags: int
    e_ehsize: int
    e_phentsize: int
    e_phnum: int
    e_shentsize: int
    e_shnum: int
    e_shstrndx: int


class Phdr(NamedTuple):
    """``Elf64_Phdr``."""

    p_type: int
    p_flags: int
    p_offset: int
    p_vaddr: int
    p_paddr: int
    p_filesz: int
    p_memsz: int
    p_align: int

    @property
    def end_gpa(self) -> int:
        """The physical address after the segment's last byte."""
        return self.p_paddr + self.p_memsz

    @property
    def rights(self) -> str:
        """p_flags as letters: ``r-x``."""
        return "".join(
            letter if self.p_flags & bit else "-"
            for letter, bit in (("r", PF_R), ("w", PF_W), ("x", PF_X))
        )


class ElfKernel(NamedTuple):
    """What loading and entering needs to know. Segments are in the order of their addresses."""

    entry_gpa: int
    segments: tuple[Phdr, ...]
    pvh_entry_gpa: int | None
    pvh_problem: str | None
    """Why there is no PVH entry although the notes, or what is left of them, try to give one."""


def read_header(data: memoryview) -> Ehdr:
    """The ELF header of ``data``, which begins with ELFMAG.

    Raises KernelImageError unless it is that of an x86-64 executable.
    """
    if len(data) < _EHDR.size:
        raise KernelImageError(
            f"is an ELF file cut off after {len(data)} bytes; its header alone has {_EHDR.size}; "
            "get a complete copy"
        )
    ehdr = Ehdr._make(_EHDR.unpack_from(data))
    elf_class, elf_data = ehdr.e_ident[EI_CLASS], ehdr.e_ident[EI_DATA]
    # e_machine lies at the same place in both classes, but its bytes follow EI_DATA.
    big_endian = elf_data == ELFDATA2MSB
    number = int.from_bytes(data[18:20], "big" if big_endian else "little")
    machine = _MACHINES.get(number, f"machine {number}")
    if elf_class not in (ELFCLASS32, ELFCLASS64) or elf_data not in (ELFDATA2LSB, ELFDATA2MSB):
        raise KernelImageError(
            f"is an ELF file with a damaged header (EI_CLASS {elf_class}, EI_DATA {elf_data}); "
            "expected 2 and 1; get a fresh copy"
        )
    if number != EM_X86_64 and not (elf_class == ELFCLASS32 and machine == "i386"):
        raise KernelImageError(
            f"is an ELF file for {machine}; expected x86-64 (EM_X86_64, {EM_X86_64}); use a kernel "
            "built for x86-64"
        )
    if elf_class == ELFCLASS32:
        raise KernelImageError(
            "is a 32-bit ELF file; expected ELF64 for x86-64; a 32-bit kernel boots from its "
            "bzImage with --decompress guest --protocol linux32"
        )
    if big_endian:
        raise KernelImageError("is a big-endian ELF file for x86-64, which is always little-endian")
    if ehdr.e_type not in (ET_EXEC, ET_DYN):
        what = _NOT_A_KERNEL.get(ehdr.e_type, f"an ELF file of type {ehdr.e_type}")
        raise KernelImageError(f"is {what}; expected an executable (ET_EXEC)")
    return ehdr


def parse(data: memoryview) -> ElfKernel:
    """The kernel in ``data``, which begins with ELFMAG. All that does not need guest memory is
    checked: each segment is within the file, above the first MiB, and overlaps no other.

    Raises KernelImageError if it cannot be loaded.
    """
    ehdr = read_header(data)
    phdrs = _read_program_headers(data, ehdr)
    if any(phdr.p_type == PT_INTERP for phdr in phdrs):
        raise KernelImageError(
            "is a user program (it asks for an interpreter, PT_INTERP); expected a kernel; to run "
            "it in a guest put it into an initramfs"
        )
    segments = _check_segments(data, phdrs)
    entry_gpa = _physical_entry(ehdr.e_entry, segments)
    pvh_entry_gpa, pvh_problem = _find_pvh_entry(data, phdrs, segments)
    return ElfKernel(entry_gpa, segments, pvh_entry_gpa, pvh_problem)


def _read_program_headers(data: memoryview, ehdr: Ehdr) -> list[Phdr]:
    if ehdr.e_phnum == 0:
        raise KernelImageError("is an ELF file without program headers; nothing says what to load")
    if ehdr.e_phentsize != _PHDR.size:
        raise KernelImageError(
            f"is an ELF file whose e_phentsize is {ehdr.e_phentsize}; expected {_PHDR.size} "
            "(Elf64_Phdr); the image is damaged"
        )
    if ehdr.e_phnum > MAX_PROGRAM_HEADERS:
        raise KernelImageError(
            f"is an ELF file with {ehdr.e_phnum} program headers; expected at most "
            f"{MAX_PROGRAM_HEADERS} of a kernel; the image is damaged"
        )
    end = ehdr.e_phoff + ehdr.e_phnum * _PHDR.size
    if end > len(data):
        raise KernelImageError(
            f"is an ELF file cut off after {len(data)} bytes; its program headers end at {end}; "
            "get a complete copy"
        )
    return [Phdr._make(fields) for fields in _PHDR.iter_unpack(data[ehdr.e_phoff : end])]


def _check_segments(data: memoryview, phdrs: list[Phdr]) -> tuple[Phdr, ...]:
    """The PT_LOADs that occupy memory, in the order of their addresses."""
    segments: list[Phdr] = []
    for index, phdr in enumerate(phdrs):
        if phdr.p_type != PT_LOAD:
            continue
        if phdr.p_filesz > phdr.p_memsz:
            raise KernelImageError(
                f"has a segment (program header {index}) with more bytes in the file, "
                f"{phdr.p_filesz:#x}, than in memory, {phdr.p_memsz:#x}; the image is damaged"
            )
        if phdr.p_memsz == 0:
            continue
        if phdr.p_filesz and phdr.p_offset + phdr.p_filesz > len(data):
            raise KernelImageError(
                f"is cut off after {len(data)} bytes; its segment for {phdr.p_paddr:#x} ends at "
                f"{phdr.p_offset + phdr.p_filesz} in the file; get a complete copy"
            )
        if phdr.p_paddr < layout.HIMEM_GPA:
            raise KernelImageError(
                f"has a segment at physical address {phdr.p_paddr:#x}; below "
                f"{layout.HIMEM_GPA:#x} are the tables that it is booted with; link it to "
                f"{layout.HIMEM_GPA:#x} or above"
            )
        segments.append(phdr)
    if not segments:
        raise KernelImageError("is an ELF file without a loadable segment (PT_LOAD)")
    segments.sort(key=lambda phdr: phdr.p_paddr)
    for lower, upper in pairwise(segments):
        if lower.end_gpa > upper.p_paddr:
            raise KernelImageError(
                f"has segments that overlap in memory: {lower.p_paddr:#x}..{lower.end_gpa:#x} and "
                f"{upper.p_paddr:#x}..{upper.end_gpa:#x}; link it without the overlap"
            )
    return tuple(segments)


def _physical_entry(e_entry: int, segments: tuple[Phdr, ...]) -> int:
    """The physical address of the entry point.

    The gABI makes e_entry a virtual address. Linux gives a physical one (phys_startup_64 in
    arch/x86/kernel/vmlinux.lds.S), as its entry runs before the kernel's own page tables are
    there; so an address that is physically in a segment is taken as that.
    """
    entry_gpa = e_entry
    if not _holds(segments, e_entry):
        for phdr in segments:
            if phdr.p_vaddr <= e_entry < phdr.p_vaddr + phdr.p_memsz:
                entry_gpa = phdr.p_paddr + e_entry - phdr.p_vaddr
                break
        else:
            raise KernelImageError(
                f"has its entry point at {e_entry:#x}, in none of its segments, neither by "
                "physical nor by virtual address; check the linker script's ENTRY"
            )
    if entry_gpa >= layout.GAP_END:
        raise KernelImageError(
            f"has its entry point at physical address {entry_gpa:#x}; expected one below 4 GiB, "
            "which is what is mapped when a kernel is entered; link it lower"
        )
    return entry_gpa


def _holds(segments: tuple[Phdr, ...], gpa: int) -> bool:
    return any(phdr.p_paddr <= gpa < phdr.end_gpa for phdr in segments)


def _find_pvh_entry(
    data: memoryview, phdrs: list[Phdr], segments: tuple[Phdr, ...]
) -> tuple[int | None, str | None]:
    """The entry that the PHYS32_ENTRY note gives, or what is wrong with it; neither if absent."""
    problem: str | None = None
    for phdr in phdrs:
        if phdr.p_type != PT_NOTE:
            continue
        try:
            desc = _find_note(data, phdr, XEN_NOTE_NAME, XEN_ELFNOTE_PHYS32_ENTRY)
            if desc is None:
                continue
            if len(desc) not in (4, 8):
                raise ValueError(f"it has {len(desc)} bytes; expected 4 or 8")
            entry_gpa = int.from_bytes(desc, "little")
            if not _holds(segments, entry_gpa):
                raise ValueError(f"its entry {entry_gpa:#x} is in none of the segments")
            if entry_gpa >= layout.GAP_END:
                raise ValueError(f"its entry {entry_gpa:#x} is not a 32-bit address")
        except ValueError as error:
            problem = str(error)
        else:
            return entry_gpa, None
    return None, problem


def _find_note(data: memoryview, phdr: Phdr, name: bytes, kind: int) -> memoryview | None:
    """The description of the first note ``name``/``kind`` in a PT_NOTE segment, None if none.

    The parts of a note are padded to 4 bytes whatever p_align says: the gABI's 8 for ELF64 is
    followed by .note.gnu.property alone, and its own parts are multiples of 8 anyway.

    Raises ValueError, saying why, if the notes cannot be read that far.
    """
    if phdr.p_offset + phdr.p_filesz > len(data):
        raise ValueError("the notes reach beyond the end of the file")
    if phdr.p_filesz > MAX_NOTES_BYTES:
        raise ValueError(f"the notes have {phdr.p_filesz} bytes; expected at most 64 KiB")
    notes = data[phdr.p_offset : phdr.p_offset + phdr.p_filesz]
    position = 0
    while position + _NHDR.size <= len(notes):
        namesz, descsz, note_type = _NHDR.unpack_from(notes, position)
        desc = position + _NHDR.size + align_up(namesz, 4)
        if desc + descsz > len(notes):
            raise ValueError(
                f"the note at {position:#x} of the notes (namesz {namesz}, descsz {descsz}) "
                f"reaches beyond their end, {len(notes):#x}"
            )
        start = position + _NHDR.size
        if note_type == kind and notes[start : start + namesz] == name:
            return notes[desc : desc + descsz]
        position = desc + align_up(descsz, 4)
    return None
