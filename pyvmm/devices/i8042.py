"""The i8042 keyboard controller, with nothing plugged in: a PC resets itself through it.

Spec: IBM PC AT Technical Reference (March 1986), "Keyboard Controller"; IBM PS/2 Hardware
Interface Technical Reference, "Keyboard and Auxiliary Device Controller", for the commands of the
auxiliary port.

A write of 0xfe to port 0x64 pulses the CPU's reset line: Linux's ``reboot=k``. All else is here so
that a kernel's driver is told quickly, by a controller in good health, that there is no keyboard:

- It is never busy, and it answers every command at once. Linux waits half a second for each
  answer that does not come.
- A byte for the keyboard is answered as a real controller does when the keyboard is not there:
  0xfe in the output buffer with the status bit "timeout". Linux then gives up at once, instead
  of after 200 ms for each try.
- The auxiliary port fails its test (0xa9), which is how Linux finds that there is none, without
  waiting.

The A20 gate is always open; its bit is kept and read back. Left out: scan codes, since there are
no keys, and so no translation of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvmm.devices.ports import I8042_COMMAND_OFFSET, I8042_DATA_OFFSET

if TYPE_CHECKING:
    from pyvmm.devices.bus import IrqLine

# Status register.
STATUS_OUTPUT_FULL = 0x01
STATUS_SYSTEM = 0x04  # the controller's self-test has passed: bit 2 of the command byte
STATUS_COMMAND = 0x08  # the last write was to the command port
STATUS_UNLOCKED = 0x10  # the keylock switch does not inhibit the keyboard
STATUS_TIMEOUT = 0x40

# Command byte: the first byte of the controller's RAM.
CONTROL_KBD_INTERRUPT = 0x01
CONTROL_SYSTEM = 0x04
CONTROL_KBD_DISABLED = 0x10
CONTROL_AUX_DISABLED = 0x20
CONTROL_TRANSLATE = 0x40

# Commands. Those with a parameter get it by the next write to the data port.
CMD_READ_RAM = 0x20  # .. 0x3f
CMD_WRITE_RAM = 0x60  # .. 0x7f, one parameter
CMD_DISABLE_AUX = 0xA7
CMD_ENABLE_AUX = 0xA8
CMD_TEST_AUX = 0xA9
CMD_SELF_TEST = 0xAA
CMD_TEST_KBD = 0xAB
CMD_DISABLE_KBD = 0xAD
CMD_ENABLE_KBD = 0xAE
CMD_READ_INPUT_PORT = 0xC0
CMD_READ_OUTPUT_PORT = 0xD0
CMD_WRITE_OUTPUT_PORT = 0xD1  # one parameter
CMD_WRITE_KBD_BUFFER = 0xD2  # one parameter
CMD_WRITE_AUX_BUFFER = 0xD3  # one parameter
CMD_WRITE_AUX = 0xD4  # one parameter
CMD_READ_TEST_INPUTS = 0xE0
CMD_PULSE_OUTPUT_PORT = 0xF0  # .. 0xff, pulses low the bits 0 to 3 that are 0
_RAM_MASK = 0x1F
_PULSE_MASK = 0x0F

SELF_TEST_PASSED = 0x55
TEST_PASSED = 0x00
TEST_CLOCK_STUCK_LOW = 0x01
KBD_RESEND = 0xFE  # what the controller says for a keyboard that does not answer
INPUT_PORT_UNLOCKED = 0x80

OUTPUT_PORT_NO_RESET = 0x01  # the CPU's reset line; active low
OUTPUT_PORT_A20 = 0x02


class I8042:
    """The controller at offsets 0 (data) and 4 (status, command).

    ``irq`` is IRQ 1. ``reset`` is called when the guest resets the CPU; it need not return.
    """

    access_bytes = 1

    def __init__(self, irq: IrqLine, reset: Callable[[], object]) -> None:
        self._irq = irq
        self._reset = reset
        self._ram = bytearray(_RAM_MASK + 1)
        # As a PC's firmware leaves it.
        self._ram[0] = (
            CONTROL_KBD_INTERRUPT | CONTROL_SYSTEM | CONTROL_AUX_DISABLED | CONTROL_TRANSLATE
        )
        self._output_port = OUTPUT_PORT_NO_RESET | OUTPUT_PORT_A20
        self._output = 0
        self._status = STATUS_UNLOCKED
        self._wants_parameter: int | None = None
        self._irq_level = False

    def read(self, offset: int, size: int) -> int:
        """Read the output buffer, or the status."""
        if offset == I8042_COMMAND_OFFSET:
            return self._status | (self._ram[0] & CONTROL_SYSTEM and STATUS_SYSTEM)
        if offset != I8042_DATA_OFFSET:
            return 0xFF
        # The last byte stays to be read again, as it does in the chip.
        self._status &= ~(STATUS_OUTPUT_FULL | STATUS_TIMEOUT)
        self._update_irq()
        return self._output

    def write(self, offset: int, size: int, value: int) -> None:
        """Give a command, or a command's parameter, or a byte for the keyboard."""
        if offset == I8042_COMMAND_OFFSET:
            self._status |= STATUS_COMMAND
            self._wants_parameter = None
            self._command(value)
        elif offset == I8042_DATA_OFFSET:
            self._status &= ~STATUS_COMMAND
            command, self._wants_parameter = self._wants_parameter, None
            if command is None:
                self._answer(KBD_RESEND, STATUS_TIMEOUT)
            else:
                self._parameter(command, value)

    def _command(self, command: int) -> None:
        if CMD_READ_RAM <= command <= CMD_READ_RAM | _RAM_MASK:
            self._answer(self._ram[command & _RAM_MASK])
        elif CMD_WRITE_RAM <= command <= CMD_WRITE_RAM | _RAM_MASK or command in (
            CMD_WRITE_OUTPUT_PORT,
            CMD_WRITE_KBD_BUFFER,
            CMD_WRITE_AUX_BUFFER,
            CMD_WRITE_AUX,
        ):
            self._wants_parameter = command
        elif command == CMD_DISABLE_AUX:
            self._ram[0] |= CONTROL_AUX_DISABLED
        elif command == CMD_ENABLE_AUX:
            self._ram[0] &= ~CONTROL_AUX_DISABLED
        elif command == CMD_TEST_AUX:
            self._answer(TEST_CLOCK_STUCK_LOW)
        elif command == CMD_SELF_TEST:
            self._ram[0] |= CONTROL_SYSTEM
            self._answer(SELF_TEST_PASSED)
        elif command == CMD_TEST_KBD:
            self._answer(TEST_PASSED)
        elif command == CMD_DISABLE_KBD:
            self._ram[0] |= CONTROL_KBD_DISABLED
        elif command == CMD_ENABLE_KBD:
            self._ram[0] &= ~CONTROL_KBD_DISABLED
        elif command == CMD_READ_INPUT_PORT:
            self._answer(INPUT_PORT_UNLOCKED)
        elif command == CMD_READ_OUTPUT_PORT:
            self._answer(self._output_port)
        elif command == CMD_READ_TEST_INPUTS:
            self._answer(0)
        elif command >= CMD_PULSE_OUTPUT_PORT and not command & OUTPUT_PORT_NO_RESET:
            self._reset()
        # Any other command is one that this controller does not know, and no answer is due.

    def _parameter(self, command: int, value: int) -> None:
        if command == CMD_WRITE_OUTPUT_PORT:
            self._output_port = value
            if not value & OUTPUT_PORT_NO_RESET:
                self._reset()
        elif command in (CMD_WRITE_KBD_BUFFER, CMD_WRITE_AUX_BUFFER):
            # Without an auxiliary port the byte comes back as the keyboard's; by this Linux
            # sees at once that there is none (drivers/input/serio/i8042.c, i8042_check_aux).
            self._answer(value)
        elif command == CMD_WRITE_AUX:
            self._answer(KBD_RESEND, STATUS_TIMEOUT)
        else:
            self._ram[command & _RAM_MASK] = value
            self._update_irq()

    def _answer(self, value: int, flags: int = 0) -> None:
        """Put ``value`` into the output buffer, over what the guest may have left there."""
        self._output = value
        self._status = self._status & ~STATUS_TIMEOUT | STATUS_OUTPUT_FULL | flags
        self._update_irq()

    def _update_irq(self) -> None:
        level = bool(self._status & STATUS_OUTPUT_FULL and self._ram[0] & CONTROL_KBD_INTERRUPT)
        if level is not self._irq_level:
            self._irq_level = level
            self._irq.set(level)
