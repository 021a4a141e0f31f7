"""Guest memory: the gap, the bounds, and that views are the memory itself."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_bindings import host_address
from pyvmm.errors import GuestMemoryError, HostError
from pyvmm.memory import Backing, GuestMemory, HugePages
from pyvmm.units import GiB, KiB, MiB

GAP_BASE = 0xC000_0000
FOUR_GIB = 0x1_0000_0000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.create(4 * MiB) as memory:
        yield memory


@pytest.mark.parametrize(
    ("size_bytes", "regions"),
    [
        (4 * KiB, [(0, 4 * KiB)]),
        (3 * GiB - MiB, [(0, 3 * GiB - MiB)]),
        (3 * GiB, [(0, GAP_BASE)]),
        (3 * GiB + MiB, [(0, GAP_BASE), (FOUR_GIB, FOUR_GIB + MiB)]),
        (5 * GiB, [(0, GAP_BASE), (FOUR_GIB, FOUR_GIB + 2 * GiB)]),
    ],
)
def test_memory_is_split_at_the_gap(size_bytes: int, regions: list[tuple[int, int]]) -> None:
    with GuestMemory.create(size_bytes, huge_pages=HugePages.NEVER) as memory:
        assert [(r.base_gpa, r.end_gpa) for r in memory] == regions
        assert memory.size_bytes == size_bytes
        assert memory.end_gpa == regions[-1][1]


def test_memory_above_the_gap_is_usable() -> None:
    with GuestMemory.create(5 * GiB, huge_pages=HugePages.NEVER) as memory:
        memory.write_u64(memory.end_gpa - 8, 0x1122_3344_5566_7788)
        assert memory.read(memory.end_gpa - 8, 2) == b"\x88\x77"
        with pytest.raises(GuestMemoryError):
            memory.read_u8(memory.end_gpa)


@pytest.mark.parametrize("size_bytes", [0, -4096, 4097, 100])
def test_memory_size_must_be_whole_pages(size_bytes: int) -> None:
    with pytest.raises(GuestMemoryError, match="multiple of the page size"):
        GuestMemory.create(size_bytes)


def test_memory_too_large_for_the_host_is_told() -> None:
    with pytest.raises(HostError, match="ask for less with --mem"):
        GuestMemory.create(1 << 60)


@given(gpa=st.integers(-(1 << 70), 1 << 70), size_bytes=st.integers(-(1 << 70), 1 << 70))
def test_view_is_inside_or_refused(gpa: int, size_bytes: int) -> None:
    with GuestMemory.create(64 * KiB, huge_pages=HugePages.NEVER) as memory:
        inside = gpa >= 0 and size_bytes >= 0 and gpa + size_bytes <= 64 * KiB
        assert memory.contains(gpa, size_bytes) == inside
        if inside:
            assert memory.view(gpa, size_bytes).nbytes == size_bytes
        else:
            with pytest.raises(GuestMemoryError, match="is not RAM"):
                memory.view(gpa, size_bytes)


def test_view_across_the_gap_is_refused() -> None:
    with (
        GuestMemory.create(3 * GiB + MiB, huge_pages=HugePages.NEVER) as memory,
        pytest.raises(GuestMemoryError),
    ):
        memory.view(GAP_BASE - 1, 2)


def test_view_is_the_memory_itself(memory: GuestMemory) -> None:
    view = memory.view(0x1000, 4)
    view[:] = b"\x01\x02\x03\x04"
    assert memory.read_u32(0x1000) == 0x0403_0201
    memory.write_u8(0x1000, 0xFF)
    assert view[0] == 0xFF


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_typed_access_is_little_endian(memory: GuestMemory, bits: int) -> None:
    value = 0x8877_6655_4433_2211 & ((1 << bits) - 1)
    getattr(memory, f"write_u{bits}")(0x2001, value)
    assert memory.read(0x2001, 9) == value.to_bytes(9, "little")
    assert getattr(memory, f"read_u{bits}")(0x2001) == value


def test_typed_write_too_large_is_refused(memory: GuestMemory) -> None:
    with pytest.raises(OverflowError):
        memory.write_u16(0, 0x1_0000)


def test_write_takes_any_buffer(memory: GuestMemory) -> None:
    memory.write(0, memoryview(b"\x01\x00\x02\x00").cast("H"))
    assert memory.read(0, 4) == b"\x01\x00\x02\x00"


def test_fill_zero_touches_no_neighbour(memory: GuestMemory) -> None:
    memory.write(0, b"\xff" * (3 * MiB))
    memory.fill_zero(1, 2 * MiB + 5)
    assert memory.read_u8(0) == 0xFF
    assert memory.read(1, 2 * MiB + 5) == bytes(2 * MiB + 5)
    assert memory.read_u8(2 * MiB + 6) == 0xFF


def test_read_file_goes_straight_into_place(memory: GuestMemory) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789")
        file.flush()
        memory.read_file(0x1000, file.fileno(), 2, 5)
    assert memory.read(0x0FFF, 7) == b"\x0023456\x00"


def test_read_file_that_is_too_short_is_told(memory: GuestMemory) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"abc")
        file.flush()
        with pytest.raises(GuestMemoryError, match="ended 4 bytes before"):
            memory.read_file(0, file.fileno(), 0, 7)


def test_memfd_is_shared_with_who_maps_it() -> None:
    with GuestMemory.create(MiB, backing=Backing.MEMFD) as memory:
        fd = memory.regions[0].fd
        assert fd is not None
        memory.write(0x10, b"shared")
        assert os.pread(fd, 6, 0x10) == b"shared"


def test_region_begins_on_a_huge_page() -> None:
    # A mapping of 3 MiB is none that Linux would align by itself.
    with GuestMemory.create(3 * MiB, host_address=host_address) as memory:
        assert host_address(memory.regions[0].view) % (2 * MiB) == 0


def test_region_that_begins_inside_its_mapping_has_all_its_bytes() -> None:
    with GuestMemory.create(3 * MiB, host_address=lambda _: 0x7F00_0000_1000) as memory:
        assert memory.regions[0].view.nbytes == 3 * MiB
        memory.write_u8(memory.end_gpa - 1, 0xA5)
        assert memory.regions[0].buffer[2 * MiB - 0x1000 + 3 * MiB - 1] == 0xA5


def test_close_with_the_region_in_use_does_not_fail() -> None:
    memory = GuestMemory.create(MiB)
    with memoryview(memory.regions[0].view) as in_use:
        memory.close()
        assert in_use[0] == 0


def test_close_with_a_view_held_does_not_fail() -> None:
    memory = GuestMemory.create(MiB)
    view = memory.view(0, 16)
    memory.close()
    assert view.tobytes() == bytes(16)


def test_close_twice_is_harmless() -> None:
    memory = GuestMemory.create(MiB)
    memory.close()
    memory.close()
    assert not memory.contains(0, 1)
