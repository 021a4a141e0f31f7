"""The CMOS RAM and its clock: an MC146818.

Spec: Motorola MC146818A datasheet (MC146818AS/D); IBM PC AT Technical Reference (March 1986),
"Real-Time Clock/CMOS RAM Information", for the bytes beyond the clock's own 14.

Port 0x70 takes the number of a byte (its bit 7 masks NMIs on a PC, and is ignored), port 0x71
reads and writes the byte.

The clock shows UTC. It is not ticked: the time of day is made up from ``now`` when it is read. A
guest may set it; what is kept is by how much it then differs from ours. No update is ever seen
in progress (UIP), so a reader never waits.

Left out: the alarm, periodic and update interrupts, whose flags in register C stay 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pyvmm.units import GiB, KiB, MiB

INDEX_OFFSET = 0
DATA_OFFSET = 1

# The clock's bytes (MC146818A, Table 2), and the PC's century.
SECONDS = 0x00
MINUTES = 0x02
HOURS = 0x04
DAY_OF_WEEK = 0x06
DAY_OF_MONTH = 0x07
MONTH = 0x08
YEAR = 0x09
REGISTER_A = 0x0A
REGISTER_B = 0x0B
REGISTER_C = 0x0C
REGISTER_D = 0x0D
CENTURY = 0x32
_CLOCK_BYTES = frozenset((SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, CENTURY))

A_UIP = 0x80  # update in progress
A_DEFAULT = 0x26  # 32.768 kHz time base, 1024 Hz periodic rate: as a PC's firmware sets it
B_SET = 0x80  # the clock is halted to be set
B_BINARY = 0x04  # DM: binary, else BCD
B_24_HOUR = 0x02
D_VALID = 0x80  # VRT: the battery was never empty
HOURS_PM = 0x80  # in 12-hour mode

# Memory sizes, as firmware leaves them for boot loaders. The first three: PC AT Technical
# Reference; the other two are those of the Bochs BIOS, which QEMU's and SeaBIOS share.
BASE_MEMORY = 0x15  # KiB below 640 KiB
EXTENDED_MEMORY = 0x17  # KiB above 1 MiB
EXTENDED_MEMORY_TESTED = 0x30  # the same, as found by the power-on test
MEMORY_ABOVE_16M = 0x34  # 64 KiB units above 16 MiB
MEMORY_ABOVE_4G = 0x5B  # 64 KiB units above 4 GiB, three bytes


class Rtc:
    """The CMOS RAM at offsets 0 (index) and 1 (data).

    ``now`` gives the time in seconds since the epoch. ``low_memory_bytes`` is the RAM below
    4 GiB, ``high_memory_bytes`` that above.
    """

    access_bytes = 1

    def __init__(
        self,
        now: Callable[[], float] = time.time,
        *,
        low_memory_bytes: int = 0,
        high_memory_bytes: int = 0,
    ) -> None:
        self._now = now
        self._offset_s = 0
        self._index = 0
        self._ram = bytearray(128)
        self._ram[REGISTER_A] = A_DEFAULT
        self._ram[REGISTER_B] = B_24_HOUR
        self._ram[REGISTER_D] = D_VALID
        extended = _clamp16((low_memory_bytes - MiB) // KiB)
        self._put(BASE_MEMORY, 2, min(low_memory_bytes // KiB, 640))
        self._put(EXTENDED_MEMORY, 2, extended)
        self._put(EXTENDED_MEMORY_TESTED, 2, extended)
        self._put(MEMORY_ABOVE_16M, 2, _clamp16((low_memory_bytes - 16 * MiB) // (64 * KiB)))
        self._put(MEMORY_ABOVE_4G, 3, min(high_memory_bytes, 1024 * GiB - 1) // (64 * KiB))

    def read(self, offset: int, size: int) -> int:
        """Read the byte that the index stands at. The index itself cannot be read."""
        if offset == INDEX_OFFSET:
            return 0xFF
        if self._index in _CLOCK_BYTES and not self._ram[REGISTER_B] & B_SET:
            self._show_time()
        return self._ram[self._index]

    def write(self, offset: int, size: int, value: int) -> None:
        """Set the index, or write the byte that it stands at."""
        if offset == INDEX_OFFSET:
            self._index = value & 0x7F
        elif self._index == REGISTER_A:
            self._ram[REGISTER_A] = value & ~A_UIP
        elif self._index == REGISTER_B:
            self._write_b(value)
        elif self._index in (REGISTER_C, REGISTER_D):
            pass  # read only
        elif self._index in _CLOCK_BYTES and not self._ram[REGISTER_B] & B_SET:
            # Without SET the clock goes on from what was written.
            self._show_time()
            self._ram[self._index] = value
            self._take_time()
        else:
            self._ram[self._index] = value

    def _write_b(self, value: int) -> None:
        was_set = self._ram[REGISTER_B] & B_SET
        if value & B_SET and not was_set:
            self._show_time()
        self._ram[REGISTER_B] = value
        if was_set and not value & B_SET:
            self._take_time()

    def _show_time(self) -> None:
        """Put the time of day into the clock's bytes, in the guest's format."""
        t = time.gmtime(int(self._now()) + self._offset_s)
        hours = t.tm_hour
        pm = 0
        if not self._ram[REGISTER_B] & B_24_HOUR:
            pm = HOURS_PM if hours >= 12 else 0
            hours = hours % 12 or 12
        ram, encode = self._ram, self._encode
        ram[SECONDS] = encode(t.tm_sec)
        ram[MINUTES] = encode(t.tm_min)
        ram[HOURS] = encode(hours) | pm
        ram[DAY_OF_WEEK] = encode((t.tm_wday + 1) % 7 + 1)  # Sunday is 1
        ram[DAY_OF_MONTH] = encode(t.tm_mday)
        ram[MONTH] = encode(t.tm_mon)
        ram[YEAR] = encode(t.tm_year % 100)
        ram[CENTURY] = encode(t.tm_year // 100)

    def _take_time(self) -> None:
        """The guest has set the clock: go on from there. What is no date changes nothing."""
        from datetime import UTC, datetime

        ram, decode = self._ram, self._decode
        hours = decode(ram[HOURS])
        if not ram[REGISTER_B] & B_24_HOUR:
            hours = decode(ram[HOURS] & ~HOURS_PM) % 12 + (12 if ram[HOURS] & HOURS_PM else 0)
        try:
            moment = datetime(
                decode(ram[CENTURY]) * 100 + decode(ram[YEAR]),
                decode(ram[MONTH]),
                decode(ram[DAY_OF_MONTH]),
                hours,
                decode(ram[MINUTES]),
                decode(ram[SECONDS]),
                tzinfo=UTC,
            )
        except ValueError:
            return
        self._offset_s = int(moment.timestamp()) - int(self._now())

    def _encode(self, number: int) -> int:
        if self._ram[REGISTER_B] & B_BINARY:
            return number
        return number // 10 << 4 | number % 10

    def _decode(self, value: int) -> int:
        if self._ram[REGISTER_B] & B_BINARY:
            return value
        return (value >> 4) * 10 + (value & 0x0F)

    def _put(self, index: int, size: int, number: int) -> None:
        self._ram[index : index + size] = number.to_bytes(size, "little")


def _clamp16(number: int) -> int:
    return max(0, min(number, 0xFFFF))
