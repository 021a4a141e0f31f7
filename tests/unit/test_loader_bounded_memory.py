"""Small files that tell of enormous sizes: refused without the memory that they ask for.

Two limits: on address space, which counts what is reserved and never touched, and on the growth of
what is resident.
"""

from __future__ import annotations

import ctypes
import mmap
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from builders import bzimage as bz
from builders import multiboot
from builders.elf import Elf, Segment, note, notes_segment, vmlinux
from builders.flat_image import zboot
from builders.pe import Pe, Section

from pyvmm.config import MachineConfig
from pyvmm.errors import KernelImageError
from pyvmm.explain.report import explain
from pyvmm.loader.image import KernelImage
from pyvmm.loader.kaslr import Kaslr
from pyvmm.loader.load import Decompress, extract_vmlinux, load_kernel
from pyvmm.memory import GuestMemory
from pyvmm.units import GiB, KiB, MiB

# Little more than what the largest dictionary has that xz may ask for (XZ_MEMORY_LIMIT_BYTES): it
# is reserved before there is anything to put in.
RESERVED_BYTES = 320 * MiB
RESIDENT_BYTES = 16 * MiB


def status_bytes(field: str) -> int:
    """A field of proc(5)'s /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * KiB
    raise AssertionError(f"/proc/self/status has no {field}")


@contextmanager
def little_memory() -> Iterator[None]:
    """No more than RESERVED_BYTES of address space are to be had, RESIDENT_BYTES to be used."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    # What malloc() keeps of what was freed before would be used again, and not count.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew (proc(5))
    before = status_bytes("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (status_bytes("VmSize") + RESERVED_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert status_bytes("VmHWM") - before < RESIDENT_BYTES


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    """Much of it, as what a file may ask for is limited by it; none of it is touched."""
    with GuestMemory.create(2 * GiB) as memory:
        yield memory


def elf(segment: Segment, phnum: int | None = None) -> bytes:
    """A kernel of one byte, and another segment."""
    return Elf([Segment(2 * MiB, b"\xf4"), segment], entry=2 * MiB, phnum=phnum).build()


def bzimage(payload: bytes = b"\x7fELF", info: bytes = b"", /, **fields: int) -> bytes:
    return bz.bzimage(payload, info, **{"setup_sects": 1, **fields})


def payload(name: str, size_bytes: int) -> bytes:
    """The beginning of a compressed kernel, and the size that it is said to have."""
    return bz.compress(name, vmlinux())[:64] + size_bytes.to_bytes(4, "little")


END_OF_4_GIB = 0xFFFF_FFFF
# The properties, a dictionary of 128 MiB or 2 GiB, an unknown size, the first bytes of the stream.
LZMA_128_MIB = bytes.fromhex("5d 00000008 ffffffffffffffff 0000000000")
LZMA_2_GIB = bytes.fromhex("5d 00000080 ffffffffffffffff 0000000000")
ZSTD_FRAME_HEADER = bytes.fromhex("28b52ffd 00 b0")  # a window of 2^32: RFC 8878, 3.1.1.1.2
SIZE = (4 * KiB).to_bytes(4, "little")  # of what is in such a payload: no reason to refuse it

WAYS: tuple[dict[str, Any], ...] = (
    {"decompress": Decompress.HOST},
    {"decompress": Decompress.GUEST},
    {"kaslr": Kaslr(4 * MiB, 0xFFFF_FFFF_8140_0000)},
)

FILES = {
    "ELF, a segment in the file": elf(Segment(4 * MiB, b"", filesz=1 << 40, memsz=1 << 40)),
    "ELF, a segment in memory": elf(Segment(4 * MiB, b"d", memsz=1 << 40)),
    "ELF, program headers": elf(Segment(4 * MiB, b"d"), phnum=0xFFFF),
    "ELF, notes": elf(Segment(0, b"n", filesz=1 << 40, kind=4)),
    "ELF, a note's name": elf(notes_segment(note(b"Xen\x00", 18, b"1234", namesz=END_OF_4_GIB))),
    "bzImage, setup_sects": bzimage(setup_sects=255)[: 1 * KiB],
    "bzImage, syssize": bzimage(syssize=END_OF_4_GIB),
    "bzImage, payload_length": bzimage(payload_length=END_OF_4_GIB),
    "bzImage, init_size": bzimage(init_size=END_OF_4_GIB),
    "bzImage, kernel_info": bzimage(b"\x7fELF", bz.kernel_info(size_total=END_OF_4_GIB)),
    "bzImage, lzma's dictionary": bzimage(LZMA_128_MIB + SIZE),
    "bzImage, lzma's larger dictionary": bzimage(LZMA_2_GIB + SIZE),
    "bzImage, zstd's window": bzimage(ZSTD_FRAME_HEADER + SIZE),
    "Multiboot, load_end_addr": multiboot.image(b"", load_end_addr=END_OF_4_GIB),
    "Multiboot, bss_end_addr": multiboot.image(b"", bss_end_addr=END_OF_4_GIB),
    "PE, sections": Pe([Section(b".text")], section_count=0xFFFF).build(),
    "UKI, a section": Pe([Section(b".linux", b"\x7fELF", raw_bytes=END_OF_4_GIB)]).build(),
    "EFI zboot, the payload": zboot(b"\x1f\x8b", b"gzip", size_bytes=END_OF_4_GIB),
    "EFI zboot, the payload's size": zboot(payload("zstd", 1 * GiB), b"zstd", size_bytes=64),
    "compressed file, lzma's dictionary": LZMA_128_MIB,
    "compressed file, lzma's larger dictionary": LZMA_2_GIB,
    "compressed file, zstd's window": ZSTD_FRAME_HEADER + bytes(64),
    "compressed file, lz4's block": bytes.fromhex("02214c18 ffffffff"),
} | {
    f"bzImage, {name}'s size, {size_bytes}": bzimage(payload(name, size_bytes))
    for name in bz.COMPRESSIONS
    for size_bytes in (64 * KiB, 1 * GiB, END_OF_4_GIB)
}


@pytest.mark.parametrize("name", FILES)
def test_small_file_gets_no_more_memory_than_it_needs(name: str, memory: GuestMemory) -> None:
    assert len(FILES[name]) <= 2 * KiB
    image = KernelImage.from_bytes(FILES[name])
    with little_memory():
        for options in WAYS:
            with suppress(KernelImageError):
                load_kernel(image, memory, **options)
        with suppress(KernelImageError):
            extract_vmlinux(image)
        explain(image, MachineConfig(kernel="kernel", memory_bytes=16 * MiB))


@pytest.mark.parametrize("size_bytes", [RESERVED_BYTES + MiB, 2 * GiB])
def test_limit_of_what_is_reserved_is_one(size_bytes: int) -> None:
    with little_memory(), pytest.raises(OSError, match="Cannot allocate memory"):
        mmap.mmap(-1, size_bytes)


def test_limit_of_what_is_resident_is_one() -> None:
    with pytest.raises(AssertionError), little_memory():
        mmap.mmap(-1, 2 * RESIDENT_BYTES).write(bytes(2 * RESIDENT_BYTES))
