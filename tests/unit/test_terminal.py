"""The terminal: against pipes that nobody reads, pseudo-terminals, and a job in the background."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from builders.irq import RecordingIrq

from pyvmm.devices.serial import Serial16550
from pyvmm.errors import HostError
from pyvmm.terminal import (
    ConsoleReader,
    ConsoleWriter,
    EscapeFilter,
    RawTerminal,
    guard_standard_fds,
)
from pyvmm.units import KiB

WAIT_S = 10.0


def read_until(fd: int, is_enough: Callable[[bytes], bool]) -> bytes:
    """What comes from ``fd`` until it is enough."""
    data = b""
    deadline = time.monotonic() + WAIT_S
    while not is_enough(data):
        remaining_s = deadline - time.monotonic()
        assert remaining_s > 0, f"only {data[-200:]!r} came in {WAIT_S} s"
        if select.select([fd], [], [], remaining_s)[0]:
            part = os.read(fd, 64 * KiB)
            assert part, f"the end came after {data[-200:]!r}"
            data += part
    return data


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe's read and write ends."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        with suppress(OSError):
            os.close(fd)


@pytest.fixture
def pty() -> Iterator[tuple[int, int]]:
    """A pseudo-terminal's master and slave."""
    ends = os.openpty()
    yield ends
    for fd in ends:
        with suppress(OSError):
            os.close(fd)


# Output.


def test_writer_writes_in_order(pipe: tuple[int, int]) -> None:
    writer = ConsoleWriter(pipe[1])
    lines = [b"line %d\r\n" % number for number in range(5000)]
    reader = threading.Thread(target=lambda: got.append(read_until(pipe[0], ends)))
    got: list[bytes] = []

    def ends(data: bytes) -> bool:
        return data.endswith(b"line 4999\r\n")

    reader.start()
    for line in lines:
        writer.write(line)
    assert writer.close(WAIT_S)
    reader.join(WAIT_S)
    assert got == [b"".join(lines)]
    assert writer.dropped_bytes == 0


def test_writer_shows_the_first_byte_without_being_flushed(pipe: tuple[int, int]) -> None:
    writer = ConsoleWriter(pipe[1])
    writer.write(b"#")
    assert read_until(pipe[0], bool) == b"#"
    writer.write(b" ")
    assert read_until(pipe[0], bool) == b" "
    writer.close(WAIT_S)


def test_writer_that_was_never_used_closes(pipe: tuple[int, int]) -> None:
    assert ConsoleWriter(pipe[1]).close(WAIT_S)


def test_writer_drops_and_says_so_when_nobody_reads(pipe: tuple[int, int]) -> None:
    capacity = fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 4 * KiB)
    writer = ConsoleWriter(pipe[1], limit_bytes=8 * KiB, stall_s=0.05)
    sent = 0
    while not writer.dropped_bytes:
        writer.write(b"x" * 100)
        sent += 100
        assert sent < 100 * KiB, "nothing was dropped"
    writer.write(b"y" * 1000)
    assert writer.dropped_bytes <= 100 + 1000
    dropped = writer.dropped_bytes
    note = b"\r\n[pyvmm: %d bytes of console output were dropped]\r\n" % dropped
    got = read_until(pipe[0], lambda data: note in data)
    assert got == b"x" * (sent + 1000 - dropped) + note
    assert sent + 1000 - dropped <= 8 * KiB + capacity
    writer.write(b"and on it goes")
    assert read_until(pipe[0], lambda data: len(data) == 14) == b"and on it goes"
    assert writer.close(WAIT_S)


def test_writer_holds_its_caller_up_only_once_for_a_stall(pipe: tuple[int, int]) -> None:
    writer = ConsoleWriter(pipe[1], limit_bytes=4 * KiB, stall_s=0.2)
    began_at = time.monotonic()
    for _ in range(200):
        writer.write(bytes(4 * KiB))  # much more than the pipe and the buffer hold, 40 s of stalls
    assert 0.2 <= time.monotonic() - began_at < 10.0
    assert not writer.close(0.0)


def test_writer_loses_nothing_to_a_slow_reader(pipe: tuple[int, int]) -> None:
    writer = ConsoleWriter(pipe[1], limit_bytes=4 * KiB, stall_s=WAIT_S)
    total = 256 * KiB

    def send() -> None:
        for number in range(total // 4):
            writer.write(number.to_bytes(4, "little"))

    sender = threading.Thread(target=send)
    sender.start()
    got = read_until(pipe[0], lambda data: len(data) == total)
    sender.join(WAIT_S)
    assert got == b"".join(number.to_bytes(4, "little") for number in range(total // 4))
    assert (writer.dropped_bytes, writer.close(WAIT_S)) == (0, True)


def test_writer_takes_one_write_larger_than_its_buffer(pipe: tuple[int, int]) -> None:
    writer = ConsoleWriter(pipe[1], limit_bytes=4 * KiB, stall_s=WAIT_S)
    data = bytes(range(256)) * 100
    sender = threading.Thread(target=writer.write, args=(data,))
    sender.start()
    assert read_until(pipe[0], lambda got: len(got) >= len(data)) == data
    sender.join(WAIT_S)
    writer.close(WAIT_S)


@pytest.mark.parametrize(("data", "is_start"), [(b"login:", False), (b"login:\r\n", True)])
def test_writer_knows_whether_a_line_has_begun(
    pipe: tuple[int, int], data: bytes, is_start: bool
) -> None:
    writer = ConsoleWriter(pipe[1])
    assert writer.at_line_start
    writer.write(data)
    assert writer.close(WAIT_S)
    assert writer.at_line_start is is_start


def test_writer_counts_what_it_could_not_get_rid_of(pipe: tuple[int, int]) -> None:
    capacity = fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 4 * KiB)
    writer = ConsoleWriter(pipe[1])
    writer.write(bytes(20 * KiB))
    assert not writer.close(0.2)
    assert writer.dropped_bytes == 20 * KiB - capacity


def test_writer_that_gets_no_thread_says_so_and_closes_at_once(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    writer = ConsoleWriter(pipe[1])
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(HostError, match="can't start new thread"):
        writer.write(b"x")
    assert not writer.close(1000.0)


def test_writer_survives_a_reader_that_went_away(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    writer = ConsoleWriter(pipe[1])
    writer.write(b"into the void")
    assert not writer.flush(WAIT_S)
    assert isinstance(writer.error, BrokenPipeError)
    writer.write(b"again")
    assert not writer.close(WAIT_S)


def test_writer_survives_a_closed_stdout(pipe: tuple[int, int]) -> None:
    os.close(pipe[1])
    writer = ConsoleWriter(pipe[1])
    writer.write(b"into the void")
    assert not writer.close(WAIT_S)
    assert writer.error is not None


def test_writer_survives_a_full_disk() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    writer = ConsoleWriter(fd)
    writer.write(b"x")
    assert not writer.close(WAIT_S)
    assert writer.error is not None
    os.close(fd)


def test_writer_goes_on_when_stdout_was_made_non_blocking(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    writer = ConsoleWriter(pipe[1])
    data = bytes(256 * KiB)
    writer.write(data)
    assert read_until(pipe[0], lambda got: len(got) >= len(data)) == data
    assert writer.close(WAIT_S)


def test_writer_close_lets_a_waiting_caller_go(pipe: tuple[int, int]) -> None:
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 4 * KiB)
    writer = ConsoleWriter(pipe[1], limit_bytes=4 * KiB, stall_s=1000.0)
    writer.write(bytes(8 * KiB))  # half of it is in the pipe, half of it stays in the buffer
    caller = threading.Thread(target=writer.write, args=(bytes(4 * KiB),))
    caller.start()
    assert not writer.close(0.05)
    caller.join(WAIT_S)
    assert not caller.is_alive()


# What is typed.


class Escapes:
    """An EscapeFilter, and what came of it."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.filter = EscapeFilter(
            lambda: self.commands.append("leave"),
            lambda: self.commands.append("break"),
            lambda: self.commands.append("help"),
        )


@pytest.mark.parametrize(
    ("typed", "for_guest", "commands"),
    [
        (b"ls -l\r", b"ls -l\r", []),
        (b"\x01c", b"\x01", []),
        (b"\x01\x01", b"\x01", []),
        (b"\x01e", b"\x01e", []),
        (b"a\x01xb", b"a", ["leave"]),
        (b"a\x01bc", b"ac", ["break"]),
        (b"\x01h\x01?z", b"z", ["help", "help"]),
        (b"\x01cx", b"\x01x", []),
        (b"\x03\x1a\x1c", b"\x03\x1a\x1c", []),
    ],
)
@pytest.mark.parametrize("split", [False, True], ids=["at once", "key by key"])
def test_escape_filter(typed: bytes, for_guest: bytes, commands: list[str], split: bool) -> None:
    escapes = Escapes()
    parts = [bytes((key,)) for key in typed] if split else [typed]
    got = b""
    for part in parts:
        got += escapes.filter.feed(part)
        if "leave" in escapes.commands:
            break
    assert (got, escapes.commands) == (for_guest, commands)


# Input.


class Guest:
    """A guest that reads its serial port by interrupts, in the thread of the test."""

    def __init__(self) -> None:
        self.irq = RecordingIrq()
        self.uart = Serial16550(self.irq, lambda data: None)
        self.got = bytearray()

    def listen(self) -> None:
        self.uart.write(2, 1, 0x81)
        self.uart.write(1, 1, 0x01)

    def read(self, count: int) -> bytes:
        deadline = time.monotonic() + WAIT_S
        while len(self.got) < count:
            assert self.irq.edge.wait(deadline - time.monotonic()), f"only {bytes(self.got)!r} came"
            self.irq.edge.clear()
            while self.uart.read(5, 1) & 0x01:
                self.got.append(self.uart.read(0, 1))
        return bytes(self.got)


class Console:
    """A ConsoleReader between ``fd`` and a guest."""

    def __init__(self, fd: int) -> None:
        self.guest = Guest()
        self.left = threading.Event()
        self.notices: list[bytes] = []
        self.noticed = threading.Event()
        self.reader = ConsoleReader(
            fd, self.guest.uart, on_leave=self.left.set, notice=self._notice
        )

    def _notice(self, text: bytes) -> None:
        self.notices.append(text)
        self.noticed.set()

    def __enter__(self) -> Console:
        self.reader.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.reader.close(WAIT_S)


def test_reader_brings_a_pipe_of_64_kib_whole(pipe: tuple[int, int]) -> None:
    data = os.urandom(64 * KiB)
    writer = threading.Thread(target=lambda: os.write(pipe[1], data))
    writer.start()
    with Console(pipe[0]) as console:
        console.guest.listen()
        assert console.guest.read(len(data)) == data
    writer.join(WAIT_S)


def test_reader_brings_a_paste_of_64_kib_whole(pty: tuple[int, int]) -> None:
    paste = b"abcdefg\r" * (8 * KiB)

    def type_it() -> None:
        left = paste
        while left:
            left = left[os.write(pty[0], left[: 4 * KiB]) :]

    typist = threading.Thread(target=type_it)
    with RawTerminal(pty[1]), Console(pty[1]) as console:
        typist.start()
        console.guest.listen()
        assert console.guest.read(len(paste)) == paste
        typist.join(WAIT_S)


def test_reader_does_not_filter_a_pipe(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"\x01x")
    with Console(pipe[0]) as console:
        console.guest.listen()
        assert console.guest.read(2) == b"\x01x"
        assert not console.left.is_set()


def test_reader_leaves_the_pipe_alone_while_the_guest_does_not_listen(
    pipe: tuple[int, int],
) -> None:
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 4 * KiB)
    os.set_blocking(pipe[1], False)
    with Console(pipe[0]) as console:
        written = 0
        poller = select.poll()
        poller.register(pipe[1], select.POLLOUT)
        while poller.poll(200):
            written += os.write(pipe[1], bytes(4 * KiB))
            assert written <= 64 * KiB, "it is read without end"
        console.guest.listen()
        assert len(console.guest.read(written)) == written


def test_reader_ends_with_its_input_and_the_rest_arrives(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x" * 100)
    os.close(pipe[1])
    with Console(pipe[0]) as console:
        console.guest.listen()
        assert console.guest.read(100) == b"x" * 100
        assert not console.left.is_set()


def test_reader_of_a_closed_stdin_ends(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    with Console(pipe[0]) as console:
        assert not console.left.is_set()


def test_reader_that_was_not_started_closes(pipe: tuple[int, int]) -> None:
    Console(pipe[0]).reader.close(WAIT_S)


def test_reader_room_after_close_is_nothing(pipe: tuple[int, int]) -> None:
    with Console(pipe[0]) as console:
        pass
    console.guest.uart.on_room()


def test_reader_leaves_by_ctrl_a_x(pty: tuple[int, int]) -> None:
    with RawTerminal(pty[1]), Console(pty[1]) as console:
        os.write(pty[0], b"\x01x")
        assert console.left.wait(WAIT_S)


def test_reader_leaves_though_the_guest_has_stopped_to_listen(pty: tuple[int, int]) -> None:
    with RawTerminal(pty[1]), Console(pty[1]) as console:
        os.write(pty[0], b"are you there? " * 100 + b"\x01x")
        assert console.left.wait(WAIT_S)


def test_reader_shows_help(pty: tuple[int, int]) -> None:
    with RawTerminal(pty[1]), Console(pty[1]) as console:
        os.write(pty[0], b"\x01h")
        assert console.noticed.wait(WAIT_S)
    assert b"Ctrl-A x" in console.notices[0]


def test_reader_sends_a_break(pty: tuple[int, int]) -> None:
    with RawTerminal(pty[1]), Console(pty[1]) as console:
        console.guest.listen()
        os.write(pty[0], b"\x01b")
        assert console.guest.irq.edge.wait(WAIT_S)
        assert console.guest.uart.read(5, 1) & 0x11 == 0x11


def test_reader_survives_a_terminal_that_hangs_up(pty: tuple[int, int]) -> None:
    with Console(pty[1]) as console:
        os.close(pty[0])
        console.reader._thread.join(WAIT_S)
        assert not console.reader._thread.is_alive()


# Raw mode.


def test_raw_terminal_passes_every_key_as_typed(pty: tuple[int, int]) -> None:
    with RawTerminal(pty[1]):
        keys = bytes(range(256))
        os.write(pty[0], keys)
        assert read_until(pty[1], lambda data: len(data) == 256) == keys
        assert not select.select([pty[0]], [], [], 0)[0], "there was an echo"


def test_raw_terminal_does_not_touch_output(pty: tuple[int, int]) -> None:
    with RawTerminal(pty[1]):
        os.write(pty[1], b"a\r\nb\n")
        assert read_until(pty[0], lambda data: len(data) >= 5) == b"a\r\nb\n"


def test_raw_terminal_comes_back(pty: tuple[int, int]) -> None:
    before = termios.tcgetattr(pty[1])
    with RawTerminal(pty[1]) as terminal:
        assert termios.tcgetattr(pty[1]) != before
        assert terminal.newline == "\r\n"
    assert termios.tcgetattr(pty[1]) == before
    assert terminal.newline == "\n"


def test_raw_terminal_comes_back_after_an_exception(pty: tuple[int, int]) -> None:
    before = termios.tcgetattr(pty[1])
    with pytest.raises(RuntimeError), RawTerminal(pty[1]):
        raise RuntimeError
    assert termios.tcgetattr(pty[1]) == before


def test_raw_terminal_comes_back_to_what_it_was_at_first(pty: tuple[int, int]) -> None:
    before = termios.tcgetattr(pty[1])
    with RawTerminal(pty[1]) as terminal:
        terminal.apply()
        terminal.restore()
        assert termios.tcgetattr(pty[1]) == before
        terminal.restore()
    assert termios.tcgetattr(pty[1]) == before


def test_raw_terminal_is_nothing_on_a_pipe(pipe: tuple[int, int]) -> None:
    with RawTerminal(pipe[0]) as terminal:
        assert terminal.newline == "\n"


def test_raw_terminal_survives_a_terminal_that_hangs_up(pty: tuple[int, int]) -> None:
    with RawTerminal(pty[1]):
        os.close(pty[0])


@contextmanager
def running_on_terminal(script: str, pty: tuple[int, int]) -> Iterator[subprocess.Popen[bytes]]:
    """A session of its own, with the pseudo-terminal as its terminal, that runs ``script``."""
    takes_terminal = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", takes_terminal + script],
        stdin=pty[1],
        stdout=pty[1],
        stderr=pty[1],
        start_new_session=True,
        # With it a print is several writes, and those of two processes mix.
        env={name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(WAIT_S)


def test_raw_terminal_comes_back_when_nobody_leaves_the_context(pty: tuple[int, int]) -> None:
    before = termios.tcgetattr(pty[1])
    script = "import sys; from pyvmm.terminal import RawTerminal; RawTerminal(0).apply()\n"
    script += "print('raw', flush=True); sys.stdin.read(1)"
    with running_on_terminal(script, pty) as process:
        read_until(pty[0], lambda data: b"raw" in data)
        assert termios.tcgetattr(pty[1]) != before
        os.write(pty[0], b"q")
        assert process.wait(WAIT_S) == 0
    assert termios.tcgetattr(pty[1]) == before


BACKGROUND_SCRIPT = """
import os, signal, sys, termios, threading
from pyvmm.terminal import ConsoleReader, RawTerminal

class Receiver:
    def receive(self, data):
        print("guest got", data, flush=True)
        return len(data)
    def receive_break(self):
        return True

child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    before = termios.tcgetattr(0)
    with RawTerminal(0) as terminal:
        print("untouched", termios.tcgetattr(0) == before, flush=True)
        left = threading.Event()
        reader = ConsoleReader(
            0, Receiver(), on_leave=left.set, notice=print, terminal=terminal
        )
        reader.start()
        print("background ready", flush=True)
        left.wait()
        reader.close()
    os._exit(7)
line = sys.stdin.readline().strip()
print("shell got", line, "child", os.waitpid(child, os.WNOHANG | os.WUNTRACED), flush=True)
os.tcsetpgrp(0, child)
print("ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_reader_in_the_background_leaves_the_terminal_to_the_shell(pty: tuple[int, int]) -> None:
    with running_on_terminal(BACKGROUND_SCRIPT, pty) as process:
        shown = read_until(pty[0], lambda data: b"background ready" in data)
        assert b"untouched True" in shown
        os.write(pty[0], b"jobs\n")
        shown = read_until(pty[0], lambda data: b")" in data)
        assert b"shell got jobs child (0, 0)" in shown, "it was stopped"
        os.write(pty[0], b"z")  # without a newline: only raw mode brings it through
        read_until(pty[0], lambda data: b"guest got b'z'" in data)
        os.write(pty[0], b"\x01x")
        read_until(pty[0], lambda data: b"ended with 7" in data)
        assert process.wait(WAIT_S) == 0


# Closed standard files.


def test_guard_standard_fds_opens_what_is_closed() -> None:
    script = (
        "import os; os.close(1); from pyvmm.terminal import guard_standard_fds\n"
        "guard_standard_fds(); os.write(2, os.readlink('/proc/self/fd/1').encode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, check=True, timeout=WAIT_S
    )
    assert done.stderr == b"/dev/null"


def test_guard_standard_fds_leaves_open_ones_alone() -> None:
    before = [os.fstat(fd).st_ino for fd in (0, 1, 2)]
    guard_standard_fds()
    assert [os.fstat(fd).st_ino for fd in (0, 1, 2)] == before
