"""The seven compressions, against the tools that the kernel's build calls."""

from __future__ import annotations

import hashlib
import mmap
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib

import pytest
from builders import bzimage as bz

from pyvmm.errors import HostError, KernelImageError
from pyvmm.loader.decompress import decompress
from pyvmm.units import GiB, KiB, MiB


def kernel_like(size_bytes: int) -> bytes:
    """ELF's magic, then bytes of which half compress well and half do not."""
    noise = b"".join(hashlib.sha512(struct.pack("<I", i)).digest() for i in range(1024))
    unit = noise + bytes(range(256)) * 256
    return (b"\x7fELF" + unit * (size_bytes // len(unit) + 1))[:size_bytes]


needs_lzo = pytest.mark.skipif(not bz.HAVE_LZO, reason="python-lzo is not installed")

# Larger than a block of lzop (256 KiB), and than one step of our input and output (1 MiB).
PLAIN = kernel_like(2_500_001)


def refusal(payload: bytes, limit_bytes: int = GiB) -> str:
    with pytest.raises(KernelImageError) as caught:
        decompress(memoryview(payload), limit_bytes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# scripts/Makefile.lib of Linux 6.12; each reads a pipe. xz_wrap.sh chooses xz's options.
TOOLS = {
    "gzip": "gzip -n -f -9",
    "bzip2": "bzip2 -9",
    "lzma": "xz --format=lzma -9",
    "xz": "xz --check=crc32 --x86 --lzma2=,dict=128MiB",
    "lzo": "lzop -9",
    "lz4": "lz4 -l -9",
    "zstd": "zstd -19",
}


@pytest.mark.parametrize("name", TOOLS)
def test_output_of_the_tool_that_the_kernel_is_built_with(name: str) -> None:
    command = TOOLS[name].split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    if name == "lzo" and not bz.HAVE_LZO:
        pytest.skip("python-lzo is not installed")
    stream = subprocess.run(command, input=PLAIN, capture_output=True, check=True).stdout
    size = b"" if name == "gzip" else struct.pack("<I", len(PLAIN))
    assert decompress(memoryview(stream + size), GiB) == PLAIN


@pytest.mark.parametrize("name", bz.COMPRESSIONS)
def test_output_of_the_library(name: str) -> None:
    output = decompress(memoryview(bz.compress(name, PLAIN)), GiB)
    assert output == PLAIN
    assert output.readonly


def test_lz4_of_several_chunks() -> None:
    plain = kernel_like(17 * MiB)
    assert decompress(memoryview(bz.compress("lz4", plain)), GiB) == plain


def test_lz4_chunk_of_exactly_8_mib() -> None:
    plain = kernel_like(8 * MiB)
    assert decompress(memoryview(bz.compress("lz4", plain)), GiB) == plain


def test_lz4_magic_may_be_repeated() -> None:
    magic = bytes.fromhex("02214c18")
    assert decompress(memoryview(magic + bz.compress("lz4", PLAIN)), GiB) == PLAIN


def test_lz4_of_more_chunks_than_recorded_is_refused() -> None:
    payload = bz.compress("lz4", kernel_like(8 * MiB + 1))
    message = refusal(payload[:-4] + struct.pack("<I", 8 * MiB))
    assert f"it yields more than the {8 * MiB} bytes recorded" in message


def test_lz4_chunk_that_is_too_short_is_refused() -> None:
    payload = bz.compress("lz4", PLAIN)
    message = refusal(payload[:-4] + struct.pack("<I", len(PLAIN) + 1))
    assert f"a block of {len(PLAIN)} bytes, expected {len(PLAIN) + 1}" in message


def test_lz4_ends_at_a_chunk_of_size_0() -> None:
    payload = bz.compress("lz4", PLAIN)
    assert decompress(memoryview(payload[:-4] + bytes(8) + payload[-4:]), GiB) == PLAIN


def lzop(*blocks: bytes, flags: int = 1, version: int = 0x1040, extra: bytes = b"") -> bytes:
    """An lzop file, from the description of its format (lzop 1.04, src/lzop.c)."""
    start = struct.pack(">HHHBBI", version, 0x20A0, 0x0940, 3, 9, flags) + extra
    header = b"\x89LZO\x00\r\n\x1a\n" + start + bytes(12) + b"\x04name" + bytes(4)
    return header + b"".join(blocks) + bytes(4)


def stored(data: bytes, *checksums: int) -> bytes:
    """A block that did not shrink."""
    return struct.pack(f">II{len(checksums)}I", len(data), len(data), *checksums) + data


STORED = b"\x7fELF incompressible"
SIZE = struct.pack("<I", len(STORED))


@needs_lzo
@pytest.mark.parametrize(
    "payload",
    [
        lzop(stored(STORED, zlib.adler32(STORED))),
        lzop(stored(STORED, zlib.adler32(STORED)), flags=0x1 | 0x2),
        lzop(stored(STORED, zlib.crc32(STORED)), flags=0x100),
        lzop(stored(STORED), flags=0),
        lzop(stored(STORED), flags=0x800, extra=b"fltr"),
    ],
    ids=["adler32", "adler32 of both", "crc32", "no checksum", "filter"],
)
def test_lzop_header_flags(payload: bytes) -> None:
    assert decompress(memoryview(payload + SIZE), GiB) == STORED


@needs_lzo
def test_lzop_checksum_of_compressed_data_is_stepped_over() -> None:
    import lzo

    plain = b"\x7fELF" + bytes(4096)
    packed = lzo.compress(plain, 9, False)
    sizes = struct.pack(">II", len(plain), len(packed))
    sums = struct.pack(">II", zlib.adler32(plain), zlib.adler32(packed))
    payload = lzop(sizes + sums + packed, flags=0x1 | 0x2) + struct.pack("<I", len(plain))
    assert decompress(memoryview(payload), GiB) == plain


@needs_lzo
@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (lzop(stored(STORED, 0)), "a block with a wrong checksum"),
        (lzop(stored(STORED, 0), flags=0x100), "a block with a wrong checksum"),
        (lzop(struct.pack(">III", 4, 5, 0) + b"12345"), "larger than its contents"),
        (lzop(version=0x0930), "lzop version 0x0930"),
        (lzop(stored(STORED, zlib.adler32(STORED)))[:-9], "ends before its stream does"),
        (lzop(stored(STORED + b"!", 0)), "yields more than"),
        (lzop(), "decompressed to 0 bytes"),
    ],
)
def test_damaged_lzop_is_refused(payload: bytes, problem: str) -> None:
    assert problem in refusal(payload + SIZE)


@needs_lzo
def test_lzop_block_with_less_in_it_than_it_says_is_refused() -> None:
    import lzo

    packed = lzo.compress(bytes(4096), 9, False)
    block = struct.pack(">III", 4097, len(packed), 0) + packed
    assert "its lzo payload is damaged" in refusal(lzop(block) + struct.pack("<I", 4097))


def test_elf_is_not_compressed() -> None:
    payload = memoryview(PLAIN)
    assert decompress(payload, GiB) is payload


@pytest.mark.parametrize("name", bz.COMPRESSIONS)
def test_stream_cut_off_is_refused(name: str) -> None:
    payload = bz.compress(name, PLAIN)
    size = payload[-4:]
    message = refusal(payload[: len(payload) // 2] + size)
    assert f"its {name} payload" in message
    assert "damaged" in message


@pytest.mark.parametrize("name", bz.COMPRESSIONS)
def test_stream_that_yields_more_than_recorded_is_refused(name: str) -> None:
    payload = bz.compress(name, PLAIN)
    message = refusal(payload[:-4] + struct.pack("<I", len(PLAIN) - 1))
    assert f"its {name} payload" in message
    assert "damaged" in message


@pytest.mark.parametrize("name", bz.COMPRESSIONS)
def test_stream_that_yields_less_than_recorded_is_refused(name: str) -> None:
    payload = bz.compress(name, PLAIN)
    message = refusal(payload[:-4] + struct.pack("<I", len(PLAIN) + 1))
    assert f"its {name} payload" in message
    assert "damaged" in message


@pytest.mark.parametrize("name", sorted({"gzip", "bzip2", "xz", "lzo"} & {*bz.COMPRESSIONS}))
def test_checksum_is_verified(name: str) -> None:
    payload = bytearray(bz.compress(name, b"\x7fELF" + bytes(1000) + PLAIN[:1000]))
    payload[len(payload) // 2] ^= 0x10
    assert f"its {name} payload is damaged" in refusal(bytes(payload))


@pytest.mark.parametrize("size_bytes", [0, GiB + 1, 0xFFFF_FFFF])
def test_absurd_size_is_refused_before_anything_is_allocated(size_bytes: int) -> None:
    payload = bz.compress("gzip", PLAIN)[:-4] + struct.pack("<I", size_bytes)
    message = refusal(payload)
    assert f"should decompress to {size_bytes} bytes by its last field" in message
    assert "expected at most 1 GiB" in message


def test_zeros_are_not_too_small_in_gzip() -> None:
    plain = b"\x7fELF" + bytes(64 * MiB)
    assert decompress(memoryview(bz.compress("gzip", plain)), GiB) == plain


@pytest.mark.parametrize("name", bz.COMPRESSIONS)
@pytest.mark.parametrize(
    ("payload_bytes", "most_bytes"), [(100, 16 * MiB), (16 * KiB, 1032 * 16 * KiB)]
)
def test_size_that_so_small_a_payload_cannot_hold_is_refused(
    name: str, payload_bytes: int, most_bytes: int
) -> None:
    stream = bz.compress(name, PLAIN)[: payload_bytes - 4].ljust(payload_bytes - 4, b"\x00")
    with pytest.raises(KernelImageError) as caught:
        decompress(memoryview(stream + struct.pack("<I", most_bytes)), GiB)
    assert caught.value.rule != "payload-ratio"
    with pytest.raises(KernelImageError) as caught:
        decompress(memoryview(stream + struct.pack("<I", most_bytes + 1)), GiB)
    assert caught.value.rule == "payload-ratio"


@pytest.mark.parametrize("name", bz.COMPRESSIONS)
def test_bomb_is_stopped_at_the_recorded_size(name: str) -> None:
    payload = bz.compress(name, bytes(32 * MiB))[:-4] + struct.pack("<I", 4096)
    tracemalloc.start()
    try:
        refusal(payload)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 * MiB  # lzma's dictionary alone has 8


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x00", b"\x1f\x8b", b"BZ", b"\x5d\x00", b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd"],
)
def test_payload_that_is_hardly_there_is_refused(payload: bytes) -> None:
    assert refusal(payload).startswith("its ")


def test_unknown_magic_is_told() -> None:
    assert "begins with the bytes 11 22 33 44" in refusal(b"\x11\x22\x33\x44\x55")


def test_lzma_that_asks_for_4_gib_of_dictionary_is_refused() -> None:
    payload = bytearray(bz.compress("lzma", PLAIN))
    payload[1:5] = b"\x00\xff\xff\xff"  # the dictionary's size, after the properties byte
    assert "its lzma payload is damaged (Memory usage limit exceeded)" in refusal(bytes(payload))


def test_host_without_memory_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(HostError, match=r"did not give 2500001 bytes .* free some"):
        decompress(memoryview(bz.compress("gzip", PLAIN)), GiB)


def test_lzo_without_its_library_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lzo", None)
    message = refusal(b"\x89LZO\x00\r\n\x1a\n" + bytes(64) + struct.pack("<I", 4096))
    assert "pip install 'pyvmm[lzo]', or use --decompress guest" in message
