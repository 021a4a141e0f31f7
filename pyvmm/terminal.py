"""The user's end of the guest's serial line: stdin and stdout, terminals or not.

    stdin --> ConsoleReader (a thread) --> EscapeFilter --> Serial16550.receive
    stdout <-- ConsoleWriter (a thread) <-- its buffer <-- the vCPU's thread

Two threads, so that neither side can hold up the other for good:

*Output.* The vCPU's thread only appends to a buffer. The writer takes the first byte of a quiet
time at once, then collects for a millisecond before each further write: a prompt is there without
delay, and a flood costs a thousand system calls a second, not one for each byte. If nobody reads
our output the buffer fills up; then the guest waits a little, and if still nobody reads, what it
says is dropped, and a note in the output says how much. A closed stdout just ends all writing.

*Input.* The UART takes 16 bytes at a time, when the guest has read those before. Meanwhile what
comes from a pipe stays in the pipe. What comes from a terminal is read all the same, and kept:
the keys that leave pyvmm must work when the guest has stopped to listen.

File descriptors are never made non-blocking, since that would change them for the shell and for
everybody else who has them too. Instead they are polled, and what is written is no more than a
pipe takes without blocking once it is ready.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from errno import EIO
from select import POLLIN, POLLOUT, poll
from typing import TYPE_CHECKING, Protocol

from pyvmm.errors import HostError
from pyvmm.threads import start_thread
from pyvmm.units import KiB, MiB

if TYPE_CHECKING:
    from types import TracebackType

_PIPE_BUF = 4 * KiB  # pipe(7): if poll says POLLOUT, this much does not block
_COLLECT_S = 0.001
_STALL_S = 1.0
_CLOSED_POLL_S = 0.1
_READ_BYTES = 4 * KiB
_TYPED_AHEAD_MAX_BYTES = 256 * KiB
_BACKGROUND_POLL_S = 0.25

_NEWLINE = 0x0A

ESCAPE = 0x01  # Ctrl-A
HELP = (
    b"\r\nCtrl-A x  leave pyvmm\r\n"
    b"Ctrl-A c  send Ctrl-A to the guest (so does Ctrl-A Ctrl-A)\r\n"
    b"Ctrl-A b  send a break to the guest (Linux: SysRq)\r\n"
    b"Ctrl-A h  show this\r\n"
)


def guard_standard_fds() -> None:
    """Open /dev/null in place of a closed stdin, stdout or stderr.

    Otherwise the next file that is opened gets that number, and what is meant for the terminal
    goes there. To be called before anything else is opened.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one


class RawTerminal:
    """A context in which every key goes to the guest as typed, and output is not touched.

    The guest's own terminal driver makes CR LF of its line ends, so ours must not make anything
    of them. Whoever else writes to the terminal meanwhile has to end lines with ``newline``.

    Does nothing if ``fd`` is no terminal, and nothing as long as we are in the background. The
    terminal's modes come back when the context is left, and if not by that, then when the process
    exits. ``restore`` may be called at any time, any number of times; as from a signal handler.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._saved: list[int | list[bytes | int]] | None = None

    @property
    def newline(self) -> str:
        """What ends a line on the terminal as it is now."""
        return "\n" if self._saved is None else "\r\n"

    def __enter__(self) -> RawTerminal:
        self.apply()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore()

    def apply(self) -> None:
        """Set raw mode. Also for when a stopped process goes on, and the shell has set its own."""
        if not os.isatty(self.fd) or is_in_background(self.fd):
            return
        import atexit
        import termios as t

        try:
            if self._saved is None:
                self._saved = t.tcgetattr(self.fd)
                atexit.register(self.restore)
            iflag, oflag, cflag, lflag, ispeed, ospeed, cc = t.tcgetattr(self.fd)
            # As cfmakeraw(3) does it.
            iflag &= ~(
                t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON
            )
            oflag &= ~t.OPOST
            lflag &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
            cflag = cflag & ~(t.CSIZE | t.PARENB) | t.CS8
            cc = list(cc)
            cc[t.VMIN], cc[t.VTIME] = 1, 0
            t.tcsetattr(self.fd, t.TCSANOW, [iflag, oflag, cflag, lflag, ispeed, ospeed, cc])
        except t.error:
            pass  # it hung up: there is no terminal any more

    def restore(self) -> None:
        """Give the terminal back the modes that it had."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        import atexit
        import signal
        import termios

        atexit.unregister(self.restore)
        # In the background, setting modes would stop us by SIGTTOU; blocked, it is allowed.
        # TCSANOW: waiting for the output to drain could wait for ever.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            termios.tcsetattr(self.fd, termios.TCSANOW, saved)
        except termios.error:
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def is_in_background(fd: int) -> bool:
    """Whether the terminal ``fd`` is our controlling terminal, and another job has it now."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:
        return False  # not ours: no job control


class EscapeFilter:
    """Takes the user's commands to pyvmm out of what is typed: Ctrl-A and a key.

    The keys are those of QEMU. Ctrl-A followed by any other key goes to the guest, with that key:
    people use Ctrl-A in shells and editors too.
    """

    def __init__(
        self,
        on_leave: Callable[[], object],
        on_break: Callable[[], object],
        on_help: Callable[[], object],
    ) -> None:
        self._on_leave = on_leave
        self._on_break = on_break
        self._on_help = on_help
        self._escaped = False

    def feed(self, data: bytes) -> bytes:
        """What of ``data`` is for the guest. A command may begin in one call and end in the next.

        What follows on the command to leave is for nobody.
        """
        if not self._escaped and ESCAPE not in data:
            return data
        out = bytearray()
        for key in data:
            if not self._escaped:
                if key == ESCAPE:
                    self._escaped = True
                else:
                    out.append(key)
                continue
            self._escaped = False
            if key == ord("x"):
                self._on_leave()
                break
            if key == ord("b"):
                self._on_break()
            elif key in b"h?":
                self._on_help()
            elif key in (ESCAPE, ord("c")):
                out.append(ESCAPE)
            else:
                out += bytes((ESCAPE, key))
        return bytes(out)


class ConsoleWriter:
    """Writes to ``fd``, from a thread of its own, what ``write`` is given.

    ``write`` waits only if ``limit_bytes`` are in the buffer, and gives up waiting when ``fd`` has
    taken nothing for ``stall_s``. From then on all is dropped until half of the buffer has been
    taken; a note in the output then tells how much. ``write`` may be called from any thread.
    """

    def __init__(self, fd: int, *, limit_bytes: int = MiB, stall_s: float = _STALL_S) -> None:
        self.dropped_bytes = 0
        """All that was dropped because nobody read it; after ``close``, all that nobody got."""
        self.error: OSError | None = None
        """Why nothing is written any more, if so."""
        self.at_line_start = True
        """Whether what was written ends with a line's end."""
        self._fd = fd
        self._limit_bytes = limit_bytes
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._in_flight = False
        self._closed = False
        self._unnoted_bytes = 0  # dropped, and no note says so yet: we are dropping
        self._progress_at = 0.0
        # Those who wait for the writer wait here; how many, so that it need not notify nobody.
        self._progress = threading.Condition(self._lock)
        self._waiting = 0
        # The writer waits here: a lock that is held while there is nothing to do. No other way
        # of waking up a thread costs less. It is released only by whoever finds _idle set, and
        # clears it; and the writer sets _idle only while the lock is held.
        self._wake = threading.Lock()
        self._wake.acquire()
        self._idle = True
        self._thread: threading.Thread | None = None

    def write(self, data: bytes) -> None:
        """Have ``data`` written soon. Does not fail; see ``error`` and ``dropped_bytes``.

        Raises HostError if it is the first, and the host has no thread to give.
        """
        with self._lock:
            if len(self._buffer) + len(data) > self._limit_bytes or self._unnoted_bytes:
                data = self._wait_for_room(data)
            if not data or self._closed or self.error is not None:
                return
            self._buffer += data
            if self._idle:
                self._wake_writer()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is written. Says whether it is; not if time ran out, or writing failed."""
        with self._lock:
            self._wait(lambda: not self._buffer and not self._in_flight, timeout_s)
            return self.error is None and not self._buffer and not self._in_flight

    def close(self, timeout_s: float) -> bool:
        """``flush``, then end. ``fd`` stays open. What is written from now on goes nowhere."""
        is_flushed = self.flush(timeout_s)
        with self._lock:
            self._closed = True
            self.dropped_bytes += len(self._buffer)
            self._buffer.clear()
            self._progress.notify_all()
            if self._idle and self._thread is not None:
                self._wake_writer()
        if self._thread is not None:
            # If it hangs in a write, only the end of the process ends it, and it is no hindrance.
            self._thread.join(timeout_s + _CLOSED_POLL_S)
        return is_flushed

    # All of these but _run are called with the lock held.

    def _wake_writer(self) -> None:
        self._idle = False
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="console-out", daemon=True)
            try:
                start_thread(thread)  # it looks into the buffer first
            except HostError:
                self._closed = True  # nobody will wait for it
                raise
            self._thread = thread
        else:
            self._wake.release()

    def _wait(self, until: Callable[[], bool], timeout_s: float) -> None:
        self._waiting += 1
        try:
            self._progress.wait_for(
                lambda: until() or self._closed or self.error is not None, timeout_s
            )
        finally:
            self._waiting -= 1

    def _wait_for_room(self, data: bytes) -> bytes:
        """Wait until ``data`` fits, or not; what of it is still to be put into the buffer."""
        began_at = time.monotonic()
        while not self._unnoted_bytes:
            if self._closed or self.error is not None:
                return b""
            room = self._limit_bytes - len(self._buffer)
            if len(data) <= room:
                return data
            self._buffer += data[:room]
            data = data[room:]
            if self._idle:
                self._wake_writer()
            remaining_s = max(began_at, self._progress_at) + self._stall_s - time.monotonic()
            if remaining_s <= 0:
                break
            self._wait(lambda: len(self._buffer) < self._limit_bytes, remaining_s)
        self._unnoted_bytes += len(data)
        self.dropped_bytes += len(data)
        return b""

    def _after_write(self, taken: int) -> None:
        if taken:
            self._progress_at = time.monotonic()
            del self._buffer[:taken]
        if self._unnoted_bytes and len(self._buffer) <= self._limit_bytes // 2:
            self._buffer += (
                f"\r\n[pyvmm: {self._unnoted_bytes} bytes of console output were dropped]\r\n"
            ).encode()
            self._unnoted_bytes = 0

    def _run(self) -> None:
        poller = poll()
        poller.register(self._fd, POLLOUT)
        while True:
            with self._lock:
                if self._closed:
                    return
                self._idle = not self._buffer
                has_work = not self._idle
            if not has_work:
                self._wake.acquire()
                continue
            if not poller.poll(_CLOSED_POLL_S * 1000):
                continue
            with self._lock:
                part = bytes(self._buffer[:_PIPE_BUF])
                self._in_flight = True
            error = None
            try:
                taken = os.write(self._fd, part)
            except BlockingIOError:
                taken = 0  # somebody has made it non-blocking, and somebody else has filled it
            except OSError as failed:
                taken, error = len(self._buffer), failed
            with self._lock:
                self._in_flight = False
                self.error = error
                if taken and error is None:
                    self.at_line_start = part[taken - 1] == _NEWLINE
                self._after_write(taken)
                has_little = len(self._buffer) < _PIPE_BUF
                if self._waiting:
                    self._progress.notify_all()
            if error is not None:
                return
            if has_little:
                time.sleep(_COLLECT_S)


class Receiver(Protocol):
    """What a reader feeds: see ``pyvmm.devices.serial.Serial16550``."""

    on_room: Callable[[], object]

    def receive(self, data: bytes) -> int:
        """Take what fits, and say how much that is."""
        ...

    def receive_break(self) -> bool:
        """Take a break, if it fits."""
        ...


class ConsoleReader:
    """Reads ``fd`` in a thread of its own, and feeds ``receiver``.

    If ``fd`` is a terminal, Ctrl-A x calls ``on_leave``, once and from that thread; ``notice``
    gets what is to be shown to the user. In the background nothing is read; on coming back to the
    foreground ``terminal`` is set raw. The end of the input is not the end of anything else;
    ``on_end`` is called at it, from the reader's thread.

    ``is_terminal`` says otherwise of an ``fd`` that looks like a terminal and has no user at it,
    as the controlling end of a pty does.
    """

    def __init__(
        self,
        fd: int,
        receiver: Receiver,
        *,
        on_leave: Callable[[], object],
        notice: Callable[[bytes], object],
        terminal: RawTerminal | None = None,
        on_end: Callable[[], object] | None = None,
        is_terminal: bool | None = None,
    ) -> None:
        self._fd = fd
        self._receiver = receiver
        self._on_leave = on_leave
        self._terminal = terminal
        self._on_end = on_end
        self._filter: EscapeFilter | None = None
        if os.isatty(fd) if is_terminal is None else is_terminal:
            self._filter = EscapeFilter(self._leave, receiver.receive_break, lambda: notice(HELP))
        self._pending = bytearray()
        self._stopping = False
        self._wake_lock = threading.Lock()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="console-in", daemon=True)

    def start(self) -> None:
        """Begin to read. Raises HostError if the host has no thread to give."""
        self._receiver.on_room = self._wake
        start_thread(self._thread)

    def close(self, timeout_s: float = 1.0) -> None:
        """End reading. ``fd`` stays open."""
        self._stopping = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        with self._wake_lock:
            if self._wake_fd >= 0 and not self._thread.is_alive():
                os.close(self._wake_fd)
                self._wake_fd = -1

    def _wake(self) -> None:
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _leave(self) -> None:
        self._stopping = True
        self._on_leave()

    def _run(self) -> None:
        import signal

        # Reading a terminal from the background stops the process, unless SIGTTIN is blocked:
        # then the read fails. We do not mean to read there, but may just have been sent there.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTIN})
        wake = poll()
        wake.register(self._wake_fd, POLLIN)
        wake_or_input = poll()
        wake_or_input.register(self._wake_fd, POLLIN)
        wake_or_input.register(self._fd, POLLIN)
        is_terminal = self._filter is not None
        in_background = has_ended = False
        while True:
            self._offer_pending()
            if self._stopping or (has_ended and not self._pending):
                if has_ended and self._on_end is not None:
                    self._on_end()
                return
            was_in_background = in_background
            in_background = is_terminal and is_in_background(self._fd)
            if was_in_background and not in_background and self._terminal is not None:
                self._terminal.apply()
            if in_background:
                ready = wake.poll(_BACKGROUND_POLL_S * 1000)
            elif has_ended or (self._pending and not is_terminal):
                ready = wake.poll()
            else:
                ready = wake_or_input.poll()
            for fd, _ in ready:
                if fd == self._wake_fd:
                    os.eventfd_read(fd)
                else:
                    has_ended = not self._read_input()

    def _offer_pending(self) -> None:
        while self._pending:
            taken = self._receiver.receive(bytes(self._pending[:_READ_BYTES]))
            del self._pending[:taken]
            if not taken:
                return

    def _read_input(self) -> bool:
        """Read what is there. False if there is nothing any more, nor will be."""
        if self._filter is not None and is_in_background(self._fd):
            return True
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return True
        except OSError as error:
            # EIO is a terminal's answer in the background, as well as when it has hung up.
            return error.errno == EIO and is_in_background(self._fd)
        if not data:
            return False
        if self._filter is not None:
            data = self._filter.feed(data)
        self._pending += data[: _TYPED_AHEAD_MAX_BYTES - len(self._pending)]
        return True
