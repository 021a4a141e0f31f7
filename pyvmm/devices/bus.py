"""The buses: which device answers at a port, or at a physical address.

A device claims a range once, before the guest runs, and from then on sees offsets into it. What
the guest may do to a bus, and what happens:

- It touches what nobody claims. Reads give all ones, as a bus with nobody driving it does; writes
  go nowhere. Both are counted, and told to ``log`` once for each address.
- Its access is wider than the device takes in one piece (``access_bytes``), or runs over the end
  of the device's range. The access is cut into the largest pieces that fit, lowest address first,
  each for whoever is at its address. That is how a PC's chipset brings a 16-bit ``out`` to an
  8-bit card.
- It moves a string (``ins``, ``outs``). The port stays the same, the data advances.

All numbers are little-endian, as the CPU's are.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from pyvmm.errors import DeviceError

# How many addresses are remembered as touched though unclaimed. Without an end to it, a hostile
# guest could make us remember as many as there are.
_UNCLAIMED_MAX = 1024


class Device(Protocol):
    """Something that answers on a bus.

    A device may also have ``access_bytes``, the widest access that it takes in one piece (else 1
    on the port bus, 8 on the memory bus), and ``write_string(offset, size, data)``, which takes
    a whole ``outs`` at once.
    """

    def read(self, offset: int, size: int) -> int:
        """The ``size`` bytes at ``offset``, as a number that fits into them."""
        ...

    def write(self, offset: int, size: int, value: int) -> None:
        """Take ``value``, a number of ``size`` bytes, at ``offset``."""
        ...


class IrqLine(Protocol):
    """One interrupt line from a device to the interrupt controllers."""

    def set(self, level: bool) -> None:
        """Drive the line: True is asserted. May be called from any thread."""
        ...


class Claim(NamedTuple):
    """A device's place on a bus: ``base`` to ``end`` (exclusive)."""

    base: int
    end: int
    name: str
    device: Device


class _Bus:
    """What the two buses share: claims, cutting an access into pieces, and the void."""

    _kind: str
    _end: int
    _default_access_bytes: int

    def __init__(self, log: Callable[[str], object] | None = None) -> None:
        self._claims: list[Claim] = []
        self._log = log
        self._unclaimed: dict[int, list[int]] = {}

    def add(self, base: int, size: int, device: Device, name: str) -> None:
        """Let ``device`` answer for ``size`` ports or bytes from ``base``.

        Raises DeviceError if the range is not on the bus, or if a part of it is taken.
        """
        claim = Claim(base, base + size, name, device)
        if size <= 0 or base < 0 or claim.end > self._end:
            raise DeviceError(
                f"{name} claims {self._kind} {base:#x}..{claim.end:#x}; expected a range that "
                f"is not empty and within 0..{self._end:#x}"
            )
        for other in self._claims:
            if claim.base < other.end and other.base < claim.end:
                raise DeviceError(
                    f"{name} claims {self._kind} {base:#x}..{claim.end:#x}, but {other.name} has "
                    f"{other.base:#x}..{other.end:#x}; give one of them another place"
                )
        insort(self._claims, claim, key=lambda each: each.base)

    def devices(self) -> tuple[Claim, ...]:
        """Who answers where, lowest address first."""
        return tuple(self._claims)

    def unclaimed(self) -> dict[int, tuple[int, int]]:
        """How often the guest (read, wrote) where nobody is: by address, the first 1024 of them."""
        return {at: (reads, writes) for at, (reads, writes) in sorted(self._unclaimed.items())}

    def read(self, address: int, size: int) -> int:
        raise NotImplementedError

    def write(self, address: int, size: int, value: int) -> None:
        raise NotImplementedError

    def _widest(self, address: int) -> int:
        """The largest piece that somebody takes whole at ``address``; 0 if nobody is there."""
        raise NotImplementedError

    def _access_bytes(self, device: Device) -> int:
        return getattr(device, "access_bytes", self._default_access_bytes)

    def _pieces(self, address: int, size: int) -> list[tuple[int, int]] | None:
        """The (address, size) of each piece of an access, or None if nobody is at any of it."""
        pieces = []
        claimed = False
        end = address + size
        while address < end:
            widest = self._widest(address)
            claimed |= widest > 0
            piece = _power_of_two_within(min(widest or 1, end - address))
            pieces.append((address, piece))
            address += piece
        return pieces if claimed else None

    def _read_pieces(self, address: int, size: int) -> int:
        pieces = self._pieces(address, size)
        if pieces is None:
            self._note_unclaimed(address, size, writing=False)
            return (1 << 8 * size) - 1
        value = 0
        for at, piece in pieces:
            value |= self.read(at, piece) << 8 * (at - address)
        return value

    def _write_pieces(self, address: int, size: int, value: int) -> None:
        pieces = self._pieces(address, size)
        if pieces is None:
            self._note_unclaimed(address, size, writing=True)
            return
        for at, piece in pieces:
            self.write(at, piece, value >> 8 * (at - address) & (1 << 8 * piece) - 1)

    def _note_unclaimed(self, address: int, size: int, *, writing: bool) -> None:
        counts = self._unclaimed.get(address)
        if counts is None:
            if len(self._unclaimed) >= _UNCLAIMED_MAX:
                return
            counts = self._unclaimed[address] = [0, 0]
        counts[writing] += 1
        if self._log is not None and counts[writing] == 1:
            done = "written" if writing else "read"
            self._log(f"{size} bytes {done} at {self._kind} {address:#x}, where no device is")


# What the port bus knows of one port: the device's read and write, the offset that the port is
# for the device, the widest access from there, and the device's write_string if it has one.
_Port = tuple[
    Callable[[int, int], int],
    Callable[[int, int, int], None],
    int,
    int,
    Callable[[int, int, bytes], None] | None,
]


class PortBus(_Bus):
    """The 64 Ki I/O ports. A look-up is one dict access; the run loop remembers even that."""

    _kind = "port"
    _end = 0x1_0000
    _default_access_bytes = 1

    def __init__(self, log: Callable[[str], object] | None = None) -> None:
        super().__init__(log)
        self._ports: dict[int, _Port] = {}

    def add(
        self, base: int, size: int, device: Device, name: str, *, first_offset: int = 0
    ) -> None:
        """As for any bus; to the device the first of these ports is ``first_offset``."""
        super().add(base, size, device, name)
        write_string = getattr(device, "write_string", None)
        for offset in range(size):
            widest = _power_of_two_within(min(self._access_bytes(device), size - offset))
            self._ports[base + offset] = (
                device.read,
                device.write,
                first_offset + offset,
                widest,
                write_string,
            )

    def read(self, port: int, size: int) -> int:
        """What an ``in`` of ``size`` bytes from ``port`` gives."""
        entry = self._ports.get(port)
        if entry is not None and size <= entry[3]:
            return entry[0](entry[2], size)
        return self._read_pieces(port, size)

    def write(self, port: int, size: int, value: int) -> None:
        """An ``out`` of ``size`` bytes to ``port``."""
        entry = self._ports.get(port)
        if entry is not None and size <= entry[3]:
            entry[1](entry[2], size, value)
        else:
            self._write_pieces(port, size, value)

    def reader(self, port: int, size: int) -> Callable[[], int] | None:
        """``read(port, size)`` without the look-up, if a device takes that in one piece."""
        entry = self._ports.get(port)
        if entry is None or size > entry[3]:
            return None
        return partial(entry[0], entry[2], size)

    def writer(self, port: int, size: int) -> Callable[[int], None] | None:
        """``write(port, size, value)`` without the look-up, likewise."""
        entry = self._ports.get(port)
        if entry is None or size > entry[3]:
            return None
        return partial(entry[1], entry[2], size)

    def read_string(self, port: int, size: int, count: int) -> bytes:
        """What an ``ins`` of ``count`` elements of ``size`` bytes gives, in memory order."""
        read = self.read
        return b"".join([read(port, size).to_bytes(size, "little") for _ in range(count)])

    def write_string(self, port: int, size: int, data: bytes) -> None:
        """An ``outs`` of elements of ``size`` bytes, which ``data`` holds in memory order."""
        entry = self._ports.get(port)
        if entry is not None and size <= entry[3] and entry[4] is not None:
            entry[4](entry[2], size, data)
            return
        write = self.write
        for start in range(0, len(data), size):
            write(port, size, int.from_bytes(data[start : start + size], "little"))

    def _widest(self, address: int) -> int:
        entry = self._ports.get(address)
        return 0 if entry is None else entry[3]


class MmioBus(_Bus):
    """Physical addresses that are not RAM."""

    _kind = "address"
    _end = 1 << 52  # SDM 3A 4.1.4: MAXPHYADDR is at most 52
    _default_access_bytes = 8

    def __init__(self, log: Callable[[str], object] | None = None) -> None:
        super().__init__(log)
        self._bases: list[int] = []

    def add(self, base: int, size: int, device: Device, name: str) -> None:
        super().add(base, size, device, name)
        self._bases = [claim.base for claim in self._claims]

    def read(self, gpa: int, size: int) -> int:
        """What a load of ``size`` bytes from ``gpa`` gives."""
        if size <= self._widest(gpa):
            claim = self._claims[bisect_right(self._bases, gpa) - 1]
            return claim.device.read(gpa - claim.base, size)
        return self._read_pieces(gpa, size)

    def write(self, gpa: int, size: int, value: int) -> None:
        """A store of ``size`` bytes to ``gpa``."""
        if size <= self._widest(gpa):
            claim = self._claims[bisect_right(self._bases, gpa) - 1]
            claim.device.write(gpa - claim.base, size, value)
        else:
            self._write_pieces(gpa, size, value)

    def _widest(self, address: int) -> int:
        index = bisect_right(self._bases, address) - 1
        if index < 0 or address >= self._claims[index].end:
            return 0
        claim = self._claims[index]
        return _power_of_two_within(min(self._access_bytes(claim.device), claim.end - address))


def _power_of_two_within(number: int) -> int:
    """The largest power of two that is at most ``number``, which is positive."""
    return 1 << number.bit_length() - 1
