"""bzImage: the setup header's rules, and both ways of decompressing.

Rules and numbers: Documentation/arch/x86/boot.rst; offsets: the C compiler and bootparam.h.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from builders import bzimage as bz
from builders.c_compiler import evaluate
from builders.elf import Elf, Segment, vmlinux

from pyvmm.boot import Protocol, choose
from pyvmm.errors import KernelImageError
from pyvmm.loader import bzimage
from pyvmm.loader.bzimage import SetupHeader
from pyvmm.loader.image import ImageFormat, KernelImage
from pyvmm.loader.load import Decompress, LoadedKernel, Placement, extract_vmlinux, load_kernel
from pyvmm.memory import GuestMemory, HugePages
from pyvmm.units import GiB, MiB

PAYLOAD = bz.compress("gzip", vmlinux())
KERNEL_OFFSET = 4 * 512  # the builder's setup_sects is 3
OLD = {"xloadflags": 0, "min_alignment": 0, "pref_address": 0, "init_size": 0}


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.create(16 * MiB) as memory:
        yield memory


def on_host(memory: GuestMemory, image: bytes) -> LoadedKernel:
    return load_kernel(KernelImage.from_bytes(image, "image"), memory)


def in_guest(memory: GuestMemory, image: bytes) -> LoadedKernel:
    return load_kernel(KernelImage.from_bytes(image, "image"), memory, decompress=Decompress.GUEST)


def error(
    memory: GuestMemory, image: bytes, decompress: Decompress = Decompress.HOST
) -> KernelImageError:
    with pytest.raises(KernelImageError) as caught:
        load_kernel(KernelImage.from_bytes(image, "image"), memory, decompress=decompress)
    message = str(caught.value)
    assert message.startswith("image: ")
    assert "\n" not in message
    return caught.value


def refusal(memory: GuestMemory, image: bytes, decompress: Decompress = Decompress.HOST) -> str:
    return str(error(memory, image, decompress))


# The header


def test_setup_header_has_the_layout_of_bootparam_h() -> None:
    names = [name for name in SetupHeader._fields if name != "raw"]
    member = "((struct setup_header *)0)->"
    offsets = evaluate(
        ["asm/bootparam.h"], [f"offsetof(struct setup_header, {name})" for name in names]
    )
    sizes = evaluate(["asm/bootparam.h"], [f"sizeof({member}{name})" for name in names])
    (size,) = evaluate(["asm/bootparam.h"], ["sizeof(struct setup_header)"])
    image = bytearray(bz.bzimage(PAYLOAD))
    # Each byte its own, except for what makes it a header of this length.
    keep = {0x1F1, *range(0x1F4, 0x1F8), *range(0x1FE, 0x208), 0x211}
    for offset in range(0x1F1, 0x1F1 + size):
        if offset not in keep:
            image[offset] = offset & 0xFF
    header = bzimage.read_header(memoryview(image))
    assert header.raw == image[0x1F1 : 0x1F1 + size]
    for name, offset, width in zip(names, offsets, sizes, strict=True):
        expected = int.from_bytes(image[0x1F1 + offset : 0x1F1 + offset + width], "little")
        assert getattr(header, name) == expected, name


def test_header_is_as_long_as_its_jump_says() -> None:
    image = bz.bzimage(PAYLOAD, jump=0x70EB)
    assert len(bzimage.parse(memoryview(image)).header.raw) == 0x202 + 0x70 - 0x1F1


def test_fields_behind_the_end_of_the_header_are_zero() -> None:
    image = bz.bzimage(PAYLOAD, jump=(0x24C - 0x202) << 8 | 0xEB)
    header = bzimage.parse(memoryview(image)).header
    assert header.payload_offset == bz.PAYLOAD_OFFSET
    assert (header.payload_length, header.pref_address, header.init_size) == (0, 0, 0)


@pytest.mark.parametrize(
    ("version", "field", "present"),
    [
        (0x0207, "payload_offset", False),
        (0x0208, "payload_offset", True),
        (0x0209, "pref_address", False),
        (0x020A, "pref_address", True),
        (0x020A, "init_size", True),
    ],
)
def test_fields_newer_than_the_protocol_are_zero(version: int, field: str, present: bool) -> None:
    header = bzimage.parse(memoryview(bz.bzimage(PAYLOAD, version=version))).header
    assert bool(getattr(header, field)) is present


def test_protocol_is_written_with_two_digits() -> None:
    assert bzimage.parse(memoryview(bz.bzimage(PAYLOAD, version=0x020F))).header.protocol == "2.15"
    assert bzimage.parse(memoryview(bz.bzimage(PAYLOAD, version=0x0206))).header.protocol == "2.06"


def test_setup_sects_0_means_4(memory: GuestMemory) -> None:
    image = bz.bzimage(PAYLOAD, setup_sects=0)
    assert bzimage.parse(memoryview(image)).kernel_offset == 5 * 512
    on_host(memory, image)
    assert memory.read(0x20_0000, 4) == b"\xf4" * 4


def test_setup_of_128_kib(memory: GuestMemory) -> None:
    image = bz.bzimage(PAYLOAD, setup_sects=255)
    assert bzimage.parse(memoryview(image)).kernel_offset == 256 * 512
    assert on_host(memory, image).linux64_entry_gpa == 0x20_0100


@pytest.mark.parametrize("version", [0x0000, 0x0200, 0x0205])
def test_protocol_before_2_06_is_refused(memory: GuestMemory, version: int) -> None:
    message = refusal(memory, bz.bzimage(PAYLOAD, version=version))
    assert f"boot protocol {version >> 8}.{version & 0xFF:02}; expected 2.06" in message


def test_boot_flag_is_checked(memory: GuestMemory) -> None:
    assert "boot_flag 0x1234 at 0x1fe" in refusal(memory, bz.bzimage(PAYLOAD, boot_flag=0x1234))


def test_zimage_is_refused(memory: GuestMemory) -> None:
    assert "is a zImage" in refusal(memory, bz.bzimage(PAYLOAD, loadflags=0))


@pytest.mark.parametrize("jump", [0x6AE9, 0x80EB])
def test_jump_that_is_none_forward_is_refused(memory: GuestMemory, jump: int) -> None:
    message = refusal(memory, bz.bzimage(PAYLOAD, jump=jump))
    assert f"has the bytes {jump & 0xFF:02x} {jump >> 8:02x} at 0x200" in message


@pytest.mark.parametrize(("jump", "end"), [(0x39EB, 0x23B), (0x00EB, 0x202)])
def test_header_that_ends_before_cmdline_size_is_refused(
    memory: GuestMemory, jump: int, end: int
) -> None:
    message = refusal(memory, bz.bzimage(PAYLOAD, jump=jump))
    assert f"has a setup header that ends at {end:#x}" in message


@pytest.mark.parametrize("length", [0x206, 0x207, 0x208, 0x23C, 0x26B])
def test_image_cut_off_in_its_header_is_refused(memory: GuestMemory, length: int) -> None:
    refusal(memory, bz.bzimage(PAYLOAD)[:length])


def test_image_cut_off_in_its_header_is_told(memory: GuestMemory) -> None:
    message = refusal(memory, bz.bzimage(PAYLOAD)[:0x26B])
    assert f"cut off after {0x26B} bytes, in its setup header, which ends at {0x26C}" in message


def test_image_cut_off_in_its_kernel_is_told(memory: GuestMemory) -> None:
    image = bz.bzimage(PAYLOAD)
    message = refusal(memory, image[:-16])
    kernel_bytes = len(image) - KERNEL_OFFSET
    assert f"tells of {KERNEL_OFFSET} bytes of setup and {kernel_bytes} of kernel" in message
    assert f"the file has {len(image) - 16}" in message


def test_last_paragraph_may_be_incomplete(memory: GuestMemory) -> None:
    image = bz.bzimage(PAYLOAD + bytes(-len(PAYLOAD) % 16 + 16), payload_length=len(PAYLOAD))
    assert bzimage.parse(memoryview(image[:-15])).kernel_bytes == len(image) - KERNEL_OFFSET - 15
    assert on_host(memory, image[:-15]).linux64_entry_gpa == 0x20_0100
    assert "is cut off" in refusal(memory, image[:-16])


def test_syssize_0_is_refused(memory: GuestMemory) -> None:
    assert "has syssize 0" in refusal(memory, bz.bzimage(PAYLOAD, syssize=0))


def test_signature_behind_the_kernel_is_ignored(memory: GuestMemory) -> None:
    image = bz.bzimage(PAYLOAD)
    kernel = in_guest(memory, image + b"signature" * 100)
    assert kernel.placements[0].size_bytes == len(image) - KERNEL_OFFSET


# Decompressed on the host


@pytest.mark.parametrize("compression", bz.COMPRESSIONS)
def test_payload_is_placed_as_the_elf_in_it(memory: GuestMemory, compression: str) -> None:
    image = bz.bzimage(bz.compress(compression, vmlinux()))
    kernel = on_host(memory, image)
    with GuestMemory.create(16 * MiB) as other:
        expected = on_host(other, vmlinux())
        assert memory.read(0x10_0000, 8 * MiB) == other.read(0x10_0000, 8 * MiB)
    assert kernel == expected._replace(format=ImageFormat.BZIMAGE, setup_header=kernel.setup_header)
    assert kernel.setup_header is not None
    assert kernel.setup_header.raw == image[0x1F1:0x26C]
    assert kernel.pvh_entry_gpa == 0x20_0010
    assert kernel.linux32_entry_gpa is None


def test_payload_that_is_not_compressed(memory: GuestMemory) -> None:
    assert on_host(memory, bz.bzimage(vmlinux())).linux64_entry_gpa == 0x20_0100


def test_relocations_behind_the_elf_are_ignored(memory: GuestMemory) -> None:
    image = bz.bzimage(bz.compress("gzip", vmlinux() + b"\x00\x00\x00\x00relocs"))
    assert on_host(memory, image).linux64_entry_gpa == 0x20_0100


def test_extract_vmlinux_gives_the_payload() -> None:
    image = KernelImage.from_bytes(bz.bzimage(PAYLOAD))
    assert extract_vmlinux(image) == vmlinux()


def test_extract_vmlinux_names_the_image() -> None:
    with pytest.raises(KernelImageError, match=r"^image: its payload begins"):
        extract_vmlinux(KernelImage.from_bytes(bz.bzimage(b"????????"), "image"))


def test_payload_of_a_32_bit_kernel_is_explained(memory: GuestMemory) -> None:
    elf = Elf([Segment(0x10_0000, b"x")], bits=32, entry=0x10_0000).build()
    image = KernelImage.from_bytes(bz.bzimage(bz.compress("gzip", elf)))
    with pytest.raises(KernelImageError, match=r"32-bit ELF file without.*--protocol linux32"):
        choose(Protocol.AUTO, load_kernel(image, memory))


def test_payload_that_is_no_elf_is_refused(memory: GuestMemory) -> None:
    message = refusal(memory, bz.bzimage(bz.compress("gzip", b"\xde\xad\xbe\xef" * 9)))
    assert "decompressed to something that begins with the bytes de ad be ef" in message


def test_unknown_compressor_is_refused(memory: GuestMemory) -> None:
    message = refusal(memory, bz.bzimage(b"\x01\x02\x03\x04" * 8))
    assert "payload begins with the bytes 01 02 03 04" in message


@pytest.mark.parametrize(
    "fields",
    [{"payload_offset": 0}, {"payload_length": 0}, {"version": 0x0207}],
)
def test_header_without_payload_is_explained(memory: GuestMemory, fields: dict[str, int]) -> None:
    message = refusal(memory, bz.bzimage(PAYLOAD, **fields))
    assert "does not say where its compressed kernel is" in message
    assert "use --decompress guest" in message


@pytest.mark.parametrize(
    "fields",
    [{"payload_length": 1 << 31}, {"payload_offset": 1 << 31}, {"payload_offset": 0xFFFF_FFFF}],
)
def test_payload_outside_the_kernel_is_refused(memory: GuestMemory, fields: dict[str, int]) -> None:
    assert "says its payload is at" in refusal(memory, bz.bzimage(PAYLOAD, **fields))


def test_payload_larger_than_memory_is_refused_unseen(memory: GuestMemory) -> None:
    payload = PAYLOAD[:-4] + (16 * MiB + 1).to_bytes(4, "little")
    message = refusal(memory, bz.bzimage(payload))
    assert f"should decompress to {16 * MiB + 1} bytes" in message
    assert "at most 16 MiB; give the guest more memory with --mem" in message


# Decompressed in the guest


def test_relocatable_kernel_goes_to_pref_address(memory: GuestMemory) -> None:
    image = bz.bzimage(PAYLOAD, pref_address=0x40_0000)
    kernel = in_guest(memory, image)
    code = image[KERNEL_OFFSET:]
    assert memory.read(0x40_0000, len(code)) == code
    assert kernel.placements == (Placement("protected-mode kernel", 0x40_0000, len(code)),)
    assert kernel.linux32_entry_gpa == 0x40_0000
    assert kernel.linux64_entry_gpa == 0x40_0200
    assert (kernel.start_gpa, kernel.end_gpa) == (0x40_0000, 0x70_0000)
    assert (kernel.pvh_entry_gpa, kernel.pvh_problem) == (None, None)
    assert kernel.format is ImageFormat.BZIMAGE


def test_relocatable_kernel_is_aligned(memory: GuestMemory) -> None:
    image = bz.bzimage(PAYLOAD, pref_address=0x20_1000, kernel_alignment=0x40_0000)
    assert in_guest(memory, image).linux32_entry_gpa == 0x40_0000


def test_relocatable_kernel_without_pref_address_goes_as_low_as_aligned(
    memory: GuestMemory,
) -> None:
    image = bz.bzimage(PAYLOAD, version=0x0209, **OLD)
    kernel = in_guest(memory, image)
    assert kernel.linux32_entry_gpa == 0x20_0000
    assert kernel.end_gpa == 0x20_0000 + len(image) - KERNEL_OFFSET


def test_other_kernel_goes_to_code32_start_and_runs_at_pref_address(memory: GuestMemory) -> None:
    image = bz.bzimage(PAYLOAD, relocatable_kernel=0, pref_address=0x80_0000)
    kernel = in_guest(memory, image)
    assert kernel.linux32_entry_gpa == 0x10_0000
    assert (kernel.start_gpa, kernel.end_gpa) == (0x10_0000, 0xB0_0000)


def test_other_kernel_without_pref_address_runs_where_it_is(memory: GuestMemory) -> None:
    image = bz.bzimage(PAYLOAD, version=0x0206, relocatable_kernel=0, **OLD)
    kernel = in_guest(memory, image)
    assert kernel.start_gpa == 0x10_0000
    assert kernel.end_gpa == 0x10_0000 + len(image) - KERNEL_OFFSET


@pytest.mark.parametrize("fields", [{"xloadflags": 0x7E}, {"version": 0x020B}])
def test_kernel_without_xlf_kernel_64_has_no_64_bit_entry(
    memory: GuestMemory, fields: dict[str, int]
) -> None:
    kernel = in_guest(memory, bz.bzimage(PAYLOAD, **fields))
    assert kernel.linux64_entry_gpa is None
    assert kernel.linux32_entry_gpa == 0x20_0000


def test_kernel_must_reach_to_its_64_bit_entry(memory: GuestMemory) -> None:
    message = refusal(memory, bz.bzimage(PAYLOAD, syssize=0x200 // 16), Decompress.GUEST)
    assert "64-bit entry at 0x200 (XLF_KERNEL_64)" in message
    assert "has 0x200 bytes" in message
    image = bz.bzimage(PAYLOAD, syssize=0x210 // 16)
    assert in_guest(memory, image).linux64_entry_gpa == 0x20_0200
    image = bz.bzimage(PAYLOAD, syssize=0x200 // 16, xloadflags=0)
    assert in_guest(memory, image).linux64_entry_gpa is None


def test_unknown_compressor_is_the_guests_affair(memory: GuestMemory) -> None:
    assert in_guest(memory, bz.bzimage(b"\x01\x02\x03\x04" * 8)).linux32_entry_gpa == 0x20_0000


@pytest.mark.parametrize("alignment", [0, 3, 0xFFFF_FFFF])
def test_alignment_must_be_a_power_of_two(memory: GuestMemory, alignment: int) -> None:
    image = bz.bzimage(PAYLOAD, kernel_alignment=alignment)
    assert f"kernel_alignment {alignment:#x}" in refusal(memory, image, Decompress.GUEST)


def test_init_size_must_be_ram(memory: GuestMemory) -> None:
    image = bz.bzimage(PAYLOAD, init_size=14 * MiB + 1)
    message = refusal(memory, image, Decompress.GUEST)
    assert "needs room to decompress itself (init_size) at 0x200000..0x1000001" in message
    assert in_guest(memory, bz.bzimage(PAYLOAD, init_size=14 * MiB)).end_gpa == 16 * MiB


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"relocatable_kernel": 0, "code32_start": 0x1_0000}, "expected 0x100000 or above"),
        ({"relocatable_kernel": 0, "pref_address": 0x1_0000}, "expected 0x100000 or above"),
        ({"pref_address": 1 << 63}, "expected it below 4 GiB"),
        ({"pref_address": (1 << 64) - 1}, "expected it below 4 GiB"),
    ],
)
def test_places_that_are_none_are_refused(
    memory: GuestMemory, fields: dict[str, int], expected: str
) -> None:
    assert expected in refusal(memory, bz.bzimage(PAYLOAD, **fields), Decompress.GUEST)


def test_kernel_above_4_gib_is_refused() -> None:
    image = bz.bzimage(PAYLOAD, pref_address=4 * GiB)
    with GuestMemory.create(4 * GiB, huge_pages=HugePages.NEVER) as memory:
        assert "below 4 GiB" in refusal(memory, image, Decompress.GUEST)


# kernel_info, handover, setup_data


def test_kernel_info_is_read(memory: GuestMemory) -> None:
    image = bz.bzimage(
        PAYLOAD, bz.kernel_info(size_total=24, setup_type_max=0x8000_0009) + b"info" * 2
    )
    for kernel in (on_host(memory, image), in_guest(memory, image)):
        assert kernel.kernel_info == (b"LToP", 16, 24, 0x8000_0009)


def test_kernel_before_2_15_has_no_kernel_info(memory: GuestMemory) -> None:
    image = bz.bzimage(PAYLOAD, bz.kernel_info(), version=0x020D)
    assert on_host(memory, image).kernel_info is None


@pytest.mark.parametrize(("xloadflags", "last"), [(0b00101, 0), (0b01001, 0x200), (0b01101, 0x200)])
def test_handover_entry_must_be_in_the_kernel(
    memory: GuestMemory, xloadflags: int, last: int
) -> None:
    kernel_bytes = len(bz.bzimage(PAYLOAD)) - KERNEL_OFFSET
    end = kernel_bytes - last
    in_guest(memory, bz.bzimage(PAYLOAD, xloadflags=xloadflags, handover_offset=end - 1))
    message = refusal(memory, bz.bzimage(PAYLOAD, xloadflags=xloadflags, handover_offset=end))
    assert f"EFI handover entry is at {kernel_bytes:#x}" in message


def test_handover_offset_without_a_handover_entry_is_not_looked_at(memory: GuestMemory) -> None:
    image = bz.bzimage(PAYLOAD, xloadflags=1, handover_offset=0xFFFF_FFFF)
    assert on_host(memory, image).linux64_entry_gpa == 0x20_0100


# Each fault by its rule


@pytest.mark.parametrize(
    ("rule", "image", "decompress"),
    [
        ("bzimage-version", bz.bzimage(PAYLOAD, version=0x0205), Decompress.HOST),
        ("bzimage-jump", bz.bzimage(PAYLOAD, jump=0x6AE9), Decompress.HOST),
        ("bzimage-header-length", bz.bzimage(PAYLOAD, jump=0x39EB), Decompress.HOST),
        ("bzimage-header-truncated", bz.bzimage(PAYLOAD)[:0x26B], Decompress.HOST),
        ("bzimage-boot-flag", bz.bzimage(PAYLOAD, boot_flag=0), Decompress.HOST),
        ("bzimage-loaded-high", bz.bzimage(PAYLOAD, loadflags=0xFE), Decompress.HOST),
        ("bzimage-setup-data", bz.bzimage(PAYLOAD, setup_data=1), Decompress.HOST),
        ("bzimage-setup-sects", bz.bzimage(PAYLOAD)[:KERNEL_OFFSET], Decompress.HOST),
        ("bzimage-syssize", bz.bzimage(PAYLOAD, syssize=0), Decompress.HOST),
        ("bzimage-truncated", bz.bzimage(PAYLOAD)[:-16], Decompress.HOST),
        ("bzimage-xloadflags", bz.bzimage(PAYLOAD, syssize=1), Decompress.HOST),
        (
            "bzimage-handover-offset",
            bz.bzimage(PAYLOAD, handover_offset=0x1000_0000),
            Decompress.HOST,
        ),
        (
            "bzimage-kernel-info-bounds",
            bz.bzimage(PAYLOAD, bz.kernel_info()[:15]),
            Decompress.HOST,
        ),
        (
            "bzimage-kernel-info-magic",
            bz.bzimage(PAYLOAD, bz.kernel_info(magic=b"PoTL")),
            Decompress.HOST,
        ),
        (
            "bzimage-kernel-info-size",
            bz.bzimage(PAYLOAD, bz.kernel_info(size=12)),
            Decompress.HOST,
        ),
        (
            "bzimage-kernel-info-size",
            bz.bzimage(PAYLOAD, bz.kernel_info(size=20, size_total=16) + bytes(16)),
            Decompress.HOST,
        ),
        (
            "bzimage-kernel-info-size",
            bz.bzimage(PAYLOAD, bz.kernel_info(size_total=17)),
            Decompress.HOST,
        ),
        ("bzimage-no-payload", bz.bzimage(PAYLOAD, payload_offset=0), Decompress.HOST),
        ("bzimage-payload-bounds", bz.bzimage(PAYLOAD, payload_length=1 << 31), Decompress.HOST),
        ("bzimage-payload-elf", bz.bzimage(bz.compress("gzip", b"MZ" * 9)), Decompress.HOST),
        ("bzimage-kernel-alignment", bz.bzimage(PAYLOAD, kernel_alignment=3), Decompress.GUEST),
        (
            "bzimage-address-low",
            bz.bzimage(PAYLOAD, relocatable_kernel=0, code32_start=0x1_0000),
            Decompress.GUEST,
        ),
        ("bzimage-address-high", bz.bzimage(PAYLOAD, pref_address=1 << 32), Decompress.GUEST),
        ("bzimage-init-size", bz.bzimage(PAYLOAD, init_size=14 * MiB + 1), Decompress.GUEST),
    ],
)
def test_fault_is_told_by_its_rule(
    memory: GuestMemory, rule: str, image: bytes, decompress: Decompress
) -> None:
    assert error(memory, image, decompress).rule == rule


def test_file_without_the_magic_is_told_by_its_rule() -> None:
    # What the format is has been asked before; parse() may be called without.
    for data in (bz.bzimage(PAYLOAD, header=0), b""):
        with pytest.raises(KernelImageError) as caught:
            bzimage.parse(memoryview(data))
        assert caught.value.rule == "bzimage-magic"
