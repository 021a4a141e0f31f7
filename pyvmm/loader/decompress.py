"""The payload of a bzImage: a vmlinux, compressed in one of seven ways.

    gzip    1f 8b        zlib            xz    fd 37 7a 58   lzma, with the x86 filter
    bzip2   42 5a        bz2             lz4   02 21 4c 18   lz4: the "legacy frame"
    lzma    5d 00        lzma            zstd  28 b5 2f fd   zstandard
                                         lzo   89 4c 5a 4f   python-lzo; lzop's file format

The build appends the size of the vmlinux to the compressed stream, 4 bytes little-endian (gzip's
own last field is just that), so the output is allocated once and filled in place, and a stream
that yields less or more is refused.

Specifications: Documentation/arch/x86/boot.rst (payload_offset); scripts/Makefile.lib
(size_append); lib/decompress_unlz4.c and decompress_unlzo.c for the two container formats.

Imports are in the functions: each boot needs one of these libraries, zstandard alone costs 12 ms.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvmm.errors import HostError, KernelImageError
from pyvmm.units import KiB, MiB, format_size

if TYPE_CHECKING:
    from typing import Any, Protocol

    class _Decompressor(Protocol):
        """What bz2's and lzma's decompressor objects have in common."""

        @property
        def eof(self) -> bool: ...
        @property
        def needs_input(self) -> bool: ...
        def decompress(self, data: memoryview | bytes, max_length: int) -> bytes: ...


ELF_MAGIC = b"\x7fELF"
SIZE_BYTES = 4

# More than this is allocated only for a payload that is not too small to hold it. The ratio is that
# of zeros in gzip (RFC 1951: 258 bytes in 2 bits); kernels shrink to a quarter or so.
SMALL_BYTES = 16 * MiB
MAX_RATIO = 1032

# The kernel is built with a dictionary of 128 MiB (scripts/xz_wrap.sh, Linux 6.12) or less.
XZ_MEMORY_LIMIT_BYTES = 256 * MiB

LZ4_LEGACY_MAGIC = 0x184C2102
LZ4_LEGACY_CHUNK_BYTES = 8 * MiB

# lzop's header flags (lzop, src/conf.h): which checksums stand before each block's data.
LZOP_ADLER32_D = 0x0000_0001
LZOP_ADLER32_C = 0x0000_0002
LZOP_CRC32_D = 0x0000_0100
LZOP_CRC32_C = 0x0000_0200
LZOP_H_FILTER = 0x0000_0800
LZOP_MAGIC = b"\x89LZO\x00\r\n\x1a\n"

_INPUT_STEP_BYTES = 256 * KiB
_OUTPUT_STEP_BYTES = 1 * MiB


class _CorruptError(Exception):
    """What is wrong with the stream, seen by our own code rather than by a library."""


def decompress(payload: memoryview, limit_bytes: int) -> memoryview:
    """The vmlinux in ``payload``; ``payload`` itself if it is not compressed.

    The memory of the result is given back when the last view of it goes.

    Raises KernelImageError if the compression is unknown, its library is not installed, the
    stream is damaged, or its size is not the recorded one, or is above ``limit_bytes`` or what
    so small a payload can hold;
    HostError if there is no memory for the result.
    """
    if payload[:4] == ELF_MAGIC:
        return payload
    name, decompressor = identify(payload)
    size_bytes = int.from_bytes(payload[-SIZE_BYTES:], "little")
    if not 0 < size_bytes <= limit_bytes:
        raise KernelImageError(
            f"its {name} payload should decompress to {size_bytes} bytes by its last field; "
            f"expected at most {format_size(limit_bytes)}; give the guest more memory with --mem, "
            "or get a fresh copy of the image if that is no likely size",
            "payload-size",
        )
    most_bytes = max(SMALL_BYTES, MAX_RATIO * len(payload))
    if size_bytes > most_bytes:
        raise KernelImageError(
            f"its {name} payload has {len(payload)} bytes and should decompress to {size_bytes} by "
            f"its last field; expected at most {most_bytes} of so few; get a fresh copy of the "
            "image",
            "payload-ratio",
        )
    output = _allocate(size_bytes)
    try:
        produced = decompressor(payload, output)
    except KernelImageError:
        raise
    except Exception as error:
        # The libraries' errors have no common base, and to name them would be to import them.
        raise KernelImageError(
            f"its {name} payload is damaged ({str(error) or type(error).__name__}); "
            "get a fresh copy of the image",
            "payload-stream",
        ) from error
    if produced != size_bytes:
        raise KernelImageError(
            f"its {name} payload decompressed to {produced} bytes; expected {size_bytes} by its "
            "last field; it is cut off or damaged; get a fresh copy of the image",
            "payload-size-mismatch",
        )
    return output.toreadonly()


def identify(payload: memoryview) -> tuple[str, Callable[[memoryview, memoryview], int]]:
    """The name of the compression of ``payload``, and what decompresses it into a buffer."""
    for name, magic, decompressor in _COMPRESSIONS:
        if payload[: len(magic)] == magic:
            return name, decompressor
    raise KernelImageError(
        f"its payload begins with the bytes {bytes(payload[:4]).hex(' ')}; expected the magic "
        "number of gzip, bzip2, lzma, xz, lzo, lz4 or zstd; try --decompress guest",
        "payload-compression",
    )


def _allocate(size_bytes: int) -> memoryview:
    """Zeroed memory in huge pages if possible: filling 57 MB takes half the time then."""
    try:
        buffer = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise HostError(
            f"the host did not give {size_bytes} bytes of memory to decompress the kernel into "
            f"({error}); free some, or use --decompress guest"
        ) from error
    try:
        buffer.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pass  # a host built without them: only slower
    return memoryview(buffer)


class _Output:
    """Appends to a buffer of fixed size, and refuses what does not fit."""

    __slots__ = ("buffer", "filled")

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer
        self.filled = 0

    @property
    def room(self) -> int:
        return len(self.buffer) - self.filled

    def append(self, data: bytes) -> None:
        if len(data) > self.room:
            raise _CorruptError(f"it yields more than the {len(self.buffer)} bytes recorded")
        self.buffer[self.filled : self.filled + len(data)] = data
        self.filled += len(data)


def _run(decompressor: _Decompressor, payload: memoryview, buffer: memoryview) -> int:
    """Feed ``payload`` to ``decompressor`` until its stream ends; how much it put in ``buffer``."""
    output = _Output(buffer)
    position = 0
    while not decompressor.eof:
        step: memoryview | bytes = b""
        if decompressor.needs_input:
            step = payload[position : position + _INPUT_STEP_BYTES]
            position += len(step)
            if not step:
                raise _CorruptError("it ends before its stream does")
        output.append(decompressor.decompress(step, _OUTPUT_STEP_BYTES))
    return output.filled


def _bunzip2(payload: memoryview, buffer: memoryview) -> int:
    import bz2

    return _run(bz2.BZ2Decompressor(), payload, buffer)


def _unlzma(payload: memoryview, buffer: memoryview) -> int:
    import lzma

    decompressor = lzma.LZMADecompressor(lzma.FORMAT_ALONE, XZ_MEMORY_LIMIT_BYTES)
    return _run(decompressor, payload, buffer)


def _unxz(payload: memoryview, buffer: memoryview) -> int:
    import lzma

    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY_LIMIT_BYTES)
    return _run(decompressor, payload, buffer)


def _gunzip(payload: memoryview, buffer: memoryview) -> int:
    import zlib

    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: a gzip header and trailer
    output = _Output(buffer)
    position = 0
    while not decompressor.eof:
        step: memoryview | bytes = decompressor.unconsumed_tail
        if not step:
            step = payload[position : position + _INPUT_STEP_BYTES]
            position += len(step)
        chunk = decompressor.decompress(step, _OUTPUT_STEP_BYTES)
        if not step and not chunk:
            raise _CorruptError("it ends before its stream does")
        output.append(chunk)
    return output.filled


def _unzstd(payload: memoryview, buffer: memoryview) -> int:
    import zstandard

    filled = 0
    # Into place, a part at a time: the one-shot function would make bytes of its own.
    with zstandard.ZstdDecompressor().stream_reader(payload[:-SIZE_BYTES]) as reader:
        while filled < len(buffer):
            count = reader.readinto(buffer[filled:])
            if count == 0:
                return filled
            filled += count
        if reader.read(1):
            raise _CorruptError(f"it yields more than the {len(buffer)} bytes recorded")
    return filled


def _unlz4(payload: memoryview, buffer: memoryview) -> int:
    """LZ4's legacy frame: the magic, then for each 8 MiB a 32-bit size and a block.

    Only the last block may hold less, so how much each must yield is known beforehand.
    """
    import lz4.block

    # Each chunk passes through two buffers of lz4.block. glibc gives such large ones back to the
    # kernel, to get them anew page by page, until one of their size has been freed: from then on it
    # keeps them (mallopt(3), M_MMAP_THRESHOLD). For a kernel of 53 MB 6600 page faults, not 10,700.
    bytes(min(len(buffer), LZ4_LEGACY_CHUNK_BYTES))

    stream = payload[:-SIZE_BYTES]
    output = _Output(buffer)
    position = 0
    while position + 4 <= len(stream):
        word = int.from_bytes(stream[position : position + 4], "little")
        position += 4
        if word == LZ4_LEGACY_MAGIC:
            continue
        if word == 0:
            break
        block = stream[position : position + word]
        if len(block) < word:
            raise _CorruptError(f"it ends {word - len(block)} bytes before its last block does")
        position += word
        chunk_bytes = min(LZ4_LEGACY_CHUNK_BYTES, output.room)
        if chunk_bytes == 0:
            raise _CorruptError(f"it yields more than the {len(buffer)} bytes recorded")
        chunk = lz4.block.decompress(block, uncompressed_size=chunk_bytes)
        if len(chunk) != chunk_bytes:
            raise _CorruptError(f"it has a block of {len(chunk)} bytes, expected {chunk_bytes}")
        output.append(chunk)
    return output.filled


def _unlzo(payload: memoryview, buffer: memoryview) -> int:
    """lzop's file format, big-endian: a header, then blocks of sizes, checksums and data.

    Of the checksums, that of each block's uncompressed data is verified.
    """
    import zlib

    lzo = _import_lzo()
    cursor = _Cursor(payload)
    flags = _read_lzop_header(cursor)
    output = _Output(buffer)
    while plain_bytes := cursor.be(4):
        packed_bytes = cursor.be(4)
        checksum = cursor.be(4) if flags & (LZOP_ADLER32_D | LZOP_CRC32_D) else None
        # A block that does not shrink is stored as it is, without the second checksum.
        if flags & (LZOP_ADLER32_C | LZOP_CRC32_C) and packed_bytes < plain_bytes:
            cursor.be(4)
        if plain_bytes > output.room:
            raise _CorruptError(f"it yields more than the {len(buffer)} bytes recorded")
        if packed_bytes > plain_bytes:
            raise _CorruptError("it has a block that is larger than its contents")
        block = cursor.take(packed_bytes)
        if packed_bytes < plain_bytes:
            block = lzo.decompress(block, False, plain_bytes)
        if len(block) != plain_bytes:
            raise _CorruptError("it has a block with less in it than it says")
        verify = zlib.adler32 if flags & LZOP_ADLER32_D else zlib.crc32
        if checksum is not None and verify(block) != checksum:
            raise _CorruptError("it has a block with a wrong checksum")
        output.append(block)
    return output.filled


def _read_lzop_header(cursor: _Cursor) -> int:
    """Step over the header; its flags."""
    cursor.take(len(LZOP_MAGIC))
    version = cursor.be(2)
    if version < 0x0940:
        raise _CorruptError(f"it is of lzop version {version:#06x}; expected 0x0940 or later")
    cursor.take(2 + 2 + 1 + 1)  # library version, version needed, method, level
    flags = cursor.be(4)
    if flags & LZOP_H_FILTER:
        cursor.take(4)
    cursor.take(4 + 4 + 4)  # mode, time, upper half of the time
    cursor.take(cursor.be(1))  # file name
    cursor.take(4)  # checksum of this header
    return flags


class _Cursor:
    """Reads a payload from its start, and notices its end."""

    __slots__ = ("data", "position")

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.position = 0

    def take(self, size_bytes: int) -> bytes:
        part = bytes(self.data[self.position : self.position + size_bytes])
        if len(part) < size_bytes:
            raise _CorruptError("it ends before its stream does")
        self.position += size_bytes
        return part

    def be(self, size_bytes: int) -> int:
        return int.from_bytes(self.take(size_bytes), "big")


def _import_lzo() -> Any:
    try:
        import lzo
    except ImportError:
        raise KernelImageError(
            "its payload is compressed with LZO, for which a library is needed that is not "
            "installed; pip install 'pyvmm[lzo]', or use --decompress guest",
            "payload-library",
        ) from None
    return lzo


# The magic numbers are what the format itself demands, more than boot.rst's two bytes of each.
_COMPRESSIONS: tuple[tuple[str, bytes, Callable[[memoryview, memoryview], int]], ...] = (
    ("gzip", b"\x1f\x8b", _gunzip),
    ("bzip2", b"BZ", _bunzip2),
    ("lzma", b"\x5d\x00", _unlzma),
    ("xz", b"\xfd7zXZ\x00", _unxz),
    ("lzo", LZOP_MAGIC, _unlzo),
    ("lz4", LZ4_LEGACY_MAGIC.to_bytes(4, "little"), _unlz4),
    ("zstd", b"\x28\xb5\x2f\xfd", _unzstd),
)
