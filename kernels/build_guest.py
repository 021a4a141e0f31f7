"""Build our own guest kernels with the system's gcc.

``build_embedded`` makes the kernel that ``pyvmm run`` boots when none is given, in two forms:

- ``kernel.elf``: an ELF with a PVH note, its ``e_entry`` the 64-bit Linux boot protocol's entry;
- ``kernel.bzimage``: the same kernel as a bzImage (Documentation/arch/x86/boot.rst, protocol
  2.15). Its protected-mode part is the kernel itself, uncompressed, so that it boots as it stands;
  behind it comes the gzip'd ELF as the payload, for a loader that decompresses on the host. It has
  no 16-bit entry: a loader must use the 32-bit or the 64-bit protocol.

``build_init`` makes ``init``, the small /init of ``pyvmm initramfs --small``, a program for user
space without a C library.

``build`` makes one of the small guests in ``tests/``. The same sources and the same compiler give
the same bytes. Nothing outside the standard library is used: ``setup.py`` runs this at install.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_HERE = os.path.dirname(os.path.abspath(__file__))

# Plain 64-bit code that any x86-64 CPU and KVM's instruction emulator can run in kernel mode: no
# vector registers, and no red zone, which an interrupt would overwrite (SysV ABI 3.2.2). No
# memcpy or memset is there to be called, so loops must not be turned into them.
_CFLAGS = [
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-m64",
    "-march=x86-64",
    "-mgeneral-regs-only",
    "-mno-red-zone",
    "-ffreestanding",
    "-fno-pic",
    "-fno-pie",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",
]
_LDFLAGS = [
    "-static",
    "-no-pie",
    "-nostdlib",
    "-Wl,--build-id=none",
    "-Wl,-z,max-page-size=4096",
    "-Wl,-z,noexecstack",
]


class BuildError(Exception):
    """A guest kernel could not be built; the message says what to do."""


class _Segment(NamedTuple):
    """A PT_LOAD program header of an ELF64 file, the fields that matter here."""

    p_offset: int
    p_paddr: int
    p_filesz: int
    p_memsz: int


def available() -> list[str]:
    """The names that ``build`` takes."""
    tests = os.listdir(os.path.join(_HERE, "tests"))
    return sorted(name.removesuffix(".S") for name in tests if name.endswith(".S"))


def build(name: str, out_dir: str, defines: Mapping[str, int] | None = None) -> str:
    """Build the test guest ``name`` into ``out_dir`` and return the ELF's path.

    ``defines`` sets macros of its source, such as ``{"COUNT": 1000}`` for ``pio_loop``.

    Raises BuildError if there is no such guest, no compiler, or it does not compile.
    """
    if name not in available():
        raise BuildError(f"no test guest {name!r}; expected one of {', '.join(available())}")
    source_dir = os.path.join(_HERE, "tests")
    target = os.path.join(out_dir, f"{name}.elf")
    macros = [f"-D{macro}={value}" for macro, value in (defines or {}).items()]
    _compile(
        [os.path.join(source_dir, f"{name}.S")],
        os.path.join(source_dir, "guest.lds"),
        target,
        macros,
    )
    return target


def build_embedded(out_dir: str) -> None:
    """Build ``kernel.elf`` and ``kernel.bzimage`` into ``out_dir``.

    Raises BuildError if there is no compiler, or it does not compile.
    """
    source_dir = os.path.join(_HERE, "embedded")
    sources = sorted(name for name in os.listdir(source_dir) if name.endswith((".S", ".c")))
    elf_path = os.path.join(out_dir, "kernel.elf")
    _compile(
        [os.path.join(source_dir, name) for name in sources],
        os.path.join(source_dir, "kernel.lds"),
        elf_path,
        [],
    )
    with open(elf_path, "rb") as elf_file:
        elf = elf_file.read()
    with open(os.path.join(out_dir, "kernel.bzimage"), "wb") as bzimage_file:
        bzimage_file.write(make_bzimage(elf))


def build_init(out_dir: str) -> None:
    """Build ``init`` into ``out_dir``. Raises BuildError as ``build_embedded`` does."""
    source = os.path.join(_HERE, "userland", "init.c")
    _compile([source], None, os.path.join(out_dir, "init"), ["-Os"])


def make_bzimage(elf: bytes) -> bytes:
    """A bzImage of a kernel whose ELF begins with its 32-bit entry, and 0x200 on its 64-bit one.

    Field names, offsets and meanings: Documentation/arch/x86/boot.rst, "Details of Header Fields".
    """
    segments = _loadable_segments(elf)
    base = segments[0].p_paddr
    memory_end = max(segment.p_paddr + segment.p_memsz for segment in segments)

    code = bytearray()
    for segment in segments:
        code += bytes(segment.p_paddr - base - len(code))
        code += elf[segment.p_offset : segment.p_offset + segment.p_filesz]
    payload_offset = _append_aligned(code, payload := gzip.compress(elf, 9, mtime=0))
    # kernel_info: the magic, the size of its fixed part, the size of all, setup_type_max.
    kernel_info_offset = _append_aligned(code, struct.pack("<4sIII", b"LToP", 16, 16, 0))

    setup_sects = 1  # beside the boot sector; 0 would mean 4
    header_end = 0x26C  # after kernel_info_offset, the last field of protocol 2.15
    version_text = 0x280  # the string that kernel_version points to
    setup = bytearray((setup_sects + 1) * 512)
    for offset, field_format, value in (
        (0x1F1, "<B", setup_sects),
        (0x1F4, "<I", -(-len(code) // 16)),  # syssize, in 16-byte paragraphs
        (0x1FE, "<H", 0xAA55),  # boot_flag
        (0x200, "<B", 0xEB),  # jump: a short one, over the header; its operand is also
        (0x201, "<B", header_end - 0x202),  # what tells a loader how long the header is
        (0x202, "<4s", b"HdrS"),
        (0x206, "<H", 0x020F),  # version: 2.15
        (0x20E, "<H", version_text - 0x200),  # kernel_version
        (0x211, "<B", 0x01),  # loadflags: LOADED_HIGH
        (0x214, "<I", base),  # code32_start
        (0x22C, "<I", 0x7FFF_FFFF),  # initrd_addr_max
        (0x230, "<I", 0x1000),  # kernel_alignment
        (0x234, "<B", 0),  # relocatable_kernel: no, it runs where it is linked
        (0x235, "<B", 12),  # min_alignment, as a power of two
        (0x236, "<H", 0x0001),  # xloadflags: XLF_KERNEL_64
        (0x238, "<I", 2047),  # cmdline_size, without the NUL
        (0x248, "<I", payload_offset),
        (0x24C, "<I", len(payload)),
        (0x258, "<Q", base),  # pref_address
        (0x260, "<I", max(memory_end - base, len(code))),  # init_size
        (0x268, "<I", kernel_info_offset),
        (header_end, "<3s", b"\xf4\xeb\xfd"),  # where the jump leads: hlt, for ever
        (version_text, "<24s", b"pyvmm embedded kernel"),
    ):
        struct.pack_into(field_format, setup, offset, value)
    return bytes(setup + code)


def _append_aligned(code: bytearray, part: bytes) -> int:
    """Append ``part`` at the next multiple of 16, and to one; return its offset."""
    code += bytes(-len(code) % 16)
    offset = len(code)
    code += part
    code += bytes(-len(code) % 16)
    return offset


def _loadable_segments(elf: bytes) -> list[_Segment]:
    """The PT_LOAD segments in the order of their addresses (System V gABI, chapter 5)."""
    (e_phoff,) = struct.unpack_from("<Q", elf, 0x20)
    e_phentsize, e_phnum = struct.unpack_from("<HH", elf, 0x36)
    segments = []
    for index in range(e_phnum):
        p_type, _, p_offset, _, p_paddr, p_filesz, p_memsz, _ = struct.unpack_from(
            "<IIQQQQQQ", elf, e_phoff + index * e_phentsize
        )
        if p_type == 1:  # PT_LOAD
            segments.append(_Segment(p_offset, p_paddr, p_filesz, p_memsz))
    return sorted(segments, key=lambda segment: segment.p_paddr)


def _compile(
    sources: Sequence[str], linker_script: str | None, target: str, extra: Sequence[str]
) -> None:
    """Compile and link; ``target`` appears complete or not at all.

    Without a linker script it is a program for user space: one segment, no symbols.
    """
    program = ["-s", "-Wl,-z,noseparate-code"]
    layout = [f"-Wl,-T,{linker_script}"] if linker_script else program
    compiler = os.environ.get("CC", "gcc").split()
    if not compiler or shutil.which(compiler[0]) is None:
        raise BuildError(
            f"no C compiler: {' '.join(compiler) or 'CC is empty'!r} was not found; "
            "install it with `apt-get install gcc libc6-dev`, or set CC"
        )
    out_dir = os.path.dirname(os.path.abspath(target))
    os.makedirs(out_dir, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir) as build_dir:
        # Two steps, so that the objects' names, which the linker records, are always the same.
        objects = [os.path.splitext(os.path.basename(source))[0] + ".o" for source in sources]
        steps = (
            [*compiler, *_CFLAGS, *extra, "-c", *sources],
            [*compiler, *_LDFLAGS, *layout, *objects, "-o", "linked.elf"],
        )
        for command in steps:
            result = subprocess.run(
                command,
                cwd=build_dir,
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if result.returncode != 0:
                raise BuildError(_explain(compiler, os.path.basename(target), result.stderr))
        os.replace(os.path.join(build_dir, "linked.elf"), target)


def _explain(compiler: Sequence[str], target: str, stderr: str) -> str:
    """One line of remedy for the usual causes, then what the compiler itself said."""
    if "asm/bootparam.h" in stderr or "linux/types.h" in stderr:
        remedy = "the kernel's headers are missing: install them with `apt-get install libc6-dev`"
    elif "cannot execute 'as'" in stderr or "cannot find 'ld'" in stderr:
        remedy = "the assembler or linker is missing: install it with `apt-get install binutils`"
    else:
        remedy = "expected a gcc for x86-64, such as Debian's (`apt-get install gcc`)"
    return f"{' '.join(compiler)} could not build {target}; {remedy}\n{stderr.strip()}"


def main(argv: Sequence[str] | None = None) -> int:
    """Build the guests that are named, or all of them, into a directory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="embedded, or a guest of tests/")
    parser.add_argument("-o", "--out-dir", default=".", help="where to put them (default: here)")
    args = parser.parse_args(argv)
    try:
        for name in args.names or ["embedded", *available()]:
            if name == "embedded":
                build_embedded(args.out_dir)
                build_init(args.out_dir)
            else:
                build(name, args.out_dir)
    except (BuildError, OSError) as error:
        print(f"build_guest: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
