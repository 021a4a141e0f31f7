"""Placing a kernel: from an image to guest memory, and how it can be entered there.

Four ways:

    ELF                 each PT_LOAD to its p_paddr, or all of them the same distance from there
    bzImage, on HOST    the payload is decompressed by us, and the ELF in it placed likewise
    bzImage, in GUEST   the protected-mode kernel is placed as it is and decompresses itself
    Multiboot           by the addresses in its header, if it has them, even of an ELF

On the host is faster everywhere. In the guest is what a real machine does, and the only way for
32-bit kernels and for compressions whose library is not installed.

The entries differ. A vmlinux has the 64-bit one (e_entry) and perhaps PVH's. It has no 32-bit
Linux entry: the step from 32 to 64 bits is made by the decompressor, at the start of a bzImage's
protected-mode kernel, so that entry exists only in GUEST. There, in turn, PVH's note is still
compressed.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.arch.x86_64 import layout
from pyvmm.errors import GuestMemoryError, KernelImageError
from pyvmm.loader import elf
from pyvmm.loader.image import (
    MAX_VMLINUX_BYTES,
    ImageFormat,
    KernelImage,
    detect_bytes,
    identify,
    unwrapped,
)
from pyvmm.units import MiB, align_up, format_size

if TYPE_CHECKING:
    from pyvmm.loader.bzimage import BzImage, KernelInfo, SetupHeader
    from pyvmm.loader.kaslr import Kaslr, Move
    from pyvmm.loader.multiboot import MultibootHeader
    from pyvmm.memory import GuestMemory


class Decompress(Enum):
    """Who decompresses a bzImage."""

    HOST = "host"
    GUEST = "guest"


class Placement(NamedTuple):
    """Something that lies in guest memory: what, where, and how long it is."""

    name: str
    base_gpa: int
    size_bytes: int

    @property
    def end_gpa(self) -> int:
        """The address after its last byte."""
        return self.base_gpa + self.size_bytes


class LoadedKernel(NamedTuple):
    """A kernel in guest memory. An entry is None if the kernel does not have it."""

    format: ImageFormat
    linux64_entry_gpa: int | None
    linux32_entry_gpa: int | None
    pvh_entry_gpa: int | None
    pvh_problem: str | None
    """What is wrong with the PVH note, if there is one that cannot be used."""
    multiboot_entry_gpa: int | None
    setup_header: SetupHeader | None
    """The bzImage's, even if its payload was decompressed here; a vmlinux has none."""
    placements: tuple[Placement, ...]
    start_gpa: int
    end_gpa: int
    """The end of all that the kernel touches before it knows its memory map: its BSS, and if it
    decompresses itself the room for that. Nothing else may lie between ``start_gpa`` and here."""
    kernel_info: KernelInfo | None = None
    """The bzImage's, as ``setup_header`` is."""
    move: Move | None = None
    """Where KASLR took it; None if it is where it was linked to."""


def load_kernel(
    image: KernelImage,
    memory: GuestMemory,
    *,
    decompress: Decompress = Decompress.HOST,
    relocate_by: int = 0,
    kaslr: Kaslr | None = None,
    initrd_bytes: int = 0,
) -> LoadedKernel:
    """Place the kernel in ``image``, which may be wrapped (unpack.py), in ``memory``.

    ``relocate_by`` bytes above where it was linked to, if it is placed as ELF; it must be a kernel
    that can bear that. By PVH it can be entered then only if its notes say so.

    Or where ``kaslr`` says, its relocations applied, with room above for an initrd of
    ``initrd_bytes``.

    Raises KernelImageError, with the image's name in front, if it cannot be loaded; ``memory``
    may have been written to then. Raises HostError if there is no memory to decompress it in.
    """
    image = unwrapped(image, memory.size_bytes)
    try:
        image_format = detect_bytes(image.data)
        if kaslr is not None and image_format is not ImageFormat.BZIMAGE:
            return _place_moved(image.data, memory, kaslr, None, initrd_bytes)
        if image_format is ImageFormat.ELF:
            return _place_elf(image.data, image.fd, memory, relocate_by=relocate_by)
        if image_format is ImageFormat.MULTIBOOT:
            header = _find_multiboot_header(image.data)
            return _place_multiboot(header, image.data, image.fd, memory)
        bz = _parse_bzimage(image)
        if decompress is Decompress.GUEST:
            return _place_bzimage(bz, image, memory)
        limit_bytes = min(memory.size_bytes, MAX_VMLINUX_BYTES)
        vmlinux = _decompress_payload(bz, image, limit_bytes)
        if kaslr is not None:
            kernel = _place_moved(vmlinux, memory, kaslr, bz.header, initrd_bytes)
        else:
            kernel = _place_elf(vmlinux, None, memory)
        return kernel._replace(
            format=ImageFormat.BZIMAGE, setup_header=bz.header, kernel_info=bz.kernel_info
        )
    except KernelImageError as error:
        raise error.about(image.name) from error
    except (GuestMemoryError, OSError) as error:
        # Ranges are checked before anything is written: the file could not be read, or shrank.
        raise KernelImageError(f"{image.name}: {error}", "file-read") from error


def extract_vmlinux(image: KernelImage) -> memoryview:
    """The kernel in ``image`` without all wrapping: a bzImage's ELF, any other as it is.

    Behind the ELF of a relocatable kernel the build has put its relocations; they stay. Nothing is
    in an arm64 or riscv64 Image: it is what there is to take out of EFI zboot and compressed files.

    Raises KernelImageError, with the image's name in front, if there is none.
    """
    image = unwrapped(image)
    try:
        if identify(image.data) in (ImageFormat.ARM64, ImageFormat.RISCV64):
            return image.data
        if detect_bytes(image.data) is not ImageFormat.BZIMAGE:
            return image.data
        return _decompress_payload(_parse_bzimage(image), image, MAX_VMLINUX_BYTES)
    except KernelImageError as error:
        raise error.about(image.name) from error


def _parse_bzimage(image: KernelImage) -> BzImage:
    from pyvmm.loader import bzimage  # a vmlinux starts 2 ms sooner without

    return bzimage.parse(image.data)


def _decompress_payload(bz: BzImage, image: KernelImage, limit_bytes: int) -> memoryview:
    from pyvmm.loader.decompress import decompress

    vmlinux = decompress(bz.payload(image.data), limit_bytes)
    if vmlinux[: len(elf.ELFMAG)] != elf.ELFMAG:
        raise KernelImageError(
            "its payload decompressed to something that begins with the bytes "
            f"{bytes(vmlinux[:4]).hex(' ')}; expected ELF (7f 45 4c 46); the image is damaged",
            "bzimage-payload-elf",
        )
    return vmlinux


def _place_elf(
    data: memoryview, fd: int | None, memory: GuestMemory, *, relocate_by: int = 0
) -> LoadedKernel:
    """Place the ELF in ``data``, which is the contents of ``fd`` if that is not None."""
    header = _find_multiboot_header(data)
    if header is not None and header.has_addresses:
        return _place_multiboot(header, data, fd, memory)
    kernel = elf.parse(data)
    for segment in reversed(kernel.segments):  # the highest first: it says how much is needed
        gpa = segment.p_paddr + relocate_by
        problem = _outside_ram(memory, gpa, segment.p_memsz, "a segment")
        if problem:
            raise KernelImageError(problem, "elf-segment-ram")
    placements = []
    for segment in kernel.segments:
        gpa = segment.p_paddr + relocate_by
        _write(memory, gpa, data, fd, segment.p_offset, segment.p_filesz)
        # Memory may have been used before. It costs little: in Linux's own vmlinux the BSS is in
        # the file, as zeros.
        memory.fill_zero(gpa + segment.p_filesz, segment.p_memsz - segment.p_filesz)
        placements.append(Placement(f"kernel {segment.rights}", gpa, segment.p_memsz))
    start_gpa, end_gpa = placements[0].base_gpa, placements[-1].end_gpa
    pvh = kernel.pvh.moved(relocate_by, start_gpa, end_gpa)
    entry_gpa = kernel.entry_gpa + relocate_by
    return LoadedKernel(
        format=ImageFormat.ELF,
        linux64_entry_gpa=entry_gpa if kernel.is_64 else None,
        linux32_entry_gpa=None,
        pvh_entry_gpa=pvh.entry_gpa,
        pvh_problem=pvh.problem,
        multiboot_entry_gpa=entry_gpa if header is not None else None,
        setup_header=None,
        placements=tuple(placements),
        start_gpa=start_gpa,
        end_gpa=end_gpa,
    )


def _place_moved(
    data: memoryview,
    memory: GuestMemory,
    wanted: Kaslr,
    setup_header: SetupHeader | None,
    initrd_bytes: int,
) -> LoadedKernel:
    """Place the ELF in ``data`` elsewhere than it was linked to, and have it fit there.

    It has no other entry than linux64 then: a kernel that comes in by PVH or Multiboot cannot be
    told that it was moved.
    """
    from pyvmm.loader import kaslr

    segments = elf.parse(data).segments
    relocations = kaslr.read_relocations(data, segments)
    move = kaslr.choose(wanted, segments, setup_header, memory, initrd_bytes)
    relocate_by = move.physical_base - segments[0].p_paddr
    kernel = _place_elf(data, None, memory, relocate_by=relocate_by)
    placed = memory.view(kernel.start_gpa, kernel.end_gpa - kernel.start_gpa)
    kaslr.apply_relocations(placed, segments[0].p_vaddr, relocations, move.virtual_offset)
    return kernel._replace(
        pvh_entry_gpa=None, pvh_problem=None, multiboot_entry_gpa=None, move=move
    )


def _find_multiboot_header(data: memoryview) -> MultibootHeader | None:
    """The header of a Multiboot kernel, its demands checked; None if it is none."""
    # Almost no kernel has it, and to import the module to find that out would take longer.
    if _MULTIBOOT_MAGIC not in bytes(data[:_MULTIBOOT_SEARCH_BYTES]):
        return None
    from pyvmm.loader import multiboot

    header = multiboot.find_header(data)
    if header is not None:
        multiboot.check_demands(header)
    return header


_MULTIBOOT_MAGIC = bytes.fromhex("02b0ad1b")
_MULTIBOOT_SEARCH_BYTES = 8192


def _place_multiboot(
    header: MultibootHeader | None, data: memoryview, fd: int | None, memory: GuestMemory
) -> LoadedKernel:
    """Place the kernel in ``data`` by the addresses in its Multiboot header."""
    from pyvmm.loader import multiboot

    if header is None or not header.has_addresses:
        raise KernelImageError(
            "is no ELF file, and its Multiboot header says nothing of addresses (bit 16 of its "
            "flags is clear); expected one of the two; link it as ELF",
            "multiboot-addresses",
        )
    part = multiboot.place_by_header(header, len(data))
    if part.load_gpa < layout.HIMEM_GPA:
        raise KernelImageError(
            f"has load_addr {part.load_gpa:#x} in its Multiboot header; expected "
            f"{layout.HIMEM_GPA:#x} or above, as below are the tables that it is booted with; "
            "link it higher",
            "multiboot-load-low",
        )
    problem = _outside_ram(memory, part.load_gpa, part.memory_bytes, "a place")
    if problem:
        raise KernelImageError(problem, "multiboot-ram")
    _write(memory, part.load_gpa, data, fd, part.offset, part.file_bytes)
    memory.fill_zero(part.load_gpa + part.file_bytes, part.memory_bytes - part.file_bytes)
    return LoadedKernel(
        format=ImageFormat.MULTIBOOT,
        linux64_entry_gpa=None,
        linux32_entry_gpa=None,
        pvh_entry_gpa=None,
        pvh_problem=None,
        multiboot_entry_gpa=part.entry_gpa,
        setup_header=None,
        placements=(Placement("kernel", part.load_gpa, part.memory_bytes),),
        start_gpa=part.load_gpa,
        end_gpa=part.load_gpa + part.memory_bytes,
    )


def _place_bzimage(bz: BzImage, image: KernelImage, memory: GuestMemory) -> LoadedKernel:
    """Place the protected-mode kernel of ``image``, with room to decompress itself."""
    header = bz.header
    load_gpa = bz.load_gpa()
    runtime_start_gpa = bz.runtime_start_gpa(load_gpa)
    start_gpa = min(load_gpa, runtime_start_gpa)
    end_gpa = max(load_gpa + bz.kernel_bytes, runtime_start_gpa + header.init_size)
    wanted = f"wants to be at {load_gpa:#x} and to run at {runtime_start_gpa:#x}"
    if start_gpa < layout.HIMEM_GPA:
        raise KernelImageError(
            f"{wanted} (code32_start, pref_address); expected {layout.HIMEM_GPA:#x} or above, as "
            "below are the tables that it is booted with; the image is damaged",
            "bzimage-address-low",
        )
    if load_gpa + bz.kernel_bytes > layout.GAP_END:
        raise KernelImageError(
            f"{wanted} (code32_start, pref_address), with {bz.kernel_bytes:#x} bytes; expected it "
            "below 4 GiB, where it is entered; the image is damaged",
            "bzimage-address-high",
        )
    size_bytes = end_gpa - start_gpa
    problem = _outside_ram(memory, start_gpa, size_bytes, "room to decompress itself (init_size)")
    if problem:
        raise KernelImageError(problem, "bzimage-init-size")
    _write(memory, load_gpa, image.data, image.fd, bz.kernel_offset, bz.kernel_bytes)
    return LoadedKernel(
        format=ImageFormat.BZIMAGE,
        linux64_entry_gpa=bz.linux64_entry_gpa(load_gpa),
        linux32_entry_gpa=load_gpa,
        pvh_entry_gpa=None,
        pvh_problem=None,
        multiboot_entry_gpa=None,
        setup_header=header,
        placements=(Placement("protected-mode kernel", load_gpa, bz.kernel_bytes),),
        start_gpa=start_gpa,
        end_gpa=end_gpa,
        kernel_info=bz.kernel_info,
    )


def _outside_ram(memory: GuestMemory, gpa: int, size_bytes: int, what: str) -> str | None:
    """What to tell of a range that is not wholly RAM, with the remedy; None if it is."""
    if memory.contains(gpa, size_bytes):
        return None
    end_gpa = gpa + size_bytes
    ram = ", ".join(f"{region.base_gpa:#x}..{region.end_gpa:#x}" for region in memory)
    problem = f"needs {what} at {gpa:#x}..{end_gpa:#x}, which is not RAM; RAM is {ram}"
    if end_gpa <= layout.GAP_BASE:
        needed = format_size(align_up(end_gpa, MiB))
        return f"{problem}; give the guest more than {needed} with --mem"
    if gpa < layout.GAP_END and end_gpa > layout.GAP_BASE:
        devices = f"{layout.GAP_BASE:#x}..{layout.GAP_END:#x}"
        return f"{problem}; {devices} holds devices; link it elsewhere"
    return f"{problem}; link it lower, or give the guest more with --mem"


def _write(
    memory: GuestMemory, gpa: int, data: memoryview, fd: int | None, offset: int, size_bytes: int
) -> None:
    """Copy a part of the image into place, straight from the file if there is one."""
    if fd is not None:
        memory.read_file(gpa, fd, offset, size_bytes)
    else:
        memory.write(gpa, data[offset : offset + size_bytes])
