"""ELF: the header and the program headers; what of them says how to load a kernel.

                    ELF64   ELF32
    Ehdr, at 0         64      52   machine, entry, where the program headers are
    Phdr, each         56      32   PT_LOAD goes to memory, PT_NOTE holds notes (pvh_note.py)

ELF64 is for x86-64. ELF32 is for i386, and is what Multiboot's and PVH's 32-bit kernels are, some
of which switch to 64 bits by themselves.

A kernel is loaded by physical address: every PT_LOAD at its p_paddr. (Debian's vmlinux has a
segment with p_vaddr 0, the per-CPU data, so virtual addresses would not do.) Sections, symbols
and relocations are not read: what is linked to its place needs none of them.

Specification: System V gABI, chapters 4 and 5; x86-64 psABI 4.1; i386 psABI 4; names are <elf.h>'s.

The structures are read here and not with a library because pyvmm starts in less time than an ELF
library takes to be imported. The tests hold the two against each other.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import NamedTuple

from pyvmm.arch.x86_64 import layout
from pyvmm.errors import KernelImageError
from pyvmm.loader.pvh_note import PvhEntry, find_pvh_entry

ELFMAG = b"\x7fELF"
EI_CLASS, EI_DATA = 4, 5
ELFCLASS32, ELFCLASS64 = 1, 2
ELFDATA2LSB, ELFDATA2MSB = 1, 2
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
PF_X, PF_W, PF_R = 1, 2, 4

_EHDR64 = struct.Struct("<16sHHIQQQIHHHHHH")
_EHDR32 = struct.Struct("<16sHHIIIIIHHHHHH")
_PHDR64 = struct.Struct("<IIQQQQQQ")
_PHDR32 = struct.Struct("<IIIIIIII")

# A limit on the work that an image can make us do: Linux's vmlinux has 5. It rules out PN_XNUM,
# too: e_phnum 0xffff, the count is elsewhere.
MAX_PROGRAM_HEADERS = 256

_MACHINES = {
    3: "i386",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC 64",
    22: "S/390",
    62: "x86-64",
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
    """``Elf64_Ehdr`` or ``Elf32_Ehdr``: the fields are the same."""

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

    @property
    def is_64(self) -> bool:
        """Whether the file is ELF64."""
        return self.e_ident[EI_CLASS] == ELFCLASS64


class Phdr(NamedTuple):
    """``Elf64_Phdr``; of an ``Elf32_Phdr`` the same in this order."""

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
    pvh: PvhEntry
    is_64: bool


def read_header(data: memoryview) -> Ehdr:
    """The ELF header of ``data``, which begins with ELFMAG.

    Raises KernelImageError unless it is that of an executable for x86-64, or i386.
    """
    if data[: len(ELFMAG)] != ELFMAG:
        raise KernelImageError(
            f"begins with the bytes {bytes(data[:4]).hex(' ')}; expected ELF (7f 45 4c 46)",
            "elf-magic",
        )
    if len(data) < _EHDR32.size:
        raise _cut_off_header(len(data), _EHDR32.size)
    elf_class, elf_data = data[EI_CLASS], data[EI_DATA]
    # e_machine lies at the same place in both classes, but its bytes follow EI_DATA.
    big_endian = elf_data == ELFDATA2MSB
    number = int.from_bytes(data[18:20], "big" if big_endian else "little")
    machine = _MACHINES.get(number, f"machine {number}")
    if elf_class not in (ELFCLASS32, ELFCLASS64):
        raise KernelImageError(
            f"is an ELF file with a damaged header (EI_CLASS {elf_class}); expected 2 (64-bit) or "
            "1 (32-bit); get a fresh copy",
            "elf-class",
        )
    if elf_data not in (ELFDATA2LSB, ELFDATA2MSB):
        raise KernelImageError(
            f"is an ELF file with a damaged header (EI_DATA {elf_data}); expected 1 "
            "(little-endian); get a fresh copy",
            "elf-data",
        )
    expected = EM_X86_64 if elf_class == ELFCLASS64 else EM_386
    if number not in (EM_X86_64, EM_386):
        raise KernelImageError(
            f"is an ELF file for {machine}; expected x86-64 (EM_X86_64, {EM_X86_64}); use a kernel "
            "built for x86-64",
            "elf-machine",
        )
    if number != expected:
        raise KernelImageError(
            f"is a {32 * elf_class}-bit ELF file for {machine}; expected a 64-bit one for x86-64, "
            "or a 32-bit one for i386; link it as one of these",
            "elf-class-machine",
        )
    if big_endian:
        raise KernelImageError(
            f"is a big-endian ELF file for {machine}, which is always little-endian; "
            "get a fresh copy",
            "elf-big-endian",
        )
    ehdr_format = _EHDR64 if elf_class == ELFCLASS64 else _EHDR32
    if len(data) < ehdr_format.size:
        raise _cut_off_header(len(data), ehdr_format.size)
    ehdr = Ehdr._make(ehdr_format.unpack_from(data))
    if ehdr.e_type not in (ET_EXEC, ET_DYN):
        what = _NOT_A_KERNEL.get(ehdr.e_type, f"an ELF file of type {ehdr.e_type}")
        raise KernelImageError(f"is {what}; expected an executable (ET_EXEC)", "elf-type")
    return ehdr


def _cut_off_header(size_bytes: int, header_bytes: int) -> KernelImageError:
    return KernelImageError(
        f"is an ELF file cut off after {size_bytes} bytes; its header alone has {header_bytes}; "
        "get a complete copy",
        "elf-header-size",
    )


def parse(data: memoryview, *, lowest_gpa: int = layout.HIMEM_GPA) -> ElfKernel:
    """The kernel in ``data``, which begins with ELFMAG.

    All that does not need guest memory is checked: each segment is within the file, at
    ``lowest_gpa`` or above, and overlaps no other; the entry is in one of them.

    Raises KernelImageError if it cannot be loaded.
    """
    ehdr = read_header(data)
    phdrs = read_program_headers(data, ehdr)
    if any(phdr.p_type == PT_INTERP for phdr in phdrs):
        raise KernelImageError(
            "is a user program (it asks for an interpreter, PT_INTERP); expected a kernel; to run "
            "it in a guest put it into an initramfs",
            "elf-interpreter",
        )
    segments = _check_segments(data, phdrs, lowest_gpa, ehdr.is_64)
    entry_gpa = _physical_entry(ehdr.e_entry, segments, lowest_gpa)
    pvh = find_pvh_entry(
        data,
        [(phdr.p_offset, phdr.p_filesz) for phdr in phdrs if phdr.p_type == PT_NOTE],
        lambda gpa: _holds(segments, gpa),
        max(phdr.p_align for phdr in segments),
    )
    return ElfKernel(entry_gpa, segments, pvh, ehdr.is_64)


def read_program_headers(data: memoryview, ehdr: Ehdr) -> list[Phdr]:
    """All of them, in the file's order. Raises KernelImageError if they are not there."""
    phdr_format = _PHDR64 if ehdr.is_64 else _PHDR32
    ehdr_size = (_EHDR64 if ehdr.is_64 else _EHDR32).size
    if ehdr.e_phnum == 0:
        raise KernelImageError(
            "is an ELF file without program headers; nothing says what to load; link it as a "
            "kernel",
            "elf-phnum-none",
        )
    if ehdr.e_phentsize != phdr_format.size:
        raise KernelImageError(
            f"is an ELF file whose e_phentsize is {ehdr.e_phentsize}; expected {phdr_format.size} "
            f"({'Elf64' if ehdr.is_64 else 'Elf32'}_Phdr); the image is damaged",
            "elf-phentsize",
        )
    if ehdr.e_phnum > MAX_PROGRAM_HEADERS:
        raise KernelImageError(
            f"is an ELF file with {ehdr.e_phnum} program headers; expected at most "
            f"{MAX_PROGRAM_HEADERS} of a kernel; the image is damaged",
            "elf-phnum-many",
        )
    if ehdr.e_phoff < ehdr_size:
        raise KernelImageError(
            f"is an ELF file whose program headers begin at {ehdr.e_phoff}, in its header, which "
            f"has {ehdr_size} bytes; the image is damaged",
            "elf-phoff",
        )
    end = ehdr.e_phoff + ehdr.e_phnum * phdr_format.size
    if end > len(data):
        raise KernelImageError(
            f"is an ELF file cut off after {len(data)} bytes; its program headers end at {end}; "
            "get a complete copy",
            "elf-phdrs-truncated",
        )
    table = data[ehdr.e_phoff : end]
    if ehdr.is_64:
        return [Phdr._make(fields) for fields in _PHDR64.iter_unpack(table)]
    # In Elf32_Phdr p_flags stands behind the sizes.
    return [
        Phdr._make((p_type, p_flags, *rest, p_align))
        for p_type, *rest, p_flags, p_align in _PHDR32.iter_unpack(table)
    ]


def _check_segments(
    data: memoryview, phdrs: list[Phdr], lowest_gpa: int, is_64: bool
) -> tuple[Phdr, ...]:
    """The PT_LOADs that occupy memory, in the order of their addresses."""
    segments: list[Phdr] = []
    for index, phdr in enumerate(phdrs):
        if phdr.p_type != PT_LOAD:
            continue
        if phdr.p_filesz > phdr.p_memsz:
            raise KernelImageError(
                f"has a segment (program header {index}) with more bytes in the file, "
                f"{phdr.p_filesz:#x}, than in memory, {phdr.p_memsz:#x}; the image is damaged",
                "elf-filesz",
            )
        if phdr.p_memsz == 0:
            continue
        if phdr.end_gpa > 1 << (64 if is_64 else 32):
            raise KernelImageError(
                f"has a segment (program header {index}) of {phdr.p_memsz:#x} bytes at "
                f"{phdr.p_paddr:#x}, which reaches beyond the highest address; "
                "the image is damaged",
                "elf-address-overflow",
            )
        if phdr.p_filesz and phdr.p_offset + phdr.p_filesz > len(data):
            raise KernelImageError(
                f"is cut off after {len(data)} bytes; its segment for {phdr.p_paddr:#x} ends at "
                f"{phdr.p_offset + phdr.p_filesz} in the file; get a complete copy",
                "elf-segment-truncated",
            )
        if phdr.p_paddr < lowest_gpa:
            raise KernelImageError(
                f"has a segment at physical address {phdr.p_paddr:#x}; below "
                f"{lowest_gpa:#x} are the tables that it is booted with; link it to "
                f"{lowest_gpa:#x} or above",
                "elf-segment-low",
            )
        segments.append(phdr)
    if not segments:
        raise KernelImageError(
            "is an ELF file without a loadable segment (PT_LOAD); link it as a kernel",
            "elf-no-segment",
        )
    segments.sort(key=lambda phdr: phdr.p_paddr)
    for lower, upper in pairwise(segments):
        if lower.end_gpa > upper.p_paddr:
            raise KernelImageError(
                f"has segments that overlap in memory: {lower.p_paddr:#x}..{lower.end_gpa:#x} and "
                f"{upper.p_paddr:#x}..{upper.end_gpa:#x}; link it without the overlap",
                "elf-segment-overlap",
            )
    return tuple(segments)


def _physical_entry(e_entry: int, segments: tuple[Phdr, ...], lowest_gpa: int) -> int:
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
            raise _no_entry(e_entry, lowest_gpa)
    if entry_gpa >= layout.GAP_END:
        raise KernelImageError(
            f"has its entry point at physical address {entry_gpa:#x}; expected one below 4 GiB, "
            "which is what is mapped when a kernel is entered; link it lower",
            "elf-entry-high",
        )
    return entry_gpa


def _no_entry(e_entry: int, lowest_gpa: int) -> KernelImageError:
    if e_entry < lowest_gpa:
        return KernelImageError(
            f"has its entry point at {e_entry:#x}; expected {lowest_gpa:#x} or above, where its "
            "segments are; check the linker script's ENTRY",
            "elf-entry-low",
        )
    return KernelImageError(
        f"has its entry point at {e_entry:#x}, in none of its segments, neither by physical nor "
        "by virtual address; check the linker script's ENTRY",
        "elf-entry-outside",
    )


def _holds(segments: tuple[Phdr, ...], gpa: int) -> bool:
    return any(phdr.p_paddr <= gpa < phdr.end_gpa for phdr in segments)
