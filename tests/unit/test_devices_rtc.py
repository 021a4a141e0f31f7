"""The CMOS clock. Expected values: MC146818A datasheet, and GNU date for the times.

$ date -u -d @1709214296 '+%F %T %u'        2024-02-29 13:44:56 4
$ date -u -d @946684799 '+%F %T %u'         1999-12-31 23:59:59 5
"""

from __future__ import annotations

import pytest

from pyvmm.devices.rtc import Rtc
from pyvmm.units import GiB, MiB

LEAP_DAY = 1709214296.9


class Clock:
    """An Rtc with a time that stands, and the accesses that a driver makes."""

    def __init__(self, now_s: float = LEAP_DAY) -> None:
        self.now_s = now_s
        self.device = Rtc(lambda: self.now_s, low_memory_bytes=3 * GiB, high_memory_bytes=2 * GiB)

    def __getitem__(self, index: int) -> int:
        self.device.write(0, 1, index)
        return self.device.read(1, 1)

    def __setitem__(self, index: int, value: int) -> None:
        self.device.write(0, 1, index)
        self.device.write(1, 1, value)

    def time(self) -> list[int]:
        """Century, year, month, day, weekday, hours, minutes, seconds."""
        return [self[index] for index in (0x32, 9, 8, 7, 6, 4, 2, 0)]


def test_rtc_shows_utc_in_bcd() -> None:
    assert Clock().time() == [0x20, 0x24, 0x02, 0x29, 5, 0x13, 0x44, 0x56]


def test_rtc_shows_binary_if_register_b_says_so() -> None:
    clock = Clock()
    clock[0x0B] = 0x06
    assert clock.time() == [20, 24, 2, 29, 5, 13, 44, 56]


@pytest.mark.parametrize(
    ("now_s", "hours"),
    [
        (1709214296, 0x81),  # 13:44
        (1709214296 - 2 * 3600, 0x11),  # 11:44
        (1709214296 - 1 * 3600, 0x92),  # 12:44
        (1709214296 - 13 * 3600, 0x12),  # 00:44
    ],
)
def test_rtc_twelve_hour_mode(now_s: int, hours: int) -> None:
    clock = Clock(now_s)
    clock[0x0B] = 0x00
    assert clock[4] == hours


def test_rtc_goes_on() -> None:
    clock = Clock(946684799)
    assert clock.time() == [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59]
    clock.now_s += 1
    assert clock.time() == [0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x00, 0x00]


def test_rtc_status_registers_after_reset() -> None:
    clock = Clock()
    assert [clock[index] for index in (0x0A, 0x0B, 0x0C, 0x0D)] == [0x26, 0x02, 0x00, 0x80]


def test_rtc_never_shows_an_update_in_progress() -> None:
    clock = Clock()
    clock[0x0A] = 0xA6
    assert clock[0x0A] == 0x26


@pytest.mark.parametrize("index", [0x0C, 0x0D])
def test_rtc_read_only_registers_stay(index: int) -> None:
    clock = Clock()
    before = clock[index]
    clock[index] = ~before & 0xFF
    assert clock[index] == before


def test_rtc_index_ignores_the_nmi_mask() -> None:
    clock = Clock()
    assert clock[0x8D] == 0x80


def test_rtc_index_port_reads_as_nothing() -> None:
    assert Clock().device.read(0, 1) == 0xFF


def test_rtc_ram_keeps_what_is_written() -> None:
    clock = Clock()
    clock[0x7F] = 0xA5
    assert clock[0x7F] == 0xA5


def test_rtc_halted_clock_does_not_go_on() -> None:
    clock = Clock()
    clock[0x0B] = 0x82
    clock.now_s += 60
    assert clock[2] == 0x44


def test_rtc_set_by_the_guest_goes_on_from_there() -> None:
    clock = Clock()
    clock[0x0B] = 0x82
    for index, value in zip(
        (0x32, 9, 8, 7, 4, 2, 0), (0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58), strict=True
    ):
        clock[index] = value
    clock[0x0B] = 0x02
    clock.now_s += 2
    assert clock.time() == [0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x00, 0x00]


def test_rtc_set_in_twelve_hour_mode() -> None:
    clock = Clock()
    clock[0x0B] = 0x80
    clock[4] = 0x92  # noon
    clock[0x0B] = 0x00
    clock[0x0B] = 0x02
    assert clock[4] == 0x12


def test_rtc_set_without_halting_goes_on_from_what_was_written() -> None:
    clock = Clock()
    clock[2] = 0x10
    assert clock.time() == [0x20, 0x24, 0x02, 0x29, 5, 0x13, 0x10, 0x56]


def test_rtc_set_to_no_date_keeps_the_time() -> None:
    clock = Clock()
    clock[0x0B] = 0x82
    clock[8] = 0x13
    clock[0x0B] = 0x02
    assert clock[8] == 0x02


@pytest.mark.parametrize(
    ("index", "size", "expected"),
    [
        (0x15, 2, 640),  # KiB of base memory
        (0x17, 2, 0xFFFF),  # KiB above 1 MiB, as many as fit
        (0x30, 2, 0xFFFF),
        (0x34, 2, (3 * 1024 - 16) * 16),  # 64 KiB units from 16 MiB to 3 GiB
        (0x5B, 3, 2 * 1024 * 16),  # 64 KiB units above 4 GiB
    ],
)
def test_rtc_memory_sizes(index: int, size: int, expected: int) -> None:
    clock = Clock()
    stored = bytes(clock[index + byte] for byte in range(size))
    assert int.from_bytes(stored, "little") == expected


def test_rtc_memory_sizes_of_a_small_guest() -> None:
    clock = Clock()
    clock.device = Rtc(low_memory_bytes=8 * MiB)
    assert (clock[0x30] | clock[0x31] << 8, clock[0x34] | clock[0x35] << 8) == (7 * 1024, 0)
