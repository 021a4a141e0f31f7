"""What is fuzzed: a line for each parser, and what its fuzzing starts from.

A parser that is given any bytes returns, or raises the PyvmmError that blames them; driver.py
holds it to that. A new parser gets a line in TARGETS: a function of the bytes, and one or two good
inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from builders import bzimage as bz
from builders import elf as build_elf
from builders import kaslr as build_kaslr
from builders import multiboot as build_multiboot

from pyvmm.loader import bzimage, elf, multiboot, pvh_note
from pyvmm.loader.cmdline_builder import Cmdline
from pyvmm.loader.decompress import decompress
from pyvmm.loader.image import KernelImage
from pyvmm.loader.kaslr import Kaslr
from pyvmm.loader.load import Decompress, extract_vmlinux, load_kernel
from pyvmm.memory import GuestMemory
from pyvmm.units import MiB

MEMORY_BYTES = 16 * MiB


class Target(NamedTuple):
    """A parser, and inputs that it takes."""

    run: Callable[[bytes], object]
    seeds: Sequence[bytes]


def parse_pvh_notes(data: bytes) -> None:
    """As if ``data`` were two PT_NOTE segments of a kernel of 1 MiB at 2 MiB."""
    half = len(data) // 2
    found = pvh_note.find_pvh_entry(
        memoryview(data),
        [(0, half), (half, len(data) - half)],
        lambda gpa: 2 * MiB <= gpa < 3 * MiB,
        2 * MiB,
    )
    found.moved(2 * MiB, 4 * MiB, 5 * MiB)


def parse_bzimage(data: bytes) -> None:
    image = memoryview(data)
    parsed = bzimage.parse(image)
    load_gpa = parsed.load_gpa()
    parsed.linux64_entry_gpa(load_gpa)
    parsed.runtime_start_gpa(load_gpa)
    parsed.payload(image)


def parse_multiboot(data: bytes) -> None:
    header = multiboot.find_header(memoryview(data))
    if header is not None:
        multiboot.check_demands(header)
        multiboot.place_by_header(header, len(data))


def parse_cmdline(data: bytes) -> None:
    """What was read and written is read alike."""
    first = Cmdline.parse(data.decode("latin-1"))
    second = Cmdline.parse(str(first))
    assert second.parameters == first.parameters
    assert second.init_arguments == first.init_arguments


def load(data: bytes, **options: Decompress | Kaslr) -> None:
    """All of the way into guest memory."""
    load_kernel(KernelImage.from_bytes(data), _memory(), **options)  # type: ignore[arg-type]


@functools.cache
def _memory() -> GuestMemory:
    return GuestMemory.create(MEMORY_BYTES)


ELF = build_elf.vmlinux(bytes(range(256)) * 2)
ELF32 = build_elf.Elf(
    [
        build_elf.Segment(2 * MiB, build_multiboot.header() + bytes(64), memsz=0x1000),
        build_elf.notes_segment(build_elf.pvh_note(2 * MiB, size=4)),
    ],
    entry=2 * MiB,
    bits=32,
).build()
RELOCATABLE = build_kaslr.relocatable_vmlinux(
    build_kaslr.relocation_table(add64=[0x8020_0000], subtract32=[0x8020_0008], add32=[0x8020_2000])
)
PVH_NOTES = (
    build_elf.note(b"GNU\x00", 3, b"id" * 10) + build_elf.pvh_note(2 * MiB),
    build_elf.pvh_note(2 * MiB, size=4)
    + build_elf.note(b"Xen\x00", 19, b"".join(n.to_bytes(4, "little") for n in (MiB, 0, 1 << 30))),
)
BZIMAGES = [
    bz.bzimage(bz.compress(name, ELF), bz.kernel_info(), setup_sects=1) for name in bz.COMPRESSIONS
]
MULTIBOOT = build_multiboot.image(bytes(64), before=bytes(16))
IMAGES = [ELF, ELF32, MULTIBOOT, *BZIMAGES]

TARGETS = {
    "elf": Target(lambda data: elf.parse(memoryview(data)), [ELF, ELF32]),
    "pvh-notes": Target(parse_pvh_notes, PVH_NOTES),
    "bzimage": Target(parse_bzimage, BZIMAGES[:1]),
    "multiboot": Target(parse_multiboot, [MULTIBOOT, ELF32]),
    "cmdline": Target(parse_cmdline, [b'a b=c "d e" f="g h" -- "i=j k"']),
    "kaslr": Target(
        lambda data: load(data, kaslr=Kaslr(4 * MiB, 0xFFFF_FFFF_8140_0000)), [RELOCATABLE]
    ),
    "load": Target(load, IMAGES),
    "load-in-guest": Target(lambda data: load(data, decompress=Decompress.GUEST), IMAGES),
    "extract": Target(lambda data: extract_vmlinux(KernelImage.from_bytes(data)), IMAGES),
} | {
    f"decompress-{name}": Target(
        lambda data: decompress(memoryview(data), MEMORY_BYTES), [bz.compress(name, ELF)]
    )
    for name in bz.COMPRESSIONS
}
