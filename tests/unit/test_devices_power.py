"""The PM1 block. Register layout and bits: ACPI 6.5, 4.8.3.1 and 4.8.3.2."""

from __future__ import annotations

import threading

import pytest
from builders.irq import RecordingIrq

from pyvmm.devices.bus import PortBus
from pyvmm.devices.power import AcpiPm

STATUS, ENABLE, CONTROL = 0, 2, 4
PWRBTN = 0x0100


class PoweredOff(Exception):  # noqa: N818 - it is no error
    """Raised by the callback, as the machine does it."""


def power_off() -> None:
    raise PoweredOff


def make_pm() -> tuple[AcpiPm, RecordingIrq]:
    irq = RecordingIrq()
    return AcpiPm(irq, power_off), irq


def test_pm1_is_always_in_acpi_mode() -> None:
    pm, _irq = make_pm()
    assert pm.read(CONTROL, 2) == 0x0001
    pm.write(CONTROL, 2, 0x0000)
    assert pm.read(CONTROL, 2) == 0x0001


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [
        (CONTROL, 2, 0x2000),
        (CONTROL, 2, 0x2001),
        (CONTROL + 1, 1, 0x20),  # its high byte alone
        (ENABLE, 4, 0x2000_0000),  # along with the register below it
    ],
)
def test_pm1_soft_off_powers_off(offset: int, size: int, value: int) -> None:
    pm, _irq = make_pm()
    with pytest.raises(PoweredOff):
        pm.write(offset, size, value)


def test_pm1_soft_off_works_by_the_port_that_guests_have_learnt() -> None:
    pm, _irq = make_pm()
    bus = PortBus()
    bus.add(0x600, 6, pm, "PM1")
    with pytest.raises(PoweredOff):
        bus.write(0x604, 2, 0x2000)


def test_pm1_is_still_usable_after_soft_off() -> None:
    pm, _irq = make_pm()
    with pytest.raises(PoweredOff):
        pm.write(CONTROL, 2, 0x2000)
    assert pm.read(CONTROL, 2) == 0x0001


def test_pm1_sleep_type_without_enable_does_nothing() -> None:
    pm, _irq = make_pm()
    pm.write(CONTROL, 2, 0x1400)
    assert pm.read(CONTROL, 2) == 0x1401


def test_pm1_other_sleep_types_do_nothing() -> None:
    pm, _irq = make_pm()
    pm.write(CONTROL, 2, 0x2000 | 5 << 10)
    assert pm.read(CONTROL, 2) == 0x1401  # SLP_EN reads as zero, SCI_EN as one


def test_pm1_write_only_and_reserved_control_bits_read_as_zero() -> None:
    pm, _irq = make_pm()
    pm.write(CONTROL, 2, 0xFFFF)  # SLP_TYP 7 is no state of this machine
    assert pm.read(CONTROL, 2) == 0x1C03  # SLP_TYP, BM_RLD, SCI_EN


def test_pm1_enable_keeps_the_fixed_events_and_no_other_bits() -> None:
    pm, irq = make_pm()
    pm.write(ENABLE, 2, 0xFFFF)
    assert pm.read(ENABLE, 2) == 0x0721  # RTC, SLPBTN, PWRBTN, GBL, TMR
    assert irq.levels == []


def test_pm1_registers_are_read_and_written_by_bytes() -> None:
    pm, _irq = make_pm()
    pm.write(ENABLE + 1, 1, 0x01)
    pm.write(ENABLE, 1, 0x20)
    assert [pm.read(offset, 1) for offset in range(6)] == [0, 0, 0x20, 0x01, 0x01, 0]
    assert pm.read(STATUS, 4) == 0x0120_0000


def test_power_button_raises_the_sci_until_its_status_is_cleared() -> None:
    pm, irq = make_pm()
    pm.write(ENABLE, 2, PWRBTN)
    pm.press_power_button()
    assert pm.read(STATUS, 2) == PWRBTN
    assert irq.levels == [True]
    pm.write(STATUS, 2, PWRBTN)
    assert pm.read(STATUS, 2) == 0
    assert irq.levels == [True, False]


def test_power_button_pressed_twice_is_one_level() -> None:
    pm, irq = make_pm()
    pm.write(ENABLE, 2, PWRBTN)
    pm.press_power_button()
    pm.press_power_button()
    assert irq.levels == [True]


def test_power_button_waits_for_the_guest_to_enable_it() -> None:
    pm, irq = make_pm()
    pm.press_power_button()
    assert irq.levels == []
    pm.write(ENABLE, 2, PWRBTN)
    assert irq.levels == [True]
    pm.write(ENABLE, 2, 0)
    assert irq.levels == [True, False]
    assert pm.read(STATUS, 2) == PWRBTN


@pytest.mark.parametrize(("size", "value"), [(2, 0x0000), (2, 0xFEFF), (1, 0xFF)])
def test_power_button_status_stays_unless_a_one_is_written_to_it(size: int, value: int) -> None:
    pm, _irq = make_pm()
    pm.press_power_button()
    pm.write(STATUS, size, value)
    assert pm.read(STATUS, 2) == PWRBTN


def test_power_button_may_be_pressed_from_another_thread() -> None:
    pm, irq = make_pm()
    pm.write(ENABLE, 2, PWRBTN)
    thread = threading.Thread(target=pm.press_power_button)
    thread.start()
    assert irq.edge.wait(10)
    thread.join()
    assert pm.read(STATUS, 2) == PWRBTN
