"""The initrd: a file placed whole in guest memory, as high as the kernel allows.

PVH and Multiboot call it a module, and know of more than one: each lies below the one before.

It lies between the end of what the kernel touches early and initrd_addr_max, page-aligned, in one
run of RAM. The kernel frees it page by page when it has been unpacked.

Specification: Documentation/arch/x86/boot.rst, initrd_addr_max and ramdisk_image.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyvmm.errors import GuestMemoryError, InitrdError
from pyvmm.loader.files import open_regular
from pyvmm.loader.load import Placement
from pyvmm.units import PAGE_SIZE, align_down, align_up, format_size

if TYPE_CHECKING:
    from pyvmm.loader.bzimage import SetupHeader
    from pyvmm.loader.load import LoadedKernel
    from pyvmm.memory import GuestMemory

# What every x86-64 bzImage states (arch/x86/boot/header.S); a vmlinux has no header to say so.
INITRD_ADDR_MAX_WITHOUT_HEADER = 0x7FFF_FFFF


def place_initrd(
    source: str | bytes | memoryview | None,
    memory: GuestMemory,
    kernel: LoadedKernel,
    *,
    below_gpa: int | None = None,
    name: str = "initrd",
) -> Placement | None:
    """Place the initrd: the file with the path ``source``, or the bytes ``source``.

    It ends at ``below_gpa`` or lower, if that is given. The placement is called ``name``.

    Returns None if there is none, or it is empty: the kernel then gets none.

    Raises InitrdError if the file cannot be read, or does not fit.
    """
    if source is None:
        return None
    if not isinstance(source, str):
        placement = _find_place(len(source), memory, kernel, below_gpa, name)
        if placement is not None:
            memory.write(placement.base_gpa, source)
        return placement
    article = "an" if name[0] in "aeiou" else "a"
    fd, size_bytes = open_regular(source, f"{article} {name}", InitrdError)
    try:
        placement = _find_place(size_bytes, memory, kernel, below_gpa, name)
        if placement is not None:
            memory.read_file(placement.base_gpa, fd, 0, size_bytes)
    except InitrdError as error:
        raise error.about(source) from error
    except (GuestMemoryError, OSError) as error:
        raise InitrdError(f"{source}: {error}", "initrd-read") from error
    finally:
        os.close(fd)
    return placement


def initrd_size(source: str | bytes | memoryview | None) -> int:
    """How large ``source`` is: what ``place_initrd`` will need. Raises InitrdError likewise."""
    if source is None:
        return 0
    if not isinstance(source, str):
        return len(source)
    fd, size_bytes = open_regular(source, "an initrd", InitrdError)
    os.close(fd)
    return size_bytes


def addr_max(header: SetupHeader | None) -> int:
    """The highest address that may hold a byte of an initrd."""
    return header.initrd_addr_max if header else INITRD_ADDR_MAX_WITHOUT_HEADER


def _find_place(
    size_bytes: int, memory: GuestMemory, kernel: LoadedKernel, below_gpa: int | None, name: str
) -> Placement | None:
    if size_bytes == 0:
        return None
    last_gpa = addr_max(kernel.setup_header)
    if below_gpa is not None:
        last_gpa = min(last_gpa, below_gpa - 1)
    lowest_gpa = align_up(kernel.end_gpa, PAGE_SIZE)
    largest_bytes = 0
    for region in reversed(memory.regions):
        end_gpa = min(region.end_gpa, last_gpa + 1)
        lowest_here_gpa = max(region.base_gpa, lowest_gpa)
        base_gpa = align_down(end_gpa - size_bytes, PAGE_SIZE)
        if base_gpa >= lowest_here_gpa:
            return Placement(name, base_gpa, size_bytes)
        largest_bytes = max(largest_bytes, end_gpa - lowest_here_gpa)
    problem = (
        f"the {name} has {size_bytes} bytes; between the kernel's end at {kernel.end_gpa:#x} and "
        f"the highest address that it may lie at, {last_gpa:#x}, there are at most "
        f"{largest_bytes} bytes in {format_size(memory.size_bytes)} of guest memory"
    )
    if memory.end_gpa > last_gpa:
        raise InitrdError(
            f"{problem}; more memory would not help; use a smaller {name}", "initrd-addr-max"
        )
    raise InitrdError(f"{problem}; give the guest more memory with --mem", "initrd-room")
