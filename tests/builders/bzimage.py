"""bzImages made to order: the layout of Documentation/arch/x86/boot.rst around any payload.

The payload is compressed as scripts/Makefile.lib does it: the stream, then the size of what was
compressed as a 32-bit little-endian number (gzip's stream ends with just that).
"""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import lzma
import struct
import zlib

import lz4.block
import zstandard

# Offset and size of each field (boot.rst, "The Real-Mode Kernel Header").
FIELDS = {
    "setup_sects": (0x1F1, 1),
    "syssize": (0x1F4, 4),
    "boot_flag": (0x1FE, 2),
    "jump": (0x200, 2),
    "header": (0x202, 4),
    "version": (0x206, 2),
    "kernel_version": (0x20E, 2),
    "loadflags": (0x211, 1),
    "code32_start": (0x214, 4),
    "initrd_addr_max": (0x22C, 4),
    "kernel_alignment": (0x230, 4),
    "relocatable_kernel": (0x234, 1),
    "min_alignment": (0x235, 1),
    "xloadflags": (0x236, 2),
    "cmdline_size": (0x238, 4),
    "payload_offset": (0x248, 4),
    "payload_length": (0x24C, 4),
    "setup_data": (0x250, 8),
    "pref_address": (0x258, 8),
    "init_size": (0x260, 4),
    "handover_offset": (0x264, 4),
    "kernel_info_offset": (0x268, 4),
}
HAVE_LZO = importlib.util.find_spec("lzo") is not None
COMPRESSIONS = ["gzip", "bzip2", "lzma", "xz", "lz4", "zstd"] + ["lzo"] * HAVE_LZO
PAYLOAD_OFFSET = 0x300


def compress(name: str, data: bytes) -> bytes:
    """``data`` as the kernel's build compresses it with ``name``."""
    if name == "gzip":
        return gzip.compress(data, mtime=0)
    stream = {
        "bzip2": bz2.compress,
        "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
        "xz": _xz,
        "lzo": _lzop,
        "lz4": _lz4_legacy,
        "zstd": _zstd,
    }[name](data)
    return stream + struct.pack("<I", len(data))


def _xz(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)


def _zstd(data: bytes) -> bytes:
    # From a pipe, zstd cannot write the size into the frame.
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    return compressor.compress(data)


def _lz4_legacy(data: bytes) -> bytes:
    stream = bytes.fromhex("02214c18")
    for start in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
        stream += struct.pack("<I", len(block)) + block
    return stream


def _lzop(data: bytes) -> bytes:
    import lzo

    head = struct.pack(">HHHBBIIIIB", 0x1040, 0x20A0, 0x0940, 3, 9, 1, 0o100644, 0, 0, 0)
    stream = b"\x89LZO\x00\r\n\x1a\n" + head + struct.pack(">I", zlib.adler32(head))
    for start in range(0, len(data), 256 << 10):
        plain = data[start : start + (256 << 10)]
        packed = lzo.compress(plain, 9, False)
        if len(packed) >= len(plain):
            packed = plain
        stream += struct.pack(">III", len(plain), len(packed), zlib.adler32(plain)) + packed
    return stream + bytes(4)


def kernel_info(
    *, magic: bytes = b"LToP", size: int = 16, size_total: int = 16, setup_type_max: int = 9
) -> bytes:
    """``kernel_info`` (boot.rst, "Details of the kernel_info Fields")."""
    return magic + struct.pack("<III", size, size_total, setup_type_max)


def bzimage(payload: bytes, info: bytes = b"", /, **fields: int) -> bytes:
    """A bzImage of protocol 2.15 for a relocatable 64-bit kernel at 2 MiB with this payload.

    ``info`` is its kernel_info, at the kernel's end. ``fields`` override what the header says, and
    nothing else.
    """
    kernel = b"\x90" * PAYLOAD_OFFSET + payload
    kernel += bytes(-len(kernel) % 16)
    kernel_info_offset = len(kernel) if info else 0
    kernel += info
    setup_sects = fields.get("setup_sects", 3)
    values = {
        "setup_sects": setup_sects,
        "syssize": -(-len(kernel) // 16),
        "boot_flag": 0xAA55,
        "jump": 0x6AEB,
        "header": int.from_bytes(b"HdrS", "little"),
        "version": 0x020F,
        "loadflags": 1,
        "code32_start": 0x10_0000,
        "initrd_addr_max": 0x7FFF_FFFF,
        "kernel_alignment": 0x20_0000,
        "relocatable_kernel": 1,
        "min_alignment": 21,
        "xloadflags": 0x7F,
        "cmdline_size": 2047,
        "payload_offset": PAYLOAD_OFFSET,
        "payload_length": len(payload),
        "pref_address": 0x20_0000,
        "init_size": 0x30_0000,
        "kernel_info_offset": kernel_info_offset,
        **fields,
    }
    setup = bytearray(512 * ((setup_sects or 4) + 1))
    for name, value in values.items():
        offset, size = FIELDS[name]
        setup[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(setup) + kernel
