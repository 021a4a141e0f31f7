"""What is fuzzed: a line for each parser, and what its fuzzing starts from.

A parser that is given any bytes returns, or raises the PyvmmError that blames them; driver.py
holds it to that. A new parser gets a line in TARGETS: a function of the bytes, and one or two good
inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from builders import bzimage as bz
from builders import sample_images as samples
from builders.elf import note, pvh_note
from builders.flat_tree import flat_tree
from builders.ram import ram_at

from pyvmm.config import MachineConfig
from pyvmm.explain import as_html, as_json, text
from pyvmm.explain.report import explain
from pyvmm.loader import arm64, bzimage, elf, fdt, multiboot, pe, riscv64, uki
from pyvmm.loader import pvh_note as notes
from pyvmm.loader.cmdline_builder import Cmdline
from pyvmm.loader.decompress import decompress
from pyvmm.loader.image import KernelImage, unwrapped
from pyvmm.loader.kaslr import Kaslr
from pyvmm.loader.load import Decompress, extract_vmlinux, load_kernel
from pyvmm.memory import GuestMemory
from pyvmm.units import GiB, MiB

MEMORY_BYTES = 16 * MiB


class Target(NamedTuple):
    """A parser, and inputs that it takes."""

    run: Callable[[bytes], object]
    seeds: Sequence[bytes]


def parse_pvh_notes(data: bytes) -> None:
    """As if ``data`` were two PT_NOTE segments of a kernel of 1 MiB at 2 MiB."""
    half = len(data) // 2
    found = notes.find_pvh_entry(
        memoryview(data),
        [(0, half), (half, len(data) - half)],
        lambda gpa: 2 * MiB <= gpa < 3 * MiB,
        2 * MiB,
    )
    found.moved(2 * MiB, 4 * MiB, 5 * MiB)


def parse_bzimage(data: bytes) -> None:
    """The header, and all that is worked out from it."""
    image = memoryview(data)
    parsed = bzimage.parse(image)
    load_gpa = parsed.load_gpa()
    parsed.linux64_entry_gpa(load_gpa)
    parsed.runtime_start_gpa(load_gpa)
    parsed.payload(image)


def parse_multiboot(data: bytes) -> None:
    """A header of addresses, as those are what there is to be checked."""
    header = multiboot.find_header(memoryview(data))
    if header is not None:
        multiboot.check_demands(header)
        if header.has_addresses:
            multiboot.place_by_header(header, len(data))


def parse_cmdline(data: bytes) -> None:
    """What was read and written is read alike."""
    first = Cmdline.parse(data.decode("latin-1"))
    second = Cmdline.parse(str(first))
    assert second.parameters == first.parameters
    assert second.init_arguments == first.init_arguments


def load(data: bytes, **options: Any) -> None:
    """All of the way into guest memory."""
    load_kernel(KernelImage.from_bytes(data), memory_at(0), **options)


def explain_image(data: bytes) -> None:
    """What it is, in every form."""
    config = MachineConfig(kernel="kernel", memory_bytes=MEMORY_BYTES)
    report = explain(KernelImage.from_bytes(data), config)
    for render in (as_json.render, as_html.render, text.render):
        render(report)


@functools.cache
def memory_at(base_gpa: int) -> GuestMemory:
    """Guest memory, the same each time: what lies there from before must not matter."""
    return ram_at(base_gpa, MEMORY_BYTES)


KASLR = Kaslr(4 * MiB, 0xFFFF_FFFF_8140_0000)
PVH_NOTES = [
    note(b"GNU\x00", 3, b"id" * 10) + pvh_note(2 * MiB),
    pvh_note(2 * MiB, size=4) + samples.RELOCATION_NOTE,
]
X86_IMAGES = [*samples.KERNELS, *samples.WRAPPED]

TARGETS = {
    "elf": Target(lambda data: elf.parse(memoryview(data)), [samples.ELF, samples.ELF32]),
    "pvh-notes": Target(parse_pvh_notes, PVH_NOTES),
    "bzimage": Target(parse_bzimage, [samples.BZIMAGE]),
    "multiboot": Target(parse_multiboot, [samples.MULTIBOOT, samples.ELF32]),
    "pe": Target(lambda data: pe.parse(memoryview(data)), [samples.UKI]),
    "uki": Target(lambda data: uki.parse(memoryview(data)), [samples.UKI]),
    "zboot": Target(lambda data: unwrapped(KernelImage.from_bytes(data)), [samples.ZBOOT]),
    "arm64": Target(
        lambda data: arm64.place(KernelImage.from_bytes(data), memory_at(GiB), GiB),
        [samples.ARM64],
    ),
    "riscv64": Target(
        lambda data: riscv64.place(KernelImage.from_bytes(data), memory_at(2 * GiB), 2 * GiB),
        [samples.RISCV64],
    ),
    "devicetree": Target(lambda data: fdt.parse(memoryview(data)), [flat_tree()]),
    "cmdline": Target(parse_cmdline, [b'a b=c "d e" f="g h" -- "i=j k"']),
    "kaslr": Target(lambda data: load(data, kaslr=KASLR), [samples.RELOCATABLE]),
    "load": Target(load, X86_IMAGES),
    "load-in-guest": Target(lambda data: load(data, decompress=Decompress.GUEST), X86_IMAGES),
    "extract": Target(lambda data: extract_vmlinux(KernelImage.from_bytes(data)), X86_IMAGES),
    "explain": Target(explain_image, [*X86_IMAGES, *samples.FOREIGN, flat_tree()]),
    **{
        f"decompress-{name}": Target(
            lambda data: decompress(memoryview(data), MEMORY_BYTES),
            [bz.compress(name, samples.ELF)],
        )
        for name in bz.COMPRESSIONS
    },
    **{
        f"file-{name}": Target(lambda data: unwrapped(KernelImage.from_bytes(data)), [seed])
        for name, seed in samples.FILES.items()
    },
}
