"""The keyboard controller: its commands, and how soon Linux is done with it."""

from __future__ import annotations

import pytest
from builders.irq import RecordingIrq

from pyvmm.devices.i8042 import I8042

DATA, COMMAND = 0, 4  # 0x60 and 0x64


class Controller:
    """An i8042, with the accesses that a driver makes (PC AT Technical Reference)."""

    def __init__(self) -> None:
        self.resets = 0
        self.irq = RecordingIrq()
        self.device = I8042(self.irq, self._reset)

    def _reset(self) -> None:
        self.resets += 1

    def command(self, command: int, *parameters: int) -> None:
        self.device.write(COMMAND, 1, command)
        for parameter in parameters:
            self.device.write(DATA, 1, parameter)

    @property
    def status(self) -> int:
        return self.device.read(COMMAND, 1)

    def answer(self) -> int:
        assert self.status & 0x01, "no byte in the output buffer"
        return self.device.read(DATA, 1)


@pytest.mark.parametrize("command", [0xFE, 0xF0, 0xFC])
def test_i8042_pulse_of_the_reset_line_resets(command: int) -> None:
    controller = Controller()
    controller.command(command)
    assert controller.resets == 1


@pytest.mark.parametrize("command", [0xFF, 0xFD, 0xF1])
def test_i8042_pulse_of_other_lines_does_not_reset(command: int) -> None:
    controller = Controller()
    controller.command(command)
    assert controller.resets == 0


def test_i8042_output_port_without_the_reset_bit_resets() -> None:
    controller = Controller()
    controller.command(0xD1, 0xFE)
    assert controller.resets == 1


def test_i8042_output_port_keeps_the_a20_bit() -> None:
    controller = Controller()
    controller.command(0xD1, 0xDF)
    controller.command(0xD0)
    assert controller.answer() == 0xDF
    assert controller.resets == 0


@pytest.mark.parametrize(("command", "expected"), [(0xAA, 0x55), (0xAB, 0x00)])
def test_i8042_self_tests_pass(command: int, expected: int) -> None:
    controller = Controller()
    controller.command(command)
    assert controller.answer() == expected


def test_i8042_status_at_first_is_idle_and_unlocked() -> None:
    # Bit 0: nothing to read; bit 1: not busy; bit 2: the self-test passed; bit 4: no keylock.
    assert Controller().status == 0x14


def test_i8042_reading_empties_the_output_buffer() -> None:
    controller = Controller()
    controller.command(0xAA)
    controller.answer()
    assert controller.status & 0x01 == 0


def test_i8042_status_tells_command_from_data() -> None:
    controller = Controller()
    controller.command(0xAD)
    assert controller.status & 0x08
    controller.device.write(DATA, 1, 0xF4)
    assert not controller.status & 0x08


def test_i8042_command_byte_reads_back() -> None:
    controller = Controller()
    controller.command(0x60, 0x74)
    controller.command(0x20)
    assert controller.answer() == 0x74


def test_i8042_ram_beyond_the_command_byte_reads_back() -> None:
    controller = Controller()
    controller.command(0x7F, 0x5A)
    controller.command(0x3F)
    assert controller.answer() == 0x5A


@pytest.mark.parametrize(
    ("command", "bit", "value"),
    [(0xA7, 0x20, 0x20), (0xA8, 0x20, 0), (0xAD, 0x10, 0x10), (0xAE, 0x10, 0)],
)
def test_i8042_enable_and_disable_change_the_command_byte(
    command: int, bit: int, value: int
) -> None:
    controller = Controller()
    controller.command(0x60, 0x45 | (bit ^ value))
    controller.command(command)
    controller.command(0x20)
    assert controller.answer() & bit == value


def test_i8042_auxiliary_port_fails_its_test() -> None:
    controller = Controller()
    controller.command(0xA9)
    assert controller.answer() in (0x01, 0x02, 0x03, 0x04)  # clock or data stuck


def test_i8042_auxiliary_loop_comes_back_without_the_auxiliary_flag() -> None:
    # Linux's i8042_check_aux: an answer without status bit 5 means "no auxiliary port" at once.
    controller = Controller()
    controller.command(0xD3, 0x5A)
    assert controller.status & 0x21 == 0x01


@pytest.mark.parametrize("command", [None, 0xD4])
def test_i8042_byte_for_a_device_times_out(command: int | None) -> None:
    controller = Controller()
    if command is not None:
        controller.command(command)
    controller.device.write(DATA, 1, 0xFF)
    assert controller.status & 0x41 == 0x41
    assert controller.answer() == 0xFE
    assert controller.status & 0x41 == 0


def test_i8042_keyboard_buffer_write_comes_back() -> None:
    controller = Controller()
    controller.command(0xD2, 0x1C)
    assert controller.answer() == 0x1C


def test_i8042_command_drops_the_parameter_wanted_by_the_last_one() -> None:
    controller = Controller()
    controller.command(0xD1)
    controller.command(0xAA)
    controller.device.write(DATA, 1, 0x00)  # for the keyboard: as a parameter it would reset
    assert controller.resets == 0


def test_i8042_unknown_command_has_no_answer() -> None:
    controller = Controller()
    controller.command(0xB8)
    assert controller.status & 0x01 == 0


def test_i8042_irq_is_high_while_there_is_a_byte() -> None:
    controller = Controller()
    controller.command(0xAA)
    assert controller.irq.level
    controller.answer()
    assert not controller.irq.level


def test_i8042_irq_is_off_if_the_command_byte_says_so() -> None:
    controller = Controller()
    controller.command(0x60, 0x44)
    controller.command(0xAA)
    assert controller.irq.levels == []


def test_i8042_ports_between_are_not_its_own() -> None:
    assert Controller().device.read(2, 1) == 0xFF
