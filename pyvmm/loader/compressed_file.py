"""A kernel compressed as any file may be: vmlinux.gz, Image.zst, xen.gz.

    gzip    1f 8b          zlib           xz      fd 37 7a 58    lzma
    bzip2   42 5a 68       bz2            lzma    5d 00 00       lzma
    lz4     04 22 4d 18    lz4's frame    lz4     02 21 4c 18    its legacy frame (`lz4 -l`)
    zstd    28 b5 2f fd    zstandard

A bzImage's payload has its size behind it, and so is decompressed in one go (decompress.py). Here
nothing says how much there will be, or nothing that can be believed. So the first step is looked
at: if that is not the beginning of a kernel, no more is decompressed. A stream of a few bytes that
would yield gigabytes ends there, or at the caller's limit.

Left out: lzop's files.

Specifications: RFC 1952 (gzip), RFC 8878 (zstd), the file formats of xz and LZ4.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

from pyvmm.errors import KernelImageError
from pyvmm.loader.decompress import LZ4_LEGACY_CHUNK_BYTES, LZ4_LEGACY_MAGIC, XZ_MEMORY_LIMIT_BYTES
from pyvmm.units import KiB, MiB, format_size

STEP_BYTES = 1 * MiB

Read = Callable[[int], bytes]
"""Gives the next bytes of a stream, at most so many, or a block's worth; none at its end."""


def is_compressed(data: memoryview) -> bool:
    """Whether ``data`` begins as a file of one of these compressions does."""
    return any(data[: len(magic)] == magic for _, magic, _ in _COMPRESSIONS)


def name_of(data: memoryview) -> str:
    """The compression of ``data``, for which ``is_compressed`` holds."""
    return _find(data)[0]


def decompress_file(
    data: memoryview, limit_bytes: int, check_start: Callable[[memoryview], object]
) -> tuple[str, memoryview]:
    """The compression of ``data``, for which ``is_compressed`` holds, and what is in it.

    ``check_start`` gets the first bytes, up to STEP_BYTES or so, and raises what it likes if there
    is no use in going on.

    Raises KernelImageError if the stream is damaged or yields more than ``limit_bytes``.
    """
    name, open_stream = _find(data)
    output = bytearray()
    read = open_stream(data)
    while True:
        try:
            chunk = read(STEP_BYTES)
        except MemoryError:
            raise
        except Exception as error:
            # The libraries' errors have no common base, and to name them would be to import them.
            raise KernelImageError(
                f"is a file compressed with {name} that is damaged or cut off "
                f"({str(error) or type(error).__name__}); expected an x86-64 kernel in it; get a "
                "fresh copy",
                "file-stream",
            ) from error
        if not output:
            check_start(memoryview(chunk))
        if not chunk:
            return name, memoryview(output).toreadonly()
        if len(output) + len(chunk) > limit_bytes:
            raise KernelImageError(
                f"is a file compressed with {name}, with more than {format_size(limit_bytes)} in "
                "it, which is all the memory that there is for it; give the guest more with --mem, "
                "or get a fresh copy if that is no likely size",
                "file-stream-size",
            )
        output += chunk


def _find(data: memoryview) -> tuple[str, Callable[[memoryview], Read]]:
    return next(
        (name, open_stream)
        for name, magic, open_stream in _COMPRESSIONS
        if data[: len(magic)] == magic
    )


def _gzip(data: memoryview) -> Read:
    import gzip

    return gzip.GzipFile(fileobj=BytesIO(data)).read


def _bzip2(data: memoryview) -> Read:
    import bz2

    return bz2.BZ2File(BytesIO(data)).read


def _lzma(data: memoryview) -> Read:
    """Both of lzma's formats; not with LZMAFile, which takes any size of dictionary."""
    import lzma

    decompressor = lzma.LZMADecompressor(memlimit=XZ_MEMORY_LIMIT_BYTES)
    source = BytesIO(data)

    def read(size_bytes: int) -> bytes:
        if decompressor.eof:
            return b""
        step = source.read() if decompressor.needs_input else b""
        chunk = decompressor.decompress(step, size_bytes)
        if not chunk and not decompressor.eof:
            raise EOFError("it ends before its stream does")
        return chunk

    return read


def _lz4(data: memoryview) -> Read:
    import lz4.frame

    read: Read = lz4.frame.LZ4FrameFile(BytesIO(data)).read
    return read


def _lz4_legacy(data: memoryview) -> Read:
    """The magic, then blocks: a 32-bit size and what becomes at most 8 MiB, each."""
    import lz4.block

    source = BytesIO(data)

    def read(_size_bytes: int) -> bytes:
        word = source.read(4)
        while int.from_bytes(word, "little") == LZ4_LEGACY_MAGIC:
            word = source.read(4)
        if not word:
            return b""
        size_bytes = int.from_bytes(word, "little")
        block = source.read(size_bytes)
        if len(block) < size_bytes or len(word) < 4:
            raise EOFError("it ends within a block")
        chunk: bytes = lz4.block.decompress(block, uncompressed_size=LZ4_LEGACY_CHUNK_BYTES)
        return chunk

    return read


def _zstd(data: memoryview) -> Read:
    """Not with its stream_reader, to which a stream that is cut off has just ended."""
    import zstandard

    source = BytesIO(data)
    frame = zstandard.ZstdDecompressor().decompressobj()

    def read(_size_bytes: int) -> bytes:
        nonlocal frame
        chunk = b""
        while not chunk:
            step = source.read(_ZSTD_INPUT_BYTES)
            if frame.eof:
                step = frame.unused_data + step
                if not step:
                    return b""
                frame = zstandard.ZstdDecompressor().decompressobj()
            elif not step:
                raise EOFError("it ends before its stream does")
            chunk = frame.decompress(step)
        return chunk

    return read


# 4 bytes of zstd become at most 128 KiB (RFC 8878, 3.1.1.2.2, RLE_Block), this thus 32 MiB.
_ZSTD_INPUT_BYTES = 1 * KiB

_COMPRESSIONS: tuple[tuple[str, bytes, Callable[[memoryview], Read]], ...] = (
    ("gzip", b"\x1f\x8b", _gzip),
    ("bzip2", b"BZh", _bzip2),
    ("xz", b"\xfd7zXZ\x00", _lzma),
    ("lzma", b"\x5d\x00\x00", _lzma),
    ("lz4", b"\x04\x22\x4d\x18", _lz4),
    ("lz4", LZ4_LEGACY_MAGIC.to_bytes(4, "little"), _lz4_legacy),
    ("zstd", b"\x28\xb5\x2f\xfd", _zstd),
)
