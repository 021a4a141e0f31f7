"""What a kernel is wrapped in comes off: compressed files, EFI zboot, UKIs, one in the other."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import shutil
import struct
import subprocess
import tracemalloc
from collections.abc import Callable

import lz4.frame
import pytest
import zstandard
from builders import bzimage as bz
from builders.elf import vmlinux
from builders.flat_image import arm64_image, zboot
from builders.pe import uki

from pyvmm.errors import KernelImageError
from pyvmm.loader.compressed_file import STEP_BYTES
from pyvmm.loader.image import ImageFormat, KernelImage, detect, unwrapped
from pyvmm.loader.load import extract_vmlinux, load_kernel
from pyvmm.loader.unpack import Layer
from pyvmm.memory import GuestMemory
from pyvmm.units import GiB, MiB

# More than a step, and no easier to compress than a kernel is.
VMLINUX = vmlinux(random.Random(0).randbytes(100_000) * 15)
assert len(VMLINUX) > STEP_BYTES
INITRAMFS = b"070701" + bytes(3000)

COMPRESS = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "lz4": lz4.frame.compress,
    "lz4 legacy": lambda data: bz.compress("lz4", data)[:-4],
    "zstd": zstandard.compress,
    "zstd of unknown size": lambda data: bz.compress("zstd", data)[:-4],
}
# Each reads a pipe; the options are the kernel's own where it makes such files (Makefile.lib).
TOOLS = {
    "gzip": "gzip -n -f -9",
    "bzip2": "bzip2 -9",
    "xz": "xz --check=crc32",
    "lzma": "xz --format=lzma -9",
    "lz4": "lz4 -9",
    "lz4 legacy": "lz4 -l -9",
    "zstd": "zstd -19",
}


def unwrap(data: bytes, limit_bytes: int = GiB) -> KernelImage:
    return unwrapped(KernelImage.from_bytes(data, "some/file"), limit_bytes)


def refusal(data: bytes, limit_bytes: int = GiB) -> KernelImageError:
    with pytest.raises(KernelImageError) as caught:
        unwrap(data, limit_bytes)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("some/file: ")
    return caught.value


def test_what_is_not_wrapped_is_left_alone() -> None:
    for data in (VMLINUX, bz.bzimage(bz.compress("gzip", VMLINUX)), b"", b"text", arm64_image()):
        image = KernelImage.from_bytes(data)
        assert unwrapped(image) is image


@pytest.mark.parametrize("name", COMPRESS)
def test_compressed_file_is_decompressed(name: str) -> None:
    packed = COMPRESS[name](VMLINUX)
    image = unwrap(packed)
    assert image.data == VMLINUX
    assert image.data.readonly
    assert image.layers == (Layer(name.split()[0], 0, len(packed)),)


@pytest.mark.parametrize("name", TOOLS)
def test_output_of_the_tool_is_decompressed(name: str) -> None:
    command = TOOLS[name].split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    packed = subprocess.run(command, input=VMLINUX, capture_output=True, check=True).stdout
    assert unwrap(packed).data == VMLINUX


@pytest.mark.parametrize("name", ["gzip", "bzip2", "lz4", "zstd"])
def test_streams_one_behind_the_other_are_one_file(name: str) -> None:
    half = len(VMLINUX) // 2
    packed = COMPRESS[name](VMLINUX[:half]) + COMPRESS[name](VMLINUX[half:])
    assert unwrap(packed).data == VMLINUX


def test_legacy_lz4_of_several_blocks_is_decompressed() -> None:
    data = VMLINUX + bytes(17 * MiB)
    assert unwrap(COMPRESS["lz4 legacy"](data)).data == data


@pytest.mark.parametrize("name", COMPRESS)
@pytest.mark.parametrize("share", [0.0005, 0.5, 0.999])
def test_compressed_file_that_is_cut_off_is_refused(name: str, share: float) -> None:
    packed = COMPRESS[name](VMLINUX)
    error = refusal(packed[: max(7, int(len(packed) * share))])
    assert error.rule == "file-stream"
    assert f"is a file compressed with {name.split()[0]} that is damaged or cut off" in str(error)


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz"])
def test_checksum_of_compressed_file_is_verified(name: str) -> None:
    packed = bytearray(COMPRESS[name](VMLINUX))
    packed[len(packed) // 2] ^= 0x10
    assert refusal(bytes(packed)).rule == "file-stream"


@pytest.mark.parametrize("name", COMPRESS)
def test_compressed_initramfs_is_explained(name: str) -> None:
    error = refusal(COMPRESS[name](INITRAMFS))
    assert error.rule == "image-format"
    assert "what is compressed in it: is a cpio archive, an initramfs" in str(error)
    assert "give it with --initrd, and the kernel with --kernel" in str(error)


@pytest.mark.parametrize("name", COMPRESS)
def test_no_more_than_the_start_of_a_bomb_is_decompressed(name: str) -> None:
    bomb = COMPRESS[name](bytes(100 * MiB))
    tracemalloc.start()
    try:
        error = refusal(bomb)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.rule == "image-format"
    assert "512 zero bytes" in str(error)
    assert peak_bytes < 60 * MiB  # a step of zstd may be 32, and is held twice for a moment


@pytest.mark.parametrize("name", COMPRESS)
def test_kernel_that_is_larger_than_memory_is_refused(name: str) -> None:
    error = refusal(COMPRESS[name](vmlinux() + bytes(20 * MiB)), limit_bytes=16 * MiB)
    assert error.rule == "file-stream-size"
    assert "more than 16 MiB in it" in str(error)


def test_kernel_as_large_as_memory_is_allowed() -> None:
    assert unwrap(gzip.compress(VMLINUX), len(VMLINUX)).data == VMLINUX
    assert refusal(gzip.compress(VMLINUX), len(VMLINUX) - 1).rule == "file-stream-size"


def test_lzma_that_asks_for_2_gib_of_dictionary_is_refused() -> None:
    packed = bytearray(lzma.compress(VMLINUX, lzma.FORMAT_ALONE))
    packed[1:5] = b"\x00\x00\x00\x80"  # the dictionary's size, after the properties byte
    assert "Memory usage limit" in str(refusal(bytes(packed)))


def test_one_layer_in_another_comes_off() -> None:
    bzimage = bz.bzimage(bz.compress("gzip", VMLINUX))
    inner_uki = uki(gzip.compress(bzimage, mtime=0), initrd=b"initrd", cmdline=b"a b\n")
    image = unwrap(lzma.compress(inner_uki))
    assert image.data == bzimage
    assert [layer.name for layer in image.layers] == ["xz", "UKI", "gzip"]
    assert (bytes(image.initrd or b""), image.cmdline) == (b"initrd", b"a b")
    assert detect(image) is ImageFormat.BZIMAGE


def test_more_layers_than_four_are_refused() -> None:
    data = VMLINUX
    for _ in range(4):
        data = gzip.compress(data)
    assert unwrap(data).data == VMLINUX
    assert refusal(gzip.compress(data)).rule == "unpack-layers"


def test_layer_of_a_uki_says_where_the_kernel_is() -> None:
    data = uki(VMLINUX, cmdline=b"quiet")
    image = unwrap(data)
    (layer,) = image.layers
    assert (layer.name, layer.size_bytes) == ("UKI", len(VMLINUX))
    assert data[layer.offset :][: layer.size_bytes] == VMLINUX


def test_fault_in_a_uki_is_told_with_the_files_name() -> None:
    data = uki(VMLINUX)
    assert refusal(data[: len(data) - 0x1000]).rule == "pe-section"


def test_uki_without_a_kernel_in_it_is_explained() -> None:
    with pytest.raises(KernelImageError, match=r"some/file: section \.linux: is text"):
        detect(KernelImage.from_bytes(uki(b"no kernel\n"), "some/file"))


def test_uki_for_another_machine_is_explained() -> None:
    with pytest.raises(KernelImageError, match="is an ARM64 kernel") as caught:
        detect(KernelImage.from_bytes(uki(arm64_image())))
    assert caught.value.rule == "image-machine"


# EFI zboot


def zboot_of(name: str, compression: bytes, image: bytes) -> bytes:
    """As Makefile.zboot makes it: the size that is appended to a stream is not counted."""
    payload = bz.compress(name, image)
    size_bytes = len(payload) if name == "gzip" else len(payload) - 4
    return zboot(payload, compression, size_bytes=size_bytes) + b"the EFI program"


ZBOOT_NAMES = {
    "gzip": b"gzip", "lz4": b"lz4", "lzma": b"lzma", "xz": b"xzkern", "zstd": b"zstd22"
}  # fmt: skip


@pytest.mark.parametrize("name", ZBOOT_NAMES)
def test_zboot_image_is_decompressed(name: str) -> None:
    image = unwrap(zboot_of(name, ZBOOT_NAMES[name], arm64_image()))
    assert image.data == arm64_image()
    (layer,) = image.layers
    assert layer.name == f"EFI zboot, {ZBOOT_NAMES[name].decode()}"
    assert (layer.offset, layer.size_bytes) == (0x40, len(bz.compress(name, arm64_image())))


def test_zboot_header_that_is_cut_off_is_refused() -> None:
    assert refusal(zboot_of("gzip", b"gzip", arm64_image())[:0x3F]).rule == "zboot-header"


@pytest.mark.parametrize(
    ("offset", "size_bytes"),
    [(0x3F, 16), (0x40, 65), (0x41, 64), (0xFFFF_FFFF, 0xFFFF_FFFF)],
)
def test_zboot_payload_outside_the_file_is_refused(offset: int, size_bytes: int) -> None:
    image = zboot(bytes(64), b"gzip", offset=offset, size_bytes=size_bytes)
    assert refusal(image).rule == "zboot-payload"


def test_zboot_size_behind_the_payload_must_be_there() -> None:
    payload = bz.compress("zstd", arm64_image())
    whole = zboot(payload, b"zstd22", size_bytes=len(payload) - 4)
    assert unwrap(whole).data == arm64_image()
    assert refusal(whole[:-1]).rule == "zboot-payload"


def test_zboot_payload_that_is_damaged_is_refused() -> None:
    payload = gzip.compress(arm64_image())[:-8] + struct.pack("<II", 0, len(arm64_image()))
    assert refusal(zboot(payload, b"gzip", size_bytes=len(payload))).rule == "payload-stream"


def test_zboot_payload_of_unknown_compression_is_refused() -> None:
    image = zboot(b"?" * 64, b"brotli", size_bytes=60)
    assert refusal(image).rule == "payload-compression"


# What is built on it


def test_compressed_vmlinux_is_loaded() -> None:
    with GuestMemory.create(16 * MiB) as memory, GuestMemory.create(16 * MiB) as other:
        kernel = load_kernel(KernelImage.from_bytes(gzip.compress(VMLINUX)), memory)
        assert kernel == load_kernel(KernelImage.from_bytes(VMLINUX), other)
        assert memory.view(0, 16 * MiB) == other.view(0, 16 * MiB)


@pytest.mark.parametrize("wrap", [gzip.compress, uki])
def test_vmlinux_is_extracted_from_all_wrapping(wrap: Callable[[bytes], bytes]) -> None:
    for kernel in (VMLINUX, bz.bzimage(bz.compress("zstd", VMLINUX))):
        assert extract_vmlinux(KernelImage.from_bytes(wrap(kernel))) == VMLINUX


def test_image_for_another_machine_is_extracted_but_not_loaded() -> None:
    wrapped = KernelImage.from_bytes(zboot_of("gzip", b"gzip", arm64_image()), "some/file")
    assert extract_vmlinux(wrapped) == arm64_image()
    with GuestMemory.create(16 * MiB) as memory, pytest.raises(KernelImageError) as caught:
        load_kernel(wrapped, memory)
    assert caught.value.rule == "image-machine"
    assert str(caught.value).startswith("some/file: EFI zboot payload: is an ARM64 kernel")
