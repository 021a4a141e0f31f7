"""The BIOS that is not there: each of its services says so.

A Multiboot kernel may count on the BIOS as firmware left it, and some go back to real mode to ask
it: Xen for disks, the keyboard and video modes. With vectors of zero it would run what lies there.

    0x000   256 vectors, an offset and a segment each; all lead to
    0x600   a stub that sets the caller's carry flag, the sign of a failed call, and returns

Left out: end of interrupt. The stub is for software's INT n; all lines are masked on entry.

Sources: SDM 3B 21.1.4, "Interrupt and Exception Handling" (vectors, and what INT n pushes);
ACPI 6.5 15.1 (the carry flag).
"""

from __future__ import annotations

from pyvmm.arch.x86_64 import layout

VECTORS = (layout.BIOS_STUB_GPA.to_bytes(2, "little") + bytes(2)) * 256

STUB = bytes.fromhex(
    "55"  #          push %bp
    "89 e5"  #       mov  %sp, %bp      2(%bp): IP, 4(%bp): CS, 6(%bp): FLAGS
    "80 4e 06 01"  # orb  $1, 6(%bp)    FLAGS.CF
    "5d"  #          pop  %bp
    "cf"  #          iret
)
