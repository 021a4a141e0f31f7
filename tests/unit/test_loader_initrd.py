"""Where the initrd goes: boot.rst, initrd_addr_max."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import bzimage as bz
from builders.elf import vmlinux

from pyvmm.errors import InitrdError
from pyvmm.loader.image import KernelImage
from pyvmm.loader.initrd import initrd_size, place_initrd
from pyvmm.loader.load import Decompress, LoadedKernel, Placement, load_kernel
from pyvmm.memory import GuestMemory, HugePages
from pyvmm.units import GiB, MiB

INITRD = b"070701" * 1000  # 6000 bytes: two pages


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.create(16 * MiB) as memory:
        yield memory


def load_elf(memory: GuestMemory) -> LoadedKernel:
    return load_kernel(KernelImage.from_bytes(vmlinux()), memory)


def load_bzimage(memory: GuestMemory, **fields: int) -> LoadedKernel:
    image = bz.bzimage(bz.compress("gzip", vmlinux()), **fields)
    return load_kernel(KernelImage.from_bytes(image), memory, decompress=Decompress.GUEST)


def error(source: str | bytes, memory: GuestMemory, kernel: LoadedKernel) -> InitrdError:
    with pytest.raises(InitrdError) as caught:
        place_initrd(source, memory, kernel)
    assert "\n" not in str(caught.value)
    return caught.value


def refusal(source: str | bytes, memory: GuestMemory, kernel: LoadedKernel) -> str:
    return str(error(source, memory, kernel))


def test_initrd_lies_at_the_end_of_ram_on_a_page(memory: GuestMemory) -> None:
    placement = place_initrd(INITRD, memory, load_elf(memory))
    assert placement == Placement("initrd", 16 * MiB - 0x2000, 6000)
    assert memory.read(16 * MiB - 0x2000, 6000) == INITRD


def test_initrd_is_read_from_a_file(memory: GuestMemory, tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(INITRD)
    before = os.listdir("/proc/self/fd")
    placement = place_initrd(str(tmp_path / "initrd"), memory, load_elf(memory))
    assert placement == Placement("initrd", 16 * MiB - 0x2000, 6000)
    assert memory.read(16 * MiB - 0x2000, 6000) == INITRD
    assert os.listdir("/proc/self/fd") == before


def test_no_initrd(memory: GuestMemory) -> None:
    assert place_initrd(None, memory, load_elf(memory)) is None


def test_empty_initrd_is_none(memory: GuestMemory, tmp_path: Path) -> None:
    (tmp_path / "initrd").touch()
    assert place_initrd(str(tmp_path / "initrd"), memory, load_elf(memory)) is None
    assert place_initrd(b"", memory, load_elf(memory)) is None


def test_last_byte_may_be_at_initrd_addr_max(memory: GuestMemory) -> None:
    # boot.rst's own example has this form: the field names the highest safe byte.
    kernel = load_bzimage(memory, initrd_addr_max=0x7F_FFFF)
    placement = place_initrd(bytes(0x20000), memory, kernel)
    assert placement == Placement("initrd", 0x7E_0000, 0x20000)


def test_initrd_addr_max_inside_a_page(memory: GuestMemory) -> None:
    kernel = load_bzimage(memory, initrd_addr_max=0x80_07FE)
    placement = place_initrd(bytes(0x800), memory, kernel)
    assert placement == Placement("initrd", 0x7F_F000, 0x800)


def test_initrd_of_a_vmlinux_stays_below_2_gib() -> None:
    with GuestMemory.create(5 * GiB, huge_pages=HugePages.NEVER) as memory:
        placement = place_initrd(bytes(0x1000), memory, load_elf(memory))
        assert placement == Placement("initrd", 2 * GiB - 0x1000, 0x1000)


def test_initrd_stays_out_of_the_gap() -> None:
    with GuestMemory.create(5 * GiB, huge_pages=HugePages.NEVER) as memory:
        kernel = load_bzimage(memory, initrd_addr_max=0xFFFF_FFFF)
        placement = place_initrd(bytes(0x1000), memory, kernel)
        assert placement == Placement("initrd", 3 * GiB - 0x1000, 0x1000)


def test_initrd_that_fits_exactly(memory: GuestMemory) -> None:
    kernel = load_bzimage(memory)  # it needs 0x200000 .. 0x500000
    assert place_initrd(bytes(11 * MiB), memory, kernel) == Placement("initrd", 5 * MiB, 11 * MiB)


def test_initrd_that_would_lie_in_init_size_is_refused(memory: GuestMemory) -> None:
    message = refusal(bytes(11 * MiB + 1), memory, load_bzimage(memory))
    assert f"has {11 * MiB + 1} bytes" in message
    assert "kernel's end at 0x500000" in message
    assert f"at most {11 * MiB} bytes in 16 MiB of guest memory" in message
    assert message.endswith("give the guest more memory with --mem")


def test_initrd_that_would_lie_in_the_bss_is_refused(memory: GuestMemory) -> None:
    kernel = load_elf(memory)
    assert kernel.end_gpa == 0x40_3000
    assert place_initrd(bytes(16 * MiB - 0x40_3000), memory, kernel) is not None
    assert "kernel's end at 0x403000" in refusal(bytes(16 * MiB - 0x40_2FFF), memory, kernel)


def test_initrd_larger_than_memory_is_refused_with_its_name(
    memory: GuestMemory, tmp_path: Path
) -> None:
    path = tmp_path / "initrd"
    path.touch()
    os.truncate(path, 1 << 40)
    message = refusal(str(path), memory, load_elf(memory))
    assert message.startswith(f"{path}: the initrd has {1 << 40} bytes")


def test_initrd_above_its_limit_is_not_helped_by_memory(memory: GuestMemory) -> None:
    kernel = load_bzimage(memory, initrd_addr_max=0x50_0FFF)
    assert "more memory would not help" in refusal(bytes(0x1001), memory, kernel)


def test_initrd_limit_below_the_kernel_is_refused(memory: GuestMemory) -> None:
    kernel = load_bzimage(memory, initrd_addr_max=0)
    assert "at most 0 bytes" in refusal(b"x", memory, kernel)


def test_missing_initrd(memory: GuestMemory, tmp_path: Path) -> None:
    message = refusal(str(tmp_path / "initrd"), memory, load_elf(memory))
    assert message.startswith(f"{tmp_path}/initrd: there is no such file; expected an initrd")


def test_initrd_that_is_a_directory(memory: GuestMemory, tmp_path: Path) -> None:
    assert "is a directory" in refusal(str(tmp_path), memory, load_elf(memory))


def test_initrd_that_is_a_pipe(memory: GuestMemory, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "initrd")
    assert "is a pipe" in refusal(str(tmp_path / "initrd"), memory, load_elf(memory))


def test_each_reason_has_its_rule(memory: GuestMemory, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 16 * MiB)
    assert error(str(large), memory, load_elf(memory)).rule == "initrd-room"
    below = load_bzimage(memory, initrd_addr_max=0x50_0FFF)
    assert error(bytes(0x1001), memory, below).rule == "initrd-addr-max"


def test_initrd_that_is_shorter_than_its_size_is_told(memory: GuestMemory) -> None:
    # Files of sysfs have a page, and less in it.
    caught = error("/sys/kernel/uevent_seqnum", memory, load_elf(memory))
    assert "the file ended" in str(caught)
    assert caught.rule == "initrd-read"


def test_initrd_size_is_what_is_placed(tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(INITRD)
    assert initrd_size(str(tmp_path / "initrd")) == initrd_size(INITRD) == 6000
    assert initrd_size(memoryview(INITRD)) == 6000
    assert initrd_size(None) == 0
    with pytest.raises(InitrdError, match="there is no such file"):
        initrd_size(str(tmp_path / "absent"))
