"""The BIOS data area: what a PC's firmware leaves at 0x400 for those who come after it.

Only what kernels and hypervisors still look for is filled in:

    0x400   four words: the I/O ports of COM1 to COM4, 0 where there is none
    0x40e   a word: the segment of the EBDA
    0x413   a word: how much base memory there is, in KiB, the EBDA not counted

Linux reserves what is above base memory by it, and Xen puts the code that its other processors
start with below.

Source: IBM PS/2 and PC BIOS Interface Technical Reference, "BIOS Data Area".
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pyvmm.arch.x86_64 import layout
from pyvmm.units import KiB

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZE_BYTES = 0x100
COM_PORTS_OFFSET = 0x00
EBDA_SEGMENT_OFFSET = 0x0E
BASE_MEMORY_OFFSET = 0x13


def build(com_ports: Sequence[int]) -> bytes:
    """The area, 256 bytes. ``com_ports``: each UART's base port, 0 where there is none."""
    area = bytearray(SIZE_BYTES)
    ports = [*com_ports, 0, 0, 0, 0][:4]
    struct.pack_into("<4H", area, COM_PORTS_OFFSET, *ports)
    struct.pack_into("<H", area, EBDA_SEGMENT_OFFSET, layout.EBDA_GPA >> 4)
    struct.pack_into("<H", area, BASE_MEMORY_OFFSET, layout.EBDA_GPA // KiB)
    return bytes(area)
