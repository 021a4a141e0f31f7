"""The devices of a few lines: PCI without devices, scratch ports, debug exit, pvpanic."""

from __future__ import annotations

import pytest

from pyvmm.devices.bus import PortBus
from pyvmm.devices.debug_exit import DebugExit
from pyvmm.devices.pci_none import PciNone
from pyvmm.devices.pvpanic import PvPanic
from pyvmm.devices.scratch import ScratchPort


def test_pci_none_has_no_mechanism_1() -> None:
    device = PciNone()
    device.write(0, 4, 0x8000_0000)  # how Linux looks for it (pci_check_type1)
    assert device.read(0, 4) == 0xFFFF_FFFF


@pytest.mark.parametrize(
    ("offset", "size", "ones"), [(4, 4, 0xFFFF_FFFF), (6, 2, 0xFFFF), (7, 1, 0xFF)]
)
def test_pci_none_config_data_gives_all_ones(offset: int, size: int, ones: int) -> None:
    device = PciNone()
    device.write(0, 4, 0x8000_0000)
    device.write(offset, size, 0)
    assert device.read(offset, size) == ones


def test_scratch_port_keeps_the_last_byte() -> None:
    port = ScratchPort()
    assert (port.value, port.read(0, 1)) == (None, 0xFF)
    port.write(0, 1, 0x12)
    port.write(0, 1, 0x34)
    assert (port.value, port.read(0, 1)) == (0x34, 0x34)


@pytest.mark.parametrize(("size", "value"), [(1, 0), (1, 0x2A), (2, 0x1234), (4, 0xDEAD_BEEF)])
def test_debug_exit_passes_the_number_on(size: int, value: int) -> None:
    statuses: list[int] = []
    bus = PortBus()
    bus.add(0xF4, 4, DebugExit(statuses.append), "debug exit")
    bus.write(0xF4, size, value)
    assert statuses == [value]


def test_debug_exit_is_only_the_first_port() -> None:
    statuses: list[int] = []
    device = DebugExit(statuses.append)
    device.write(1, 1, 7)
    assert (statuses, device.read(0, 1)) == ([], 0)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        # The bits of docs/specs/pvpanic.rst; what is not understood is ignored.
        (0x01, [0x01]),
        (0x02, [0x02]),
        (0x03, [0x03]),
        (0xFD, [0x01]),
        (0x04, []),
        (0x00, []),
    ],
)
def test_pvpanic_tells_of_the_events_it_understands(written: int, told: list[int]) -> None:
    events: list[int] = []
    PvPanic(events.append).write(0, 1, written)
    assert events == told


def test_pvpanic_reads_as_the_events_it_understands() -> None:
    events: list[int] = []
    assert PvPanic(events.append).read(0, 1) == 0x03
    assert events == []
