"""Good images, small ones, of each format and each compression: what hostile ones are made from."""

from __future__ import annotations

import bz2
import gzip
import lzma

import lz4.frame
import zstandard
from builders import bzimage as bz
from builders import multiboot as mb
from builders import pe
from builders.elf import Elf, Segment, note, notes_segment, pvh_note, vmlinux
from builders.flat_image import arm64_image, riscv64_image, zboot
from builders.kaslr import relocatable_vmlinux, relocation_table

CODE = bytes(range(256)) * 2
ELF = vmlinux(CODE)
RELOCATION_NOTE = note(b"Xen\x00", 19, bytes.fromhex("00002000 00001000 ffffff3f"))
ELF32 = Elf(
    [
        Segment(0x10_0000, mb.header(3) + CODE),
        Segment(0x20_0000, b"data", memsz=0x1000),
        notes_segment(pvh_note(0x10_0010, size=4) + RELOCATION_NOTE),
    ],
    entry=0x10_000C,
    bits=32,
).build()
MULTIBOOT = mb.image(CODE, bss_end_addr=0x20_1000)
ELF_WITH_ADDRESSES = Elf([Segment(0x10_0000, MULTIBOOT)], entry=0x10_0020).build()
RELOCATABLE = relocatable_vmlinux(
    relocation_table(add64=[0x8020_0000], subtract32=[0x8020_0008], add32=[0x8020_2000] * 4)
)
BZIMAGE = bz.bzimage(ELF, bz.kernel_info())
BZIMAGES = [bz.bzimage(bz.compress(name, ELF)) for name in bz.COMPRESSIONS]
KERNELS = [ELF, RELOCATABLE, ELF32, ELF_WITH_ADDRESSES, MULTIBOOT, BZIMAGE, *BZIMAGES]
"""Those of x86 kernels that are not wrapped in anything."""

FILES = {
    "gzip": gzip.compress(ELF, mtime=0),
    "bzip2": bz2.compress(ELF),
    "xz": lzma.compress(ELF),
    "lzma": lzma.compress(ELF, lzma.FORMAT_ALONE),
    "lz4": lz4.frame.compress(ELF),
    "lz4-legacy": bz.compress("lz4", ELF)[:-4],
    "zstd": zstandard.compress(ELF),
}
"""A vmlinux as compressed files."""

UKI = pe.uki(BZIMAGE, initrd=b"initrd", cmdline=b"console=ttyS0", osrel=b"ID=x")
WRAPPED = [*FILES.values(), UKI, gzip.compress(pe.uki(ELF), mtime=0)]
"""Those of x86 kernels that are."""

ARM64 = arm64_image(CODE)
RISCV64 = riscv64_image(CODE)
_PACKED = bz.compress("zstd", ARM64)
# The size behind the stream is not counted in zboot's header.
ZBOOT = zboot(_PACKED, b"zstd22", size_bytes=len(_PACKED) - 4)
FOREIGN = [ARM64, RISCV64, ZBOOT]
"""Those of other machines' kernels."""
