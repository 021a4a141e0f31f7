"""The buses: look-up, what nobody claims, accesses that do not fit, strings."""

from __future__ import annotations

import pytest

from pyvmm.devices.bus import MmioBus, PortBus
from pyvmm.errors import DeviceError


class Recorder:
    """A device that remembers accesses and reads as the low byte of each offset."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.reads.append((offset, size))
        return int.from_bytes(range(0x10 + offset, 0x10 + offset + size), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


class WideRecorder(Recorder):
    access_bytes = 4


class StringRecorder(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.strings: list[tuple[int, int, bytes]] = []

    def write_string(self, offset: int, size: int, data: bytes) -> None:
        self.strings.append((offset, size, data))


def test_port_bus_gives_the_device_offsets() -> None:
    bus, device = PortBus(), Recorder()
    bus.add(0x3F8, 8, device, "uart")
    assert bus.read(0x3FD, 1) == 0x15
    bus.write(0x3F9, 1, 0xAB)
    assert (device.reads, device.writes) == ([(5, 1)], [(1, 1, 0xAB)])


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFF_FFFF)])
def test_port_bus_unclaimed_read_gives_all_ones(size: int, ones: int) -> None:
    assert PortBus().read(0x2F8, size) == ones


def test_port_bus_unclaimed_accesses_are_counted_by_address() -> None:
    bus = PortBus()
    bus.read(0x2F8, 1)
    bus.read(0x2F8, 4)
    bus.write(0x2F8, 1, 1)
    bus.write(0x80, 2, 1)
    assert bus.unclaimed() == {0x80: (0, 1), 0x2F8: (2, 1)}


def test_port_bus_unclaimed_access_is_logged_once() -> None:
    messages: list[str] = []
    bus = PortBus(messages.append)
    for _ in range(3):
        bus.read(0x2F8, 1)
    assert messages == ["1 bytes read at port 0x2f8, where no device is"]


def test_mmio_bus_remembers_a_bounded_number_of_unclaimed_addresses() -> None:
    bus = MmioBus()
    for gpa in range(0xD000_0000, 0xD000_0000 + 4 * 2000, 4):
        bus.read(gpa, 4)
    assert len(bus.unclaimed()) == 1024


def test_port_bus_wide_write_to_a_byte_device_comes_as_bytes() -> None:
    bus, device = PortBus(), Recorder()
    bus.add(0x70, 4, device, "cmos")
    bus.write(0x70, 2, 0xBBAA)
    assert device.writes == [(0, 1, 0xAA), (1, 1, 0xBB)]


def test_port_bus_wide_read_from_a_byte_device_is_put_together() -> None:
    bus, device = PortBus(), Recorder()
    bus.add(0x70, 4, device, "cmos")
    assert bus.read(0x70, 4) == 0x13121110
    assert device.reads == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_port_bus_wide_device_gets_the_access_whole() -> None:
    bus, device = PortBus(), WideRecorder()
    bus.add(0xCF8, 8, device, "pci")
    bus.write(0xCFC, 4, 0x12345678)
    assert device.writes == [(4, 4, 0x12345678)]


def test_port_bus_access_over_the_end_of_a_range_reads_ones_beyond_it() -> None:
    bus, device = PortBus(), WideRecorder()
    bus.add(0xF4, 3, device, "exit")
    assert bus.read(0xF5, 4) == 0xFFFF_1211
    assert device.reads == [(1, 2)]


def test_port_bus_access_that_begins_before_a_device_reaches_it() -> None:
    bus, device = PortBus(), Recorder()
    bus.add(0x3F8, 8, device, "uart")
    bus.write(0x3F7, 2, 0x5566)
    assert device.writes == [(0, 1, 0x55)]


def test_port_bus_access_at_the_last_port_stays_on_the_bus() -> None:
    assert PortBus().read(0xFFFF, 4) == 0xFFFF_FFFF


def test_port_bus_read_string_reads_one_port_again_and_again() -> None:
    bus, device = PortBus(), WideRecorder()
    bus.add(0x1F0, 4, device, "disk")
    assert bus.read_string(0x1F0, 2, 3) == bytes.fromhex("1011 1011 1011")
    assert device.reads == [(0, 2)] * 3


def test_port_bus_write_string_writes_each_element_to_one_port() -> None:
    bus, device = PortBus(), WideRecorder()
    bus.add(0x1F0, 4, device, "disk")
    bus.write_string(0x1F0, 2, bytes.fromhex("0102 0304"))
    assert device.writes == [(0, 2, 0x0201), (0, 2, 0x0403)]


def test_port_bus_write_string_is_one_call_if_the_device_takes_strings() -> None:
    bus, device = PortBus(), StringRecorder()
    bus.add(0x3F8, 8, device, "uart")
    bus.write_string(0x3F8, 1, b"hello")
    assert (device.strings, device.writes) == ([(0, 1, b"hello")], [])


def test_port_bus_write_string_too_wide_for_the_device_comes_as_bytes() -> None:
    bus, device = PortBus(), StringRecorder()
    bus.add(0x3F8, 8, device, "uart")
    bus.write_string(0x3F8, 2, b"abcd")
    assert device.writes == [(0, 1, 0x61), (1, 1, 0x62), (0, 1, 0x63), (1, 1, 0x64)]


@pytest.mark.parametrize(("base", "size"), [(0x3F8, 1), (0x3F0, 9), (0x3FF, 4), (0x300, 0x200)])
def test_bus_refuses_an_overlap(base: int, size: int) -> None:
    bus = PortBus()
    bus.add(0x3F8, 8, Recorder(), "uart")
    with pytest.raises(DeviceError, match=r"floppy claims port .* but uart has 0x3f8\.\.0x400"):
        bus.add(base, size, Recorder(), "floppy")


def test_bus_takes_neighbours() -> None:
    bus = PortBus()
    bus.add(0x3F8, 8, Recorder(), "uart")
    bus.add(0x3F0, 8, Recorder(), "floppy")
    assert [(claim.base, claim.end, claim.name) for claim in bus.devices()] == [
        (0x3F0, 0x3F8, "floppy"),
        (0x3F8, 0x400, "uart"),
    ]


@pytest.mark.parametrize(("base", "size"), [(0xFFFF, 2), (-1, 1), (0x80, 0)])
def test_port_bus_refuses_a_range_that_is_not_on_it(base: int, size: int) -> None:
    with pytest.raises(DeviceError, match="expected a range"):
        PortBus().add(base, size, Recorder(), "stray")


def test_mmio_bus_gives_the_device_offsets() -> None:
    bus, low, high = MmioBus(), Recorder(), Recorder()
    bus.add(0xD000_1000, 0x1000, high, "high")
    bus.add(0xD000_0000, 0x1000, low, "low")
    bus.write(0xD000_0FF8, 8, 0x1122_3344_5566_7788)
    assert bus.read(0xD000_1000, 4) == 0x13121110
    assert low.writes == [(0xFF8, 8, 0x1122_3344_5566_7788)]
    assert high.reads == [(0, 4)]


@pytest.mark.parametrize("gpa", [0xCFFF_FFFF, 0xD000_1000, 0])
def test_mmio_bus_unclaimed_read_gives_all_ones(gpa: int) -> None:
    bus = MmioBus()
    bus.add(0xD000_0000, 0x1000, Recorder(), "device")
    assert bus.read(gpa, 1) == 0xFF


def test_mmio_bus_access_over_a_border_goes_to_both_neighbours() -> None:
    bus, low, high = MmioBus(), Recorder(), Recorder()
    bus.add(0xD000_0000, 0x1000, low, "low")
    bus.add(0xD000_1000, 0x1000, high, "high")
    bus.write(0xD000_0FFE, 4, 0x44332211)
    assert low.writes == [(0xFFE, 2, 0x2211)]
    assert high.writes == [(0, 2, 0x4433)]


def test_mmio_bus_cuts_what_is_wider_than_the_device_takes() -> None:
    bus, device = MmioBus(), WideRecorder()
    bus.add(0xD000_0000, 0x1000, device, "virtio")
    bus.write(0xD000_0010, 8, 0x8877_6655_4433_2211)
    assert device.writes == [(0x10, 4, 0x4433_2211), (0x14, 4, 0x8877_6655)]
