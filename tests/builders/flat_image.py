"""Images of arm64 and riscv64 made to order, and EFI zboot around them.

Layouts: Documentation/arch/arm64/booting.rst, Documentation/arch/riscv/boot-image-header.rst and
drivers/firmware/efi/libstub/zboot-header.S.
"""

from __future__ import annotations

import struct

BODY = bytes(range(1, 256)) * 20


def arm64_image(body: bytes = BODY, **fields: int) -> bytes:
    """An arm64 Image with the header of Linux 6.1; ``fields`` override what it says."""
    values = {
        "code0": 0xFA405A4D,
        "code1": 0x14000000,
        "text_offset": 0,
        "image_size": 0x30000,
        "flags": 0b1010,
        "res2": 0,
        "res3": 0,
        "res4": 0,
        "magic": 0x644D5241,
        "res5": 0,
        **fields,
    }
    return struct.pack("<IIQQQQQQII", *values.values()) + body


def riscv64_image(body: bytes = BODY, **fields: int) -> bytes:
    """A riscv64 Image with the header of Linux 6.1; ``fields`` override what it says."""
    values = {
        "code0": 0x5A4D,
        "code1": 0x106F,
        "text_offset": 0x20_0000,
        "image_size": 0x30000,
        "flags": 0,
        "version": 2,
        "res1": 0,
        "res2": 0,
        "magic": 0x56_4353_4952,
        "magic2": 0x05435352,
        "res3": 0,
        **fields,
    }
    return struct.pack("<IIQQQIIQQII", *values.values()) + body


def zboot(
    payload: bytes, compression: bytes, *, size_bytes: int, offset: int | None = None
) -> bytes:
    """An EFI zboot image: its header, then ``payload``; the header says ``size_bytes`` of it."""
    start = 0x40 if offset is None else offset
    header = struct.pack("<4s4sII8x32sII", b"MZ", b"zimg", start, size_bytes, compression,
                         0x818223CD, 0x40)  # fmt: skip
    return header + payload
