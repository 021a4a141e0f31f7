"""Kernels with relocations behind them, as arch/x86/tools/relocs.c writes them (emit_relocs)."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from builders.elf import Elf, Segment
from builders.elf_oracle import open_elf

START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000  # __START_KERNEL_map, asm/page_64_types.h
R_X86_64_64, R_X86_64_PC32, R_X86_64_32, R_X86_64_32S = 1, 2, 10, 11  # psABI 4.4.1

LINK_GPA = 0x20_0000
TEXT_BYTES = 0x1000
DATA_GPA = LINK_GPA + 0x2000
BSS_BYTES = 0x800
END_GPA = DATA_GPA + 0x100 + BSS_BYTES


def relocation_table(
    *,
    add64: Sequence[int] = (),
    subtract32: Sequence[int] | None = (),
    add32: Sequence[int] = (),
) -> bytes:
    """The lists of addresses, a zero before each. ``subtract32`` None: as Linux 6.15 and later."""
    lists = [add64, add32] if subtract32 is None else [add64, subtract32, add32]
    words = [word for addresses in lists for word in (0, *addresses)]
    return struct.pack(f"<{len(words)}I", *(word & 0xFFFF_FFFF for word in words))


def relocatable_vmlinux(
    table: bytes, text: bytes = b"", *, link_gpa: int = LINK_GPA, vaddr: int | None = None
) -> bytes:
    """A vmlinux like Linux's with ``table`` behind it.

    It has ``text`` at ``link_gpa``, mapped at START_KERNEL_MAP; a PVH note is not needed here.
    Data follows 0x2000 further, linked to virtual address 0 as per-CPU data is, and a BSS.
    """
    return (
        Elf(
            [
                Segment(
                    link_gpa,
                    text.ljust(TEXT_BYTES, b"\xf4"),
                    vaddr=START_KERNEL_MAP + link_gpa if vaddr is None else vaddr,
                ),
                Segment(link_gpa + 0x2000, b"d" * 0x100, vaddr=0, memsz=0x100 + BSS_BYTES, flags=6),
            ],
            entry=link_gpa + 0x10,
        ).build()
        + table
    )


_SOURCE = f"""
    .globl _start
    .text
_start:
    movq $_start, %rax                  # R_X86_64_32S
    movq table(,%rdi,8), %rcx           # R_X86_64_32S
    movl $table - {START_KERNEL_MAP:#x}, %esi  # R_X86_64_32: a physical address, for Linux
    leaq table(%rip), %rdx              # R_X86_64_PC32: moves as the code does
    movl per_cpu(%rip), %edi            # R_X86_64_PC32: but this does not move
    .data
    .byte 0                             # what follows is not aligned
table:
    .quad _start, table, end            # R_X86_64_64
    .bss
    .skip 0x234
end:
    .skip 8
"""

_SCRIPT = """
PHDRS {{ text PT_LOAD FLAGS(5); data PT_LOAD FLAGS(6); }}
per_cpu = 0x40;
SECTIONS {{
    . = {base:#x};
    .text : AT(ADDR(.text) - {base:#x} + {gpa:#x}) {{ *(.text) }} :text
    . = ALIGN(0x1000);
    .data : AT(ADDR(.data) - {base:#x} + {gpa:#x}) {{ *(.data) }} :data
    .bss : AT(ADDR(.bss) - {base:#x} + {gpa:#x}) {{ *(.bss) }} :data
    /DISCARD/ : {{ *(.note*) }}
}}
"""


def link(directory: Path, virtual_offset: int = 0) -> bytes:
    """A small kernel at LINK_GPA, by assembler and linker, mapped ``virtual_offset`` higher than
    Linux would be. What the linker relocated is told in it (--emit-relocs)."""
    (directory / "kernel.S").write_text(_SOURCE)
    base = START_KERNEL_MAP + LINK_GPA + virtual_offset
    (directory / "kernel.lds").write_text(_SCRIPT.format(base=base, gpa=LINK_GPA))
    output = directory / f"kernel-{virtual_offset:x}"
    command: list[str | Path] = ["gcc", "-nostdlib", "-static", "-no-pie", "kernel.S", "-o", output]
    command += ["-Wl,-T,kernel.lds", "-Wl,--emit-relocs", "-Wl,--build-id=none"]
    subprocess.run(command, cwd=directory, check=True)
    return output.read_bytes()


def linkers_table(vmlinux: bytes) -> bytes:
    """The table that relocs.c would make of what the linker relocated."""
    oracle = open_elf(vmlinux)
    add64, subtract32, add32 = [], [], []
    for section in oracle.iter_sections("SHT_RELA"):
        symbols = oracle.get_section(section["sh_link"])
        for relocation in section.iter_relocations():
            address, kind = relocation["r_offset"], relocation["r_info_type"]
            if kind == R_X86_64_64:
                add64.append(address)
            elif kind in (R_X86_64_32, R_X86_64_32S):
                add32.append(address)
            elif symbols.get_symbol(relocation["r_info_sym"])["st_shndx"] == "SHN_ABS":
                assert kind == R_X86_64_PC32
                subtract32.append(address)
    return relocation_table(add64=add64, subtract32=subtract32, add32=add32)
