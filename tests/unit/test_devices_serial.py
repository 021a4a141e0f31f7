"""The UART, register by register, and as Linux's 8250 driver uses it.

Expected values: PC16550D datasheet (June 1995), section numbers as there; for the deep FIFO
TL16C750 datasheet (SLLS191).
"""

from __future__ import annotations

import threading

import pytest
from builders.irq import RecordingIrq
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.serial import Serial16550

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = range(3, 8)


class Uart:
    """A UART, what it has sent, and its interrupt line."""

    def __init__(self, *, fifo_bytes: int = 16) -> None:
        self.sent: list[bytes] = []
        self.irq = RecordingIrq()
        self.device = Serial16550(self.irq, self.sent.append, fifo_bytes=fifo_bytes)

    def __getitem__(self, offset: int) -> int:
        return self.device.read(offset, 1)

    def __setitem__(self, offset: int, value: int) -> None:
        self.device.write(offset, 1, value)

    def drain(self) -> bytes:
        """What a guest reads until LSR says that there is no more."""
        data = bytearray()
        while self[LSR] & 0x01:
            data.append(self[RBR])
        return bytes(data)


@pytest.fixture
def uart() -> Uart:
    """A UART as after a reset."""
    return Uart()


@pytest.fixture
def listening() -> Uart:
    """A UART with its FIFOs on, and the receive interrupt enabled."""
    uart = Uart()
    uart[FCR] = 0x01
    uart[IER] = 0x01
    return uart


# Reset, divisor latch, scratch.


@pytest.mark.parametrize(
    ("register", "value"), [(IER, 0x00), (IIR, 0x01), (LCR, 0x00), (MCR, 0x00), (LSR, 0x60)]
)
def test_serial_reset_values(uart: Uart, register: int, value: int) -> None:
    assert uart[register] == value  # 8.0, Table I


def test_serial_reset_modem_inputs_are_connected(uart: Uart) -> None:
    assert uart[MSR] == 0xB0  # DCD, DSR, CTS; nothing has changed


def test_serial_divisor_latch_is_behind_dlab(uart: Uart) -> None:
    uart[LCR] = 0x83
    uart[DLL], uart[DLM] = 0x0C, 0x01
    assert (uart[DLL], uart[DLM]) == (0x0C, 0x01)
    uart[LCR] = 0x03
    assert (uart[RBR], uart[IER]) == (0, 0)
    assert uart.sent == []


def test_serial_scratch_register_keeps_its_value(uart: Uart) -> None:
    uart[SCR] = 0xA5
    assert uart[SCR] == 0xA5


@pytest.mark.parametrize(("register", "value"), [(IER, 0x0F), (MCR, 0x1F)])
def test_serial_upper_bits_are_zero(uart: Uart, register: int, value: int) -> None:
    uart[register] = 0xFF
    assert uart[register] == value  # 8.7, 8.8


@pytest.mark.parametrize("register", [LSR, MSR])
def test_serial_status_registers_are_read_only(uart: Uart, register: int) -> None:
    before = uart[register]
    uart[register] = ~before & 0xFF
    assert uart[register] == before


def test_serial_refuses_a_fifo_that_no_chip_has() -> None:
    with pytest.raises(ValueError, match="expected 16"):
        Serial16550(RecordingIrq(), print, fifo_bytes=32)


# The transmitter.


def test_serial_thr_write_is_sent_at_once(uart: Uart) -> None:
    uart[THR] = 0x41
    assert (uart.sent, uart[LSR]) == ([b"A"], 0x60)


def test_serial_transmit_run_is_one_output(uart: Uart) -> None:
    uart.device.transmit_run(b"Linux version")
    assert uart.sent == [b"Linux version"]


def test_serial_write_string_to_thr_is_one_output(uart: Uart) -> None:
    uart.device.write_string(THR, 1, b"hello")
    assert uart.sent == [b"hello"]


def test_serial_write_string_to_another_register_keeps_the_last(uart: Uart) -> None:
    uart.device.write_string(SCR, 1, b"\x01\x02\x03")
    assert uart[SCR] == 3


def test_serial_transmit_run_goes_to_the_divisor_while_dlab(uart: Uart) -> None:
    uart[LCR] = 0x80
    uart.device.transmit_run(b"\x01\x0c")
    assert (uart[DLL], uart.sent) == (0x0C, [])


def test_serial_transmit_run_of_nothing_sends_nothing(uart: Uart) -> None:
    uart.device.transmit_run(b"")
    assert uart.sent == []


def test_serial_thre_interrupt_on_enable(uart: Uart) -> None:
    uart[IER] = 0x02
    assert uart.irq.level
    assert uart[IIR] == 0x02


def test_serial_thre_interrupt_cleared_by_reading_iir(uart: Uart) -> None:
    uart[IER] = 0x02
    assert [uart[IIR], uart[IIR]] == [0x02, 0x01]  # 8.6, Table IV
    assert uart.irq.levels == [True, False]


def test_serial_thre_interrupt_after_each_byte(uart: Uart) -> None:
    uart[IER] = 0x02
    for _ in range(2):
        assert uart[IIR] == 0x02
        uart[THR] = 0x41
    assert uart.irq.levels == [True, False] * 2 + [True]


def test_serial_thre_interrupt_falls_and_rises_on_a_write_unanswered(uart: Uart) -> None:
    uart[IER] = 0x02
    uart[THR] = 0x41  # clears the interrupt, and when it is sent the next one is due
    assert uart.irq.levels == [True, False, True]


def test_serial_thre_interrupt_is_raised_once_for_a_run(uart: Uart) -> None:
    uart[IER] = 0x02
    assert uart[IIR] == 0x02
    uart.device.transmit_run(bytes(16))
    assert uart.irq.levels == [True, False, True]


def test_serial_thre_interrupt_not_raised_by_writing_the_same_ier(uart: Uart) -> None:
    uart[IER] = 0x02
    assert uart[IIR] == 0x02
    uart[IER] = 0x02
    assert uart[IIR] == 0x01


def test_serial_thre_interrupt_off_when_disabled(uart: Uart) -> None:
    uart[IER] = 0x02
    uart[IER] = 0x00
    assert (uart.irq.level, uart[IIR]) == (False, 0x01)


# The receiver.


@pytest.mark.parametrize(
    ("fcr", "level"), [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)], ids=lambda value: str(value)
)
def test_serial_trigger_level_turns_timeout_into_data(fcr: int, level: int) -> None:
    uart = Uart()
    uart[FCR] = fcr  # 8.5, bits 6 and 7
    uart[IER] = 0x01
    seen = []
    for _ in range(level):
        uart.device.receive(b"x")
        seen.append(uart[IIR])
    assert seen == [0xCC] * (level - 1) + [0xC4]


def test_serial_received_data_raises_the_line_until_read(listening: Uart) -> None:
    listening.device.receive(b"ab")
    assert listening.irq.levels == [True]
    assert listening.drain() == b"ab"
    assert listening.irq.levels == [True, False]


def test_serial_reading_iir_does_not_clear_received_data(listening: Uart) -> None:
    listening.device.receive(b"a")
    assert [listening[IIR], listening[IIR]] == [0xC4, 0xC4]


def test_serial_received_data_has_no_interrupt_when_disabled(listening: Uart) -> None:
    listening.device.receive(b"a")
    listening[IER] = 0
    assert (listening.irq.level, listening[IIR], listening[LSR]) == (False, 0xC1, 0x61)


def test_serial_empty_rbr_reads_zero(uart: Uart) -> None:
    assert uart[RBR] == 0


def test_serial_without_fifo_holds_one_byte(uart: Uart) -> None:
    uart[IER] = 0x01
    assert uart.device.receive(b"ab") == 1
    assert (uart[IIR], uart[RBR], uart[LSR]) == (0x04, 0x61, 0x60)


def test_serial_fifo_holds_sixteen_bytes(listening: Uart) -> None:
    assert listening.device.receive(bytes(range(20))) == 16
    assert listening.drain() == bytes(range(16))


def test_serial_fifo_bits_in_iir_follow_fcr(uart: Uart) -> None:
    seen = []
    for fcr in (0x01, 0xC1, 0xC0):
        uart[FCR] = fcr
        seen.append(uart[IIR])
    assert seen == [0xC1, 0xC1, 0x01]


@pytest.mark.parametrize("fcr", [0x03, 0x00], ids=["reset", "mode change"])
def test_serial_fifo_is_emptied(listening: Uart, fcr: int) -> None:
    listening[MCR] = 0x10
    listening.device.transmit_run(b"abc")
    listening[FCR] = fcr  # 8.5, bits 0 and 1
    assert listening[LSR] == 0x60
    assert not listening.irq.level


@pytest.mark.parametrize("fcr", [0x03, 0x00], ids=["reset", "mode change"])
def test_serial_input_in_an_emptied_fifo_comes_again(listening: Uart, fcr: int) -> None:
    listening.device.receive(b"abc")
    listening[FCR] = fcr
    assert listening.drain() == b"abc"


def test_serial_input_in_the_fifo_comes_again_after_loopback(listening: Uart) -> None:
    listening.device.receive(b"abc")
    listening[MCR] = 0x10
    listening[THR] = 0x55
    assert listening.drain() == b"\x55"
    listening[MCR] = 0x00
    assert listening.drain() == b"abc"


def test_serial_input_that_comes_again_comes_before_newer_input(listening: Uart) -> None:
    told: list[int] = []
    listening.device.on_room = lambda: told.append(1)
    listening.device.receive(bytes(range(16)))
    listening[FCR] = 0x00  # holds one byte now
    assert listening.device.receive(b"new") == 0
    for value in range(16):
        assert told == []
        assert listening[RBR] == value
    assert told == [1]


def test_serial_input_in_the_fifo_can_be_read_with_its_interrupt_off(listening: Uart) -> None:
    listening.device.receive(b"abc")
    listening[IER] = 0x00
    assert listening.drain() == b"abc"


def test_serial_fifo_is_not_emptied_by_a_new_trigger_level(listening: Uart) -> None:
    listening.device.receive(b"abc")
    listening[FCR] = 0xC1
    assert listening[IIR] == 0xCC
    assert listening.drain() == b"abc"


def test_serial_break_is_a_zero_with_the_break_bit(listening: Uart) -> None:
    listening[IER] = 0x05
    assert listening.device.receive_break()
    assert listening[IIR] == 0xC6
    assert listening[LSR] == 0xF1  # error in FIFO, TEMT, THRE, BI, DR
    assert listening[LSR] == 0x61
    assert listening[RBR] == 0


def test_serial_break_shows_when_its_byte_comes_to_the_top(listening: Uart) -> None:
    listening.device.receive(b"a")
    listening.device.receive_break()
    assert listening[LSR] == 0xE1  # 8.4: bit 7 at once, BI not yet
    assert listening[RBR] == 0x61
    assert listening[LSR] == 0xF1


def test_serial_break_is_refused_by_a_full_fifo(listening: Uart) -> None:
    listening.device.receive(bytes(16))
    assert not listening.device.receive_break()


# Back-pressure: whoever feeds the line keeps what does not fit.


def test_serial_room_is_told_once_when_the_guest_has_read_all(listening: Uart) -> None:
    told: list[int] = []
    listening.device.on_room = lambda: told.append(1)
    listening.device.receive(bytes(17))
    for left in range(15, -1, -1):
        listening[RBR]
        assert told == ([] if left else [1])
    listening.drain()
    assert told == [1]


def test_serial_room_is_not_told_if_nobody_waits(listening: Uart) -> None:
    told: list[int] = []
    listening.device.on_room = lambda: told.append(1)
    listening.device.receive(bytes(16))
    listening.drain()
    assert told == []


def test_serial_room_is_told_with_the_lock_free(listening: Uart) -> None:
    listening.device.on_room = lambda: listening.device.receive(b"z")
    listening.device.receive(bytes(16) + b"z")
    assert listening.drain() == bytes(16) + b"z"


def test_serial_input_waits_for_a_guest_that_does_not_listen(uart: Uart) -> None:
    told: list[int] = []
    uart.device.on_room = lambda: told.append(1)
    assert uart.device.receive(b"ls\n") == 0
    uart[IER] = 0x01
    assert told == [1]
    assert uart.device.receive(b"ls\n") == 1


def test_serial_input_comes_to_a_guest_that_polls(uart: Uart) -> None:
    uart[FCR] = 0x01
    uart.device.on_room = lambda: uart.device.receive(b"ls\n")
    assert uart.device.receive(b"ls\n") == 0
    for _ in range(100):
        if uart[LSR] & 0x01:
            break
    assert uart.drain() == b"ls\n"


def test_serial_transmit_loop_is_not_taken_for_polling(uart: Uart) -> None:
    for _ in range(100):
        assert uart[LSR] & 0x20
        uart[THR] = 0x2E
        assert uart[LSR] & 0x40
    assert uart.device.receive(b"x") == 0


def test_serial_paste_arrives_whole_while_another_thread_feeds(listening: Uart) -> None:
    paste = bytes(range(256)) * 256
    has_room = threading.Event()
    listening.device.on_room = has_room.set

    def feed() -> None:
        left = paste
        while left:
            has_room.clear()
            taken = listening.device.receive(left)
            left = left[taken:]
            if left and not taken:
                has_room.wait(10)

    feeder = threading.Thread(target=feed)
    feeder.start()
    got = bytearray()
    while len(got) < len(paste) and listening.irq.edge.wait(10):
        listening.irq.edge.clear()
        while not listening[IIR] & 0x01:
            got += listening.drain()
    feeder.join(10)
    assert bytes(got) == paste


# Loopback (8.8, bit 4).


@pytest.mark.parametrize(
    ("mcr", "msr"), [(0x10, 0x00), (0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80)]
)
def test_serial_loopback_outputs_stand_in_for_inputs(uart: Uart, mcr: int, msr: int) -> None:
    uart[MCR] = mcr
    assert uart[MSR] & 0xF0 == msr


def test_serial_loopback_data_comes_back_and_does_not_go_out(uart: Uart) -> None:
    uart[FCR], uart[MCR] = 0x01, 0x10
    uart[THR] = 0x55
    assert uart.drain() == b"\x55"
    assert uart.sent == []


def test_serial_loopback_keeps_outside_input_waiting(listening: Uart) -> None:
    told: list[int] = []
    listening.device.on_room = lambda: told.append(1)
    listening[MCR] = 0x10
    assert listening.device.receive(b"x") == 0
    assert not listening.device.receive_break()
    listening[MCR] = 0x00
    assert told == [1]


def test_serial_loopback_interrupts_work(uart: Uart) -> None:
    uart[FCR], uart[IER], uart[MCR] = 0x01, 0x03, 0x10
    assert uart[IIR] == 0xC2
    uart[THR] = 0x55
    assert uart[IIR] == 0xC4


def test_serial_overrun_of_the_fifo_keeps_the_old_bytes(uart: Uart) -> None:
    uart[FCR], uart[MCR] = 0x01, 0x10
    uart.device.transmit_run(bytes(range(17)))
    assert uart[LSR] == 0x63  # 8.4, bit 1: OE
    assert uart.drain() == bytes(range(16))


def test_serial_overrun_without_fifo_keeps_the_new_byte(uart: Uart) -> None:
    uart[MCR] = 0x10
    uart.device.transmit_run(b"ab")
    assert uart[LSR] == 0x63
    assert uart.drain() == b"b"


def test_serial_overrun_is_told_once(uart: Uart) -> None:
    uart[MCR] = 0x10
    uart.device.transmit_run(b"ab")
    assert [uart[LSR], uart[LSR]] == [0x63, 0x61]


# Modem status (8.9).


def test_serial_modem_deltas_are_told_once(uart: Uart) -> None:
    uart[MCR] = 0x10  # CTS, DSR, DCD fall
    assert [uart[MSR], uart[MSR]] == [0x0B, 0x00]


def test_serial_ring_counts_only_at_its_end(uart: Uart) -> None:
    uart[MCR] = 0x14
    assert uart[MSR] == 0x4B  # RI has come; no TERI
    uart[MCR] = 0x10
    assert uart[MSR] == 0x04


def test_serial_modem_interrupt_until_msr_is_read(uart: Uart) -> None:
    uart[IER] = 0x08
    assert uart[IIR] == 0x01
    uart[MCR] = 0x10
    assert (uart[IIR], uart.irq.level) == (0x00, True)
    assert uart[MSR] == 0x0B
    assert (uart[IIR], uart.irq.level) == (0x01, False)


def test_serial_iir_reports_the_highest_cause_first(uart: Uart) -> None:
    uart[FCR], uart[MCR] = 0x01, 0x10  # modem status changes
    uart.device.transmit_run(bytes(17))  # data, overrun, and an empty THR
    uart[IER] = 0x0F
    assert uart[IIR] == 0xC6
    assert uart[LSR] & 0x02
    assert uart[IIR] == 0xC4
    uart.drain()
    assert uart[IIR] == 0xC2
    assert uart[IIR] == 0xC0
    assert uart[MSR] & 0x0F
    assert uart[IIR] == 0xC1
    assert uart.irq.levels == [True, False]


# The deep FIFO of the TL16C750.


def test_serial_750_fifo_holds_64_bytes_if_asked() -> None:
    uart = Uart(fifo_bytes=64)
    uart[LCR], uart[FCR], uart[LCR], uart[IER] = 0x80, 0x21, 0x03, 0x01
    assert uart.device.receive(bytes(70)) == 64


@pytest.mark.parametrize(("fcr", "level"), [(0x21, 1), (0x61, 16), (0xA1, 32), (0xE1, 56)])
def test_serial_750_trigger_levels(fcr: int, level: int) -> None:
    uart = Uart(fifo_bytes=64)
    uart[LCR], uart[FCR], uart[LCR], uart[IER] = 0x80, fcr, 0x03, 0x01
    uart.device.receive(bytes(level - 1))
    before = uart[IIR]
    uart.device.receive(b"x")
    assert (before, uart[IIR]) == (0xEC if level > 1 else 0xE1, 0xE4)


def test_serial_750_fifo_stays_deep_when_fcr_is_written_without_dlab() -> None:
    uart = Uart(fifo_bytes=64)
    uart[LCR], uart[FCR], uart[LCR] = 0x80, 0x21, 0x03
    uart[FCR] = 0x03
    assert uart[IIR] == 0xE1


# Linux's 8250 driver (drivers/tty/serial/8250/8250_port.c, v6.1): autoconfig and startup.


def linux_autoconfig(uart: Uart) -> str:
    """The chip that Linux takes this for."""
    uart[IER] = 0x00
    without = uart[IER] & 0x0F
    uart[IER] = 0x0F
    assert (without, uart[IER] & 0x0F) == (0x00, 0x0F)
    uart[IER] = 0x00
    uart[MCR] = 0x1A
    assert uart[MSR] & 0xF0 == 0x90, "the loopback test"
    uart[MCR] = 0x00
    uart[LCR] = 0xBF
    uart[FCR] = 0x00
    uart[LCR] = 0x00
    uart[FCR] = 0x01
    assert uart[IIR] >> 6 == 3, "the FIFO test"
    # An enhanced feature register (16650 and others) would be at IIR's place, and zero.
    for lcr in (0x80, 0xBF):
        uart[LCR] = lcr
        assert uart[IIR] != 0
    # A National SuperIO would show MCR's loopback bit at offset 2 in bank 2.
    uart[LCR] = 0xE0
    assert uart[IIR] & 0x10 == 0
    uart[LCR] = 0x00
    uart[MCR] = 0x10
    uart[LCR] = 0xE0
    assert uart[IIR] & 0x10 == 0
    uart[LCR] = 0x00
    uart[MCR] = 0x00
    # A 16750 takes the bit for 64 bytes, and only while DLAB is set.
    uart[FCR] = 0x21
    without = uart[IIR] >> 5
    uart[FCR] = 0x01
    uart[LCR] = 0x80
    uart[FCR] = 0x21
    within = uart[IIR] >> 5
    uart[FCR] = 0x01
    uart[LCR] = 0x00
    if (without, within) == (6, 7):
        return "16750"
    # An Xscale UART would keep bit 6 of IER.
    uart[IER] = 0x40
    assert uart[IER] == 0x00
    # The FIFO's size, measured in loopback.
    uart[FCR], uart[MCR] = 0x07, 0x10
    uart[LCR] = 0x80
    uart[DLL], uart[DLM] = 0x01, 0x00
    uart[LCR] = 0x03
    for value in range(256):
        uart[THR] = value
    assert len(uart.drain()) == 16
    uart[FCR], uart[MCR], uart[LCR] = 0x00, 0x00, 0x00
    return "16550A"


def linux_startup(uart: Uart) -> None:
    """What opening ttyS0 does: old data and causes are thrown away, then interrupts enabled."""
    for fcr in (0x01, 0x07, 0x00):
        uart[FCR] = fcr
    for register in (LSR, RBR, IIR, MSR):
        uart[register]
    uart[LCR] = 0x03
    uart[MCR] = 0x08
    uart[IER] = 0x05
    uart[LCR] = 0x83
    uart[DLL], uart[DLM] = 0x0C, 0x00
    uart[LCR] = 0x03
    uart[FCR] = 0x01
    uart[FCR] = 0x81
    uart[MCR] = 0x0B


@pytest.mark.parametrize(("fifo_bytes", "chip"), [(16, "16550A"), (64, "16750")])
def test_serial_linux_autoconfig_finds_the_chip(fifo_bytes: int, chip: str) -> None:
    uart = Uart(fifo_bytes=fifo_bytes)
    assert linux_autoconfig(uart) == chip
    assert uart.sent == []


def test_serial_input_before_linux_is_up_is_not_lost(uart: Uart) -> None:
    left = bytearray(b"echo hello\npoweroff\n")

    def feed() -> None:
        del left[: uart.device.receive(bytes(left))]

    uart.device.on_room = feed
    feed()
    linux_autoconfig(uart)
    linux_startup(uart)
    assert uart.drain() == b"echo hello\npoweroff\n"


def linux_interrupt(uart: Uart, to_send: bytearray, load_bytes: int) -> None:
    """serial8250_interrupt for one port, which takes more off ``to_send`` each time."""
    while not uart[IIR] & 0x01:
        uart.drain()
        uart[MSR]
        if uart[LSR] & 0x20 and uart[IER] & 0x02:
            for value in to_send[:load_bytes]:
                uart[THR] = value
            del to_send[:load_bytes]
            if not to_send:
                uart[IER] &= ~0x02


@pytest.mark.parametrize("load_bytes", [16, 64])
def test_serial_linux_sends_by_interrupts(uart: Uart, load_bytes: int) -> None:
    linux_startup(uart)
    line = bytes(range(256)) * 4
    to_send = bytearray(line)
    uart[IER] |= 0x02
    while uart.irq.edge.is_set():
        uart.irq.edge.clear()
        linux_interrupt(uart, to_send, load_bytes)
    assert b"".join(uart.sent) == line
    assert not uart.irq.level


# Whatever the guest does.


@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.none() | st.integers(0, 255))
        | st.tuples(st.just(-1), st.integers(0, 20)),
        max_size=60,
    ),
    st.sampled_from([16, 64]),
)
def test_serial_line_is_high_exactly_while_iir_names_a_cause(
    accesses: list[tuple[int, int | None]], fifo_bytes: int
) -> None:
    uart = Uart(fifo_bytes=fifo_bytes)
    for offset, value in accesses:
        if offset == -1:
            uart.device.receive(bytes(value or 0))
        elif value is None:
            uart[offset]
        else:
            uart[offset] = value
        level = uart.irq.level
        assert level == (not uart[IIR] & 0x01)
    for before, after in zip(uart.irq.levels, uart.irq.levels[1:], strict=False):
        assert before != after
