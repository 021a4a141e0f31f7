"""KASLR by the VMM: a kernel is moved before it runs, as its own decompressor would have moved it.

A kernel has two places, and each can be chosen freely:

    physical   where its bytes lie: it finds out by itself, at its 64-bit entry (startup_64)
    virtual    where it maps itself: every absolute address in its code and data depends on that

For the second, the build of a kernel with CONFIG_RANDOMIZE_BASE appends a table to the vmlinux,
before it is compressed: the addresses of all numbers that must change with the virtual base.

    end of the ELF   +----------------------------------------+
                     | 0, addresses of 64-bit numbers         |  offset is added
                     | 0, addresses of inverse 32-bit numbers |  offset is subtracted
                     | 0, addresses of 32-bit numbers         |  offset is added
    end of payload   +----------------------------------------+

Each address is that of the kernel as it was linked, 32 bits that are extended with their sign. An
address is never 0, so the zeros separate. The inverse ones were needed for per-CPU variables that
were linked at 0; since Linux 6.15 they are not, and there are two lists.

The kernel is told that it was moved (KASLR_FLAG in boot_params); it then moves its modules and its
memory areas at random, too.

Specification: Linux 6.12, arch/x86/boot/compressed/misc.c (handle_relocations), kaslr.c (where a
kernel may go) and arch/x86/tools/relocs.c (emit_relocs). Unlike there, the physical base is below
4 GiB, where everything is that a kernel is entered with, and an initrd stays above it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.errors import KernelImageError
from pyvmm.loader import elf
from pyvmm.loader.initrd import addr_max
from pyvmm.units import PAGE_SIZE, GiB, MiB, align_down, align_up, format_size

if TYPE_CHECKING:
    from pyvmm.loader.bzimage import SetupHeader
    from pyvmm.loader.elf import Phdr
    from pyvmm.memory import GuestMemory

START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000  # __START_KERNEL_map, asm/page_64_types.h
KERNEL_IMAGE_SIZE = 1 * GiB  # with CONFIG_RANDOMIZE_BASE, asm/page_64_types.h
MIN_KERNEL_ALIGN = 2 * MiB  # asm/boot.h: what one entry of the kernel's page tables maps
LOWEST_PHYSICAL_BASE = 512 * MiB  # kaslr.c: or where the kernel was linked to, if that is lower

RELOCATION_BYTES = 4


class Kaslr(NamedTuple):
    """Where a kernel shall go: at these bases, or where one is None, at a random one."""

    physical_base: int | None = None
    virtual_base: int | None = None
    """The address of its first byte, ``_text``, as the kernel sees it."""


class Move(NamedTuple):
    """Where a kernel went."""

    physical_base: int
    virtual_base: int
    virtual_offset: int
    """By how much ``virtual_base`` is above the address that the kernel was linked to: what it
    calls "Kernel Offset" when it panics."""


class Relocations(NamedTuple):
    """The table of a kernel: lists of 32-bit addresses, as they are in the file."""

    add64: memoryview
    subtract32: memoryview
    add32: memoryview


def read_relocations(vmlinux: memoryview, segments: tuple[Phdr, ...]) -> Relocations:
    """The table behind the ELF file in ``vmlinux``, which has these ``segments``.

    Raises KernelImageError if there is none, or it is not of the format above.
    """
    from pyvmm.loader._relocate import ffi, lib

    table = vmlinux[_end_of_elf(vmlinux, segments) :]
    if not len(table):
        raise KernelImageError(
            "has no relocations behind its ELF file, so it cannot be moved; expected a kernel "
            "built with CONFIG_RANDOMIZE_BASE, in its bzImage or unpacked by 'pyvmm extract'; "
            "boot it without --kaslr",
            "kaslr-no-relocations",
        )
    if len(table) % RELOCATION_BYTES:
        raise KernelImageError(
            f"has {len(table)} bytes behind its ELF file; expected relocations, of "
            f"{RELOCATION_BYTES} bytes each; boot it without --kaslr",
            "kaslr-table-size",
        )
    data = ffi.from_buffer("uint8_t[]", table)
    lists: list[memoryview] = []  # the last list first
    end = len(table) // RELOCATION_BYTES
    while end and len(lists) <= 3:
        zero = lib.last_zero(data, end)
        if zero == end:
            break
        lists.append(table[(zero + 1) * RELOCATION_BYTES : end * RELOCATION_BYTES])
        end = zero
    if end or len(lists) not in (2, 3):
        raise KernelImageError(
            f"has {len(table)} bytes behind its ELF file that are not relocations; expected two "
            "or three lists of addresses, a zero before each; boot it without --kaslr",
            "kaslr-table-lists",
        )
    add32, *inverse, add64 = lists
    return Relocations(add64, inverse[0] if inverse else table[:0], add32)


def choose(
    wanted: Kaslr,
    segments: tuple[Phdr, ...],
    header: SetupHeader | None,
    memory: GuestMemory,
    initrd_bytes: int,
) -> Move:
    """Where the kernel with these ``segments`` goes, which is where ``wanted`` says or leaves open.

    Above it there will be room for an initrd of ``initrd_bytes``.

    Raises KernelImageError if there is no place for the kernel, or it cannot be the one wanted.
    """
    first = segments[0]
    if first.p_vaddr - first.p_paddr != START_KERNEL_MAP:
        raise KernelImageError(
            f"is linked to virtual address {first.p_vaddr:#x} for physical address "
            f"{first.p_paddr:#x}; expected {START_KERNEL_MAP + first.p_paddr:#x}, as Linux for "
            "x86-64 is; boot it without --kaslr",
            "kaslr-link-address",
        )
    alignment = header.kernel_alignment if header else MIN_KERNEL_ALIGN
    if alignment < MIN_KERNEL_ALIGN or alignment & (alignment - 1):
        raise KernelImageError(
            f"has kernel_alignment {alignment:#x} in its setup header; expected a power of two, "
            f"{MIN_KERNEL_ALIGN:#x} or more; the image is damaged",
            "kaslr-kernel-alignment",
        )
    # init_size: what it needs before it can look at its memory map, which may be more.
    size_bytes = max(segments[-1].end_gpa - first.p_paddr, header.init_size if header else 0)
    end_gpa = memory.regions[0].end_gpa
    if initrd_bytes:
        end_gpa = align_down(min(end_gpa, addr_max(header) + 1) - initrd_bytes, PAGE_SIZE)
    physical = range(
        align_up(min(first.p_paddr, LOWEST_PHYSICAL_BASE), alignment),
        end_gpa - size_bytes + 1,
        alignment,
    )
    if not physical:
        raise KernelImageError(
            f"cannot be moved: it needs {size_bytes} bytes above {physical.start:#x}, and below "
            f"{max(end_gpa, 0):#x}, where the initrd or the end of RAM is; give the guest more "
            "memory with --mem, or boot it without --kaslr",
            "kaslr-physical-room",
        )
    virtual = range(
        START_KERNEL_MAP + align_up(first.p_paddr, alignment),
        START_KERNEL_MAP + KERNEL_IMAGE_SIZE - align_up(size_bytes, alignment) + 1,
        alignment,
    )
    if not virtual:
        raise KernelImageError(
            f"cannot be moved: it needs {size_bytes} bytes above {virtual.start:#x}, of the "
            f"{format_size(KERNEL_IMAGE_SIZE)} that the kernel is mapped in; boot it without "
            "--kaslr",
            "kaslr-virtual-room",
        )
    physical_base = _one_of(physical, wanted.physical_base, "physical")
    virtual_base = _one_of(virtual, wanted.virtual_base, "virtual")
    return Move(physical_base, virtual_base, virtual_base - first.p_vaddr)


def apply_relocations(
    kernel: memoryview, link_address: int, relocations: Relocations, virtual_offset: int
) -> None:
    """Make ``kernel``, linked to the virtual ``link_address``, right for ``virtual_offset``.

    Raises KernelImageError if a relocation is not inside it; those before it have been applied.
    """
    from pyvmm.loader._relocate import ffi, lib

    target = ffi.from_buffer("uint8_t[]", kernel, require_writable=True)
    for name, addresses, width, delta in (
        ("32-bit", relocations.add32, 4, virtual_offset),
        ("inverse 32-bit", relocations.subtract32, 4, -virtual_offset),
        ("64-bit", relocations.add64, 8, virtual_offset),
    ):
        count = len(addresses) // RELOCATION_BYTES
        done = lib.apply_relocations(
            target,
            len(kernel),
            link_address,
            ffi.from_buffer("uint8_t[]", addresses),
            count,
            width,
            delta & 0xFFFF_FFFF_FFFF_FFFF,
        )
        if done < count:
            start = done * RELOCATION_BYTES
            address = int.from_bytes(addresses[start : start + RELOCATION_BYTES], "little")
            raise KernelImageError(
                f"has a {name} relocation for address {address:#x}; expected one within the "
                f"kernel, which is linked to {link_address & 0xFFFF_FFFF:#x} and has "
                f"{len(kernel):#x} bytes; the image is damaged",
                "kaslr-relocation-bounds",
            )


def _end_of_elf(vmlinux: memoryview, segments: tuple[Phdr, ...]) -> int:
    """Where the ELF file ends that ``vmlinux`` begins with: behind the last thing in it."""
    ehdr = elf.read_header(vmlinux)
    end_of_segments = max(phdr.p_offset + phdr.p_filesz for phdr in segments)
    return max(end_of_segments, ehdr.e_shoff + ehdr.e_shnum * ehdr.e_shentsize)


def _one_of(candidates: range, wanted: int | None, kind: str) -> int:
    """``wanted``, which must be one of the ``candidates``; if it is None, any of them."""
    if wanted is None:
        return candidates[int.from_bytes(os.urandom(8), "little") % len(candidates)]
    if wanted not in candidates:
        raise KernelImageError(
            f"cannot be moved to {kind} address {wanted:#x}; expected a multiple of "
            f"{candidates.step:#x} from {candidates[0]:#x} to {candidates[-1]:#x}; choose one of "
            "these, or leave it to chance",
            "kaslr-base",
        )
    return wanted
