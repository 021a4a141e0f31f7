"""The 16550A UART: the guest's serial port, and so its console.

Spec: PC16550D Universal Asynchronous Receiver/Transmitter with FIFOs, National Semiconductor,
June 1995, cited below by section. With ``fifo_bytes=64`` the chip is the TL16C750 (TI SLLS191),
which is the same but for deeper FIFOs. The guest must ask for them: Linux does, and then sends
64 bytes for each look at LSR or each interrupt, instead of 16.

    offset  read            write
    0       RBR             THR               DLL while LCR.DLAB is set
    1       IER             IER               DLM while LCR.DLAB is set
    2       IIR             FCR
    3       LCR             LCR
    4       MCR             MCR
    5       LSR             -
    6       MSR             -
    7       SCR             SCR

Time does not pass in here. What is sent is gone at once, so THR and the shift register are always
empty; and data below the FIFO's trigger level is reported by the character timeout at once, since
nothing is gained by waiting for more.

Receiving. ``receive`` takes what fits and the caller keeps the rest: the line is patient, so
nothing from outside ever overruns the FIFO. It is patient with drivers that start up, too. They
enable interrupts just to see whether a chip is there, run loopback tests, reset the FIFO and read
RBR to get rid of stale data; each of which would cost us bytes of ``echo ls | pyvmm run``. So

- nothing goes into the FIFO before the guest listens: from when it enables the receive interrupt
  (IER.ERBFI), or has read LSR ``_POLLS_TO_LISTEN`` times and done nothing else, as only somebody
  does who waits for input (a transmitter that is always empty gives no cause);
- when the FIFO is reset, or loopback cuts off the line, what came from outside goes back to the
  line, and comes again when the guest next listens. What was looped back is lost.

Left out, because nobody can tell or nobody asks: the line's speed and format (a guest that never
sets them is understood all the same), parity and framing errors, DMA signals, sleep and autoflow
of the TL16C750. OUT2 does not gate the interrupt, as it does on a PC's card: QEMU and Firecracker
do not gate it either, and there are kernels that forget to set it.

Registers are plain ints with named masks. (``enum.Flag`` would read as well, but its seven classes
cost more than a millisecond of every start.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvmm.devices.bus import IrqLine

# Offsets (8.0, Table II).
RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR = 3
MCR = 4
LSR = 5
MSR = 6
SCR = 7

# IER (8.7): what may interrupt.
IER_ERBFI = 0x01  # received data available, and the character timeout
IER_ETBEI = 0x02  # transmitter holding register empty
IER_ELSI = 0x04  # receiver line status
IER_EDSSI = 0x08  # modem status
_IER_BITS = 0x0F
_IER_BITS_750 = 0x3F  # and sleep and low-power mode, which are kept and change nothing

# IIR (8.6, Table IV): the highest cause that is pending and enabled.
IIR_NONE = 0x01
IIR_LINE_STATUS = 0x06
IIR_RECEIVED_DATA = 0x04
IIR_CHARACTER_TIMEOUT = 0x0C
IIR_THR_EMPTY = 0x02
IIR_MODEM_STATUS = 0x00
IIR_FIFOS_ENABLED = 0xC0
IIR_FIFO_64 = 0x20  # TL16C750

# FCR (8.5).
FCR_ENABLE = 0x01
FCR_RCVR_RESET = 0x02
FCR_64_BYTES = 0x20  # TL16C750, writable only while LCR.DLAB is set
_FCR_TRIGGER_SHIFT = 6
_TRIGGER_LEVELS = (1, 4, 8, 14)
_TRIGGER_LEVELS_64 = (1, 16, 32, 56)

LCR_DLAB = 0x80  # LCR (8.1): the divisor latch access bit; the rest is the line's format

# MCR (8.8).
MCR_DTR = 0x01
MCR_RTS = 0x02
MCR_OUT1 = 0x04
MCR_OUT2 = 0x08
MCR_LOOP = 0x10
_MCR_BITS = 0x1F
_MCR_BITS_750 = 0x3F  # and autoflow

# LSR (8.4).
LSR_DR = 0x01
LSR_OE = 0x02
LSR_BI = 0x10
LSR_THRE = 0x20
LSR_TEMT = 0x40
LSR_FIFO_ERROR = 0x80

# MSR (8.9): the inputs, and below them what has changed since the last read.
MSR_DCTS = 0x01
MSR_DDSR = 0x02
MSR_TERI = 0x04
MSR_DDCD = 0x08
MSR_CTS = 0x10
MSR_DSR = 0x20
MSR_RI = 0x40
MSR_DCD = 0x80
_MSR_DELTAS = 0x0F
# The far end is ready, and there is a carrier: a getty that waits for one goes on.
_MSR_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD

_POLLS_TO_LISTEN = 16
_LOOPED = 0x1_0000


def _ignore() -> None:
    """What ``on_room`` is until somebody wants to know."""


class Serial16550:
    """A 16550A. ``output`` gets the bytes that the guest sends, in runs as they come.

    The vCPU's thread reads and writes the registers while another calls ``receive``.
    """

    access_bytes = 1

    def __init__(
        self, irq: IrqLine, output: Callable[[bytes], object], *, fifo_bytes: int = 16
    ) -> None:
        if fifo_bytes not in (16, 64):
            raise ValueError(f"a FIFO of {fifo_bytes} bytes; expected 16 (16550A) or 64 (16750)")
        self.on_room: Callable[[], object] = _ignore
        """Called, from the vCPU's thread, when bytes that ``receive`` left would fit now."""
        self._irq = irq
        self._output = output
        self._is_750 = fifo_bytes == 64
        self._lock = Lock()
        # Registers, as after a reset (8.0, Table I). The divisor is that of 115200 baud.
        self._dll = 1
        self._dlm = 0
        self._ier = 0
        self._iir = IIR_NONE
        self._fifo_bits = 0
        self._lcr = 0
        self._mcr = 0
        self._msr = _MSR_CONNECTED
        self._scr = 0
        self._thre_pending = False
        self._irq_level = False
        # The receiver: each entry is a byte; above it, LSR bits that came with it, and _LOOPED.
        self._fifo: deque[int] = deque()
        self._given_back: deque[int] = deque()
        self._fifo_capacity = 1
        self._trigger = 1
        self._line_errors = 0
        self._listening = False
        self._idle_polls = 0
        self._wanting_room = False

    # What the guest does.

    def read(self, offset: int, size: int) -> int:
        """Read a register; see the table above."""
        with self._lock:
            if offset == LSR:
                value = self._read_lsr()
            else:
                self._idle_polls = 0
                if offset == RBR:
                    value = self._dll if self._lcr & LCR_DLAB else self._read_rbr()
                elif offset == IER:
                    value = self._dlm if self._lcr & LCR_DLAB else self._ier
                elif offset == IIR:
                    value = self._read_iir()
                elif offset == LCR:
                    value = self._lcr
                elif offset == MCR:
                    value = self._mcr
                elif offset == MSR:
                    value = self._msr
                    if value & _MSR_DELTAS:
                        self._msr &= ~_MSR_DELTAS
                        self._update_irq()
                else:
                    value = self._scr
            has_room = self._wanting_room and self._room_came_up()
        if has_room:
            self.on_room()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register; see the table above."""
        if offset == THR:
            self.transmit_run(bytes((value,)))
            return
        with self._lock:
            self._idle_polls = 0
            if offset == IER:
                if self._lcr & LCR_DLAB:
                    self._dlm = value
                else:
                    self._write_ier(value)
            elif offset == FCR:
                self._write_fcr(value)
            elif offset == LCR:
                self._lcr = value
            elif offset == MCR:
                self._write_mcr(value)
            elif offset == SCR:
                self._scr = value
            # LSR and MSR are read only (8.4, 8.9).
            has_room = self._wanting_room and self._room_came_up()
        if has_room:
            self.on_room()

    def write_string(self, offset: int, size: int, data: bytes) -> None:
        """An ``outs`` to one register, or a run of coalesced writes."""
        if offset == THR:
            self.transmit_run(data)
        else:
            for value in data:
                self.write(offset, size, value)

    def transmit_run(self, data: bytes) -> None:
        """What as many writes to offset 0 as ``data`` has bytes would do, in one go."""
        if not data:
            return
        self._idle_polls = 0
        if self._lcr & LCR_DLAB:
            self._dll = data[-1]
            return
        if self._mcr & MCR_LOOP:
            with self._lock:
                for value in data:
                    self._loop_back(value)
                self._after_transmit()
            return
        # Without the lock: a stalled terminal shall not hold up whoever calls receive.
        self._output(data)
        if self._ier & IER_ETBEI:
            with self._lock:
                self._after_transmit()

    # What the far end does.

    def receive(self, data: bytes) -> int:
        """Bytes arrive from outside. Says how many were taken; the caller keeps the others.

        If some were left, ``on_room`` is called once when more would fit. May be called from any
        thread.
        """
        with self._lock:
            count = min(self._room(), len(data))
            if count:
                self._fifo.extend(data[:count])
                self._update_irq()
            self._wanting_room = count < len(data)
        return count

    def receive_break(self) -> bool:
        """The far end sends a break (Linux: the SysRq key). Says whether the guest could take it.

        A break is a zero with LSR.BI (8.4, bit 4).
        """
        with self._lock:
            if not self._room():
                return False
            self._append(LSR_BI << 8)
            self._update_irq()
        return True

    # The registers that do something. All of these are called with the lock held.

    def _read_rbr(self) -> int:
        if not self._fifo:
            return 0
        value = self._fifo.popleft() & 0xFF
        if self._fifo:
            self._line_errors |= self._fifo[0] >> 8 & 0xFF
        else:
            self._refill()
        self._update_irq()
        return value

    def _read_lsr(self) -> int:
        if not self._fifo and not self._line_errors:
            # The way of a transmit loop, and of somebody who polls for input.
            self._idle_polls += 1
            if self._idle_polls >= _POLLS_TO_LISTEN:
                self._listening = True
                self._refill()
                self._update_irq()
            return LSR_THRE | LSR_TEMT
        value = LSR_THRE | LSR_TEMT | self._line_errors
        if self._fifo:
            value |= LSR_DR
            if self._fifo_bits and any(entry & 0xFF00 for entry in self._fifo):
                value |= LSR_FIFO_ERROR
            self._fifo[0] &= ~0xFF00  # its errors are told herewith
        if self._line_errors:
            self._line_errors = 0
            self._update_irq()
        return value

    def _read_iir(self) -> int:
        value = self._iir
        if value == IIR_THR_EMPTY:
            self._thre_pending = False
            self._update_irq()
        return value | self._fifo_bits

    def _write_ier(self, value: int) -> None:
        old = self._ier
        self._ier = value & (_IER_BITS_750 if self._is_750 else _IER_BITS)
        raised = self._ier & ~old
        if raised & IER_ETBEI:
            self._thre_pending = True  # THR is empty, and that is what is asked for
        if raised & IER_ERBFI:
            self._listening = True
            self._refill()
        elif old & ~self._ier & IER_ERBFI:
            self._listening = False
        self._update_irq()

    def _write_fcr(self, value: int) -> None:
        enable = value & FCR_ENABLE
        # Switching the mode empties the FIFOs (8.5, bit 0).
        if (value & FCR_RCVR_RESET and enable) or bool(enable) != bool(self._fifo_bits):
            self._give_back()
            self._fifo.clear()
            self._listening = bool(self._ier & IER_ERBFI)
        if not enable:
            self._fifo_bits = 0
            self._fifo_capacity = self._trigger = 1
        else:
            is_deep = bool(self._fifo_bits & IIR_FIFO_64)
            if self._is_750 and self._lcr & LCR_DLAB:
                is_deep = bool(value & FCR_64_BYTES)
            self._fifo_bits = IIR_FIFOS_ENABLED | (IIR_FIFO_64 if is_deep else 0)
            self._fifo_capacity = 64 if is_deep else 16
            levels = _TRIGGER_LEVELS_64 if is_deep else _TRIGGER_LEVELS
            self._trigger = levels[value >> _FCR_TRIGGER_SHIFT]
        self._refill()
        self._update_irq()

    def _write_mcr(self, value: int) -> None:
        self._mcr = value & (_MCR_BITS_750 if self._is_750 else _MCR_BITS)
        inputs = _MSR_CONNECTED
        if self._mcr & MCR_LOOP:
            self._give_back()
            # The four outputs stand in for the four inputs (8.8, bit 4).
            inputs = (
                (self._mcr & MCR_RTS and MSR_CTS)
                | (self._mcr & MCR_DTR and MSR_DSR)
                | (self._mcr & MCR_OUT1 and MSR_RI)
                | (self._mcr & MCR_OUT2 and MSR_DCD)
            )
        changed = self._msr ^ inputs
        deltas = changed >> 4 & (MSR_DCTS | MSR_DDSR | MSR_DDCD)
        if self._msr & MSR_RI and not inputs & MSR_RI:
            deltas |= MSR_TERI  # only the end of the ring counts (8.9, bit 2)
        self._msr = inputs | self._msr & _MSR_DELTAS | deltas
        self._refill()
        self._update_irq()

    def _loop_back(self, value: int) -> None:
        if len(self._fifo) < self._fifo_capacity:
            self._append(value | _LOOPED)
            return
        self._line_errors |= LSR_OE
        if not self._fifo_bits:
            self._fifo[0] = value | _LOOPED  # RBR is overwritten; a full FIFO is not (8.4, bit 1)

    def _append(self, entry: int) -> None:
        self._fifo.append(entry)
        if len(self._fifo) == 1:
            self._line_errors |= entry >> 8 & 0xFF

    def _room(self) -> int:
        """How many bytes from outside fit now."""
        if not self._listening or self._mcr & MCR_LOOP or self._given_back:
            return 0
        return max(0, self._fifo_capacity - len(self._fifo))

    def _give_back(self) -> None:
        """Leave in the FIFO only what was looped back."""
        outside = [entry for entry in self._fifo if not entry & _LOOPED]
        if outside:
            self._given_back.extendleft(reversed(outside))
            self._fifo = deque(entry for entry in self._fifo if entry & _LOOPED)

    def _refill(self) -> None:
        """Take again, as far as it fits now, what was given back."""
        if not self._given_back or not self._listening or self._mcr & MCR_LOOP:
            return
        while self._given_back and len(self._fifo) < self._fifo_capacity:
            self._append(self._given_back.popleft())

    def _after_transmit(self) -> None:
        """THR was written, which clears its interrupt, and is empty again, which raises it.

        The line falls in between. The interrupt controller looks for edges.
        """
        self._thre_pending = False
        self._update_irq()
        self._thre_pending = bool(self._ier & IER_ETBEI)
        self._update_irq()

    def _update_irq(self) -> None:
        """Find the one cause that IIR reports (8.6, Table IV), and drive the line accordingly."""
        ier = self._ier
        if ier & IER_ELSI and self._line_errors:
            iir = IIR_LINE_STATUS
        elif ier & IER_ERBFI and self._fifo:
            reached = len(self._fifo) >= self._trigger
            iir = IIR_RECEIVED_DATA if reached else IIR_CHARACTER_TIMEOUT
        elif ier & IER_ETBEI and self._thre_pending:
            iir = IIR_THR_EMPTY
        elif ier & IER_EDSSI and self._msr & _MSR_DELTAS:
            iir = IIR_MODEM_STATUS
        else:
            iir = IIR_NONE
        self._iir = iir
        level = iir != IIR_NONE
        if level is not self._irq_level:
            self._irq_level = level
            self._irq.set(level)

    def _room_came_up(self) -> bool:
        """Whether to fetch more input now: the guest listens, and has taken all that there was."""
        if self._fifo or not self._room():
            return False
        self._wanting_room = False
        return True
