"""Images of arm64 and riscv64: headers and places by the specifications, Debian's kernels."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from builders.flat_image import arm64_image, riscv64_image
from builders.ram import ram_at
from builders.stock_kernels import stock_kernel

from pyvmm.errors import KernelImageError
from pyvmm.loader import arm64, pe, riscv64
from pyvmm.loader.image import ImageFormat, KernelImage, identify
from pyvmm.memory import GuestMemory
from pyvmm.units import GiB, MiB

# Where a virtual arm64 machine has its RAM; a riscv64 one, a GiB higher.
RAM_GPA = 1 * GiB
ARM64_KERNELS = ("debian:6.1-arm64", "debian:6.12-arm64")


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """8 MiB of RAM with something in it."""
    with ram_at(RAM_GPA, 8 * MiB, b"\xee") as memory:
        yield memory


def refusal(image: bytes, memory: GuestMemory, base_gpa: int = RAM_GPA) -> str:
    """The rule that placing ``image`` breaks."""
    kernel = KernelImage.from_bytes(image, "some/Image")
    place = riscv64.place if identify(kernel.data) is ImageFormat.RISCV64 else arm64.place
    with pytest.raises(KernelImageError) as caught:
        place(kernel, memory, base_gpa)
    assert str(caught.value).startswith("some/Image: ")
    assert "\n" not in str(caught.value)
    return caught.value.rule


# arm64


def test_arm64_header_is_read() -> None:
    image = memoryview(arm64_image(text_offset=0x8_0000, flags=0b1010, res5=0x40))
    assert identify(image) is ImageFormat.ARM64
    header = arm64.parse(image)
    assert (header.text_offset, header.image_size, header.flags) == (0x8_0000, 0x30000, 0b1010)
    assert (header.code0, header.code1, header.res5) == (0xFA405A4D, 0x14000000, 0x40)


# booting.rst, "The flags field".
@pytest.mark.parametrize(
    ("flags", "is_big_endian", "page_size", "can_be_anywhere"),
    [
        (0b0000, False, arm64.PageSize.UNSPECIFIED, False),
        (0b0001, True, arm64.PageSize.UNSPECIFIED, False),
        (0b0010, False, arm64.PageSize.SIZE_4K, False),
        (0b0100, False, arm64.PageSize.SIZE_16K, False),
        (0b1110, False, arm64.PageSize.SIZE_64K, True),
        (1 << 63, False, arm64.PageSize.UNSPECIFIED, False),
    ],
)
def test_arm64_flags_are_decoded(
    flags: int, is_big_endian: bool, page_size: arm64.PageSize, can_be_anywhere: bool
) -> None:
    header = arm64.parse(memoryview(arm64_image(flags=flags)))
    assert header.is_big_endian is is_big_endian
    assert header.page_size is page_size
    assert header.can_be_anywhere is can_be_anywhere


def test_arm64_image_is_placed_at_its_offset_with_room_behind(memory: GuestMemory) -> None:
    image = arm64_image(text_offset=0x1_0000, image_size=0x2_0000)
    placed = arm64.place(KernelImage.from_bytes(image), memory, RAM_GPA + 2 * MiB)
    entry_gpa = RAM_GPA + 2 * MiB + 0x1_0000
    assert placed == (entry_gpa, entry_gpa + 0x2_0000)
    assert memory.read(entry_gpa - 1, 1) == b"\xee"
    assert memory.read(entry_gpa, len(image)) == image
    assert memory.read(entry_gpa + len(image), 0x2_0000 - len(image)).strip(b"\x00") == b""
    assert memory.read(entry_gpa + 0x2_0000, 1) == b"\xee"


def test_arm64_image_without_a_size_goes_where_old_kernels_did(memory: GuestMemory) -> None:
    # Before Linux 3.17 a big-endian kernel wrote text_offset in its own byte order.
    image = arm64_image(text_offset=0x0000_0800_0000_0000, image_size=0)
    placed = arm64.place(KernelImage.from_bytes(image), memory, RAM_GPA)
    assert placed.entry_gpa == RAM_GPA + 0x8_0000
    assert placed.end_gpa == RAM_GPA + 0x8_0000 + len(image)


def test_arm64_image_with_more_in_the_file_than_it_says_is_placed_whole(
    memory: GuestMemory,
) -> None:
    image = arm64_image(image_size=0x100)
    placed = arm64.place(KernelImage.from_bytes(image), memory, RAM_GPA)
    assert placed.end_gpa == RAM_GPA + len(image)


def test_arm64_image_may_end_where_memory_does(memory: GuestMemory) -> None:
    placed = arm64.place(KernelImage.from_bytes(arm64_image(image_size=8 * MiB)), memory, RAM_GPA)
    assert placed.end_gpa == memory.end_gpa


@pytest.mark.parametrize("size", [8 * MiB + 1, 1 << 63])
def test_arm64_image_that_needs_more_memory_is_refused(size: int, memory: GuestMemory) -> None:
    assert refusal(arm64_image(image_size=size), memory) == "image-ram"


def test_arm64_image_with_an_offset_beyond_memory_is_refused(memory: GuestMemory) -> None:
    assert refusal(arm64_image(text_offset=0xFFFF_FFFF_FFFF_FFFF), memory) == "image-ram"


def test_arm64_base_that_is_not_aligned_is_refused(memory: GuestMemory) -> None:
    assert refusal(arm64_image(), memory, RAM_GPA + 1 * MiB) == "image-base-alignment"


def test_arm64_base_below_memory_is_refused(memory: GuestMemory) -> None:
    assert refusal(arm64_image(), memory, RAM_GPA - 2 * MiB) == "image-ram"


def test_arm64_header_that_is_cut_off_is_refused(memory: GuestMemory) -> None:
    assert refusal(arm64_image()[:63], memory) == "arm64-header-size"
    assert arm64.parse(memoryview(arm64_image()[:64])).image_size == 0x30000


def test_arm64_image_with_another_magic_is_refused(memory: GuestMemory) -> None:
    assert refusal(arm64_image(magic=0x644D5242), memory) == "arm64-magic"


# riscv64


def test_riscv64_header_is_read() -> None:
    image = memoryview(riscv64_image(version=0x0001_0003, flags=1, res3=0x40))
    assert identify(image) is ImageFormat.RISCV64
    header = riscv64.parse(image)
    assert (header.text_offset, header.image_size) == (0x20_0000, 0x30000)
    assert header.magic == b"RISCV\x00\x00\x00"
    assert (header.version_text, header.is_big_endian, header.res3) == ("1.3", True, 0x40)
    assert riscv64.parse(memoryview(riscv64_image())).version_text == "0.2"
    assert riscv64.parse(memoryview(riscv64_image())).is_big_endian is False


def test_riscv64_image_is_placed_at_its_offset_with_room_behind(memory: GuestMemory) -> None:
    image = riscv64_image()
    placed = riscv64.place(KernelImage.from_bytes(image), memory, RAM_GPA)
    entry_gpa = RAM_GPA + 2 * MiB
    assert placed == (entry_gpa, entry_gpa + 0x30000)
    assert memory.read(entry_gpa - 1, 1) == b"\xee"
    assert memory.read(entry_gpa, 0x30000) == image.ljust(0x30000, b"\x00")
    assert memory.read(entry_gpa + 0x30000, 1) == b"\xee"


def test_riscv64_magic_of_old_headers_does_not_matter(memory: GuestMemory) -> None:
    placed = riscv64.place(KernelImage.from_bytes(riscv64_image(magic=0)), memory, RAM_GPA)
    assert placed.entry_gpa == RAM_GPA + 2 * MiB


def test_riscv64_image_without_a_size_is_refused(memory: GuestMemory) -> None:
    assert refusal(riscv64_image(image_size=0), memory) == "riscv64-image-size"


def test_riscv64_image_that_needs_more_memory_is_refused(memory: GuestMemory) -> None:
    assert refusal(riscv64_image(image_size=6 * MiB + 1), memory) == "image-ram"


def test_riscv64_base_that_is_not_aligned_is_refused(memory: GuestMemory) -> None:
    assert refusal(riscv64_image(), memory, RAM_GPA + 4096) == "image-base-alignment"


def test_riscv64_header_that_is_cut_off_is_refused(memory: GuestMemory) -> None:
    assert refusal(riscv64_image()[:63], memory) == "riscv64-header-size"


def test_riscv64_image_with_another_magic2_is_refused() -> None:
    with pytest.raises(KernelImageError) as caught:
        riscv64.parse(memoryview(riscv64_image(magic2=0x05435353)))
    assert caught.value.rule == "riscv64-magic2"


# The real ones


@pytest.mark.parametrize("name", ARM64_KERNELS)
def test_stock_arm64_kernel_is_as_file_tells_it(name: str) -> None:
    if shutil.which("file") is None:
        pytest.skip("file(1) is not installed")
    path = stock_kernel(name).path
    said = subprocess.run(["file", "-b", path], capture_output=True, text=True, check=True).stdout
    with KernelImage.open(path) as image:
        header = arm64.parse(image.data)
    endianness = "big-endian" if header.is_big_endian else "little-endian"
    pages = header.page_size.name.removeprefix("SIZE_")
    assert said == f"Linux kernel ARM64 boot executable Image, {endianness}, {pages} pages\n"


@pytest.mark.parametrize("name", ARM64_KERNELS)
def test_stock_arm64_kernel_agrees_with_its_own_pe_headers(name: str) -> None:
    with KernelImage.open(stock_kernel(name).path) as image:
        header = arm64.parse(image.data)
        headers = pe.parse(image.data)
        assert image.data[header.res5 : header.res5 + 4] == pe.PE_MAGIC
    assert (headers.machine_name, headers.subsystem) == ("ARM64", 10)
    assert header.image_size == headers.size_of_image
    assert (header.text_offset, header.can_be_anywhere) == (0, True)  # since Linux 5.8


@pytest.mark.parametrize("name", ARM64_KERNELS)
def test_stock_arm64_kernel_is_placed(name: str) -> None:
    with (
        ram_at(RAM_GPA, 64 * MiB) as memory,
        KernelImage.open(stock_kernel(name).path) as image,
    ):
        placed = arm64.place(image, memory, RAM_GPA + 2 * MiB)
        assert placed.entry_gpa == RAM_GPA + 2 * MiB
        assert placed.end_gpa == placed.entry_gpa + arm64.parse(image.data).image_size
        assert memory.view(placed.entry_gpa, len(image.data)) == image.data
