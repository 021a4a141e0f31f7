"""What a serial port of the guest is connected to: ``--serial stdio|file:|pty|socket:|none``.

A backend takes the guest's bytes by ``write`` and, once ``start`` has given it the port, feeds it
what comes from its other side. Each has threads of its own (terminal.py), so a slow reader holds up
neither the guest nor another port.
"""

from __future__ import annotations

import os
import threading
from errno import EPIPE
from typing import TYPE_CHECKING, Protocol

from pyvmm.errors import ConfigError
from pyvmm.loader.files import cannot_write
from pyvmm.terminal import ConsoleReader, ConsoleWriter, RawTerminal
from pyvmm.threads import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.terminal import Receiver

# How long a reader may take for the last bytes once the guest has ended.
_FLUSH_PATIENCE_S = 2.0
# How long one may take until a message of ours goes to the same terminal.
_MESSAGE_PATIENCE_S = 0.2


class SerialBackend(Protocol):
    """The other side of a serial port."""

    def write(self, data: bytes) -> None:
        """Take what the guest sends; from a vCPU's thread."""
        ...

    def start(self, port: Receiver) -> None:
        """Feed ``port`` from now on."""
        ...

    def close(self) -> None:
        """Let the last bytes out, then end."""
        ...

    @property
    def notes(self) -> list[str]:
        """What the user should know: where it is before the start, what went wrong after."""
        ...


class Stdio:
    """The process's own stdin and stdout; a terminal is made raw between start and close."""

    def __init__(self, on_leave: Callable[[], object]) -> None:
        self._on_leave = on_leave
        self._writer = ConsoleWriter(1)
        self._terminal = RawTerminal(0)
        self._reader: ConsoleReader | None = None

    def write(self, data: bytes) -> None:
        """Take what the guest sends."""
        self._writer.write(data)

    def start(self, port: Receiver) -> None:
        """Make the terminal raw, and read it."""
        self._terminal.apply()
        self._reader = ConsoleReader(
            0, port, on_leave=self._on_leave, notice=self._writer.write, terminal=self._terminal
        )
        self._reader.start()

    def flush(self) -> None:
        """Wait a moment for what was sent to be out, so that a message stands behind it."""
        self._writer.flush(_MESSAGE_PATIENCE_S)

    def foreground(self) -> None:
        """The process goes on after a stop: the shell has left the terminal in modes of its own."""
        if self._reader is not None:
            self._terminal.apply()

    def close(self) -> None:
        """Let the last bytes out, and give the terminal back."""
        reader, self._reader = self._reader, None  # from now on ``foreground`` does nothing
        if reader is not None:
            reader.close()
        self._writer.close(_FLUSH_PATIENCE_S)
        self._terminal.restore()

    @property
    def is_mid_line(self) -> bool:
        """Whether a message on the terminal would begin in the middle of a line of the guest's."""
        return not self._writer.at_line_start and os.isatty(1) and os.isatty(2)

    @property
    def notes(self) -> list[str]:
        """What was lost."""
        return _lost("standard output", self._writer)


class File:
    """A file that the guest's output is added to."""

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from error
        self._path = path
        self._writer = ConsoleWriter(self._fd)

    def write(self, data: bytes) -> None:
        """Take what the guest sends."""
        self._writer.write(data)

    def start(self, port: Receiver) -> None:
        """A file has nothing to say."""

    def close(self) -> None:
        """Let the last bytes out."""
        self._writer.close(_FLUSH_PATIENCE_S)
        os.close(self._fd)

    @property
    def notes(self) -> list[str]:
        """What was lost."""
        return _lost(self._path, self._writer)


class Pty:
    """A pseudo-terminal, for ``screen`` or ``minicom`` to attach to."""

    def __init__(self) -> None:
        import tty

        # The far end stays open here, too: otherwise it hangs up when the first user leaves.
        self._fd, self._far_fd = os.openpty()
        tty.setraw(self._far_fd)
        self.path = os.ttyname(self._far_fd)
        self._writer = ConsoleWriter(self._fd, stall_s=0.0)
        self._reader: ConsoleReader | None = None

    def write(self, data: bytes) -> None:
        """Take what the guest sends. If nobody reads, it is dropped when the buffer is full."""
        self._writer.write(data)

    def start(self, port: Receiver) -> None:
        """Read what is typed at the far end."""
        self._reader = ConsoleReader(
            self._fd, port, on_leave=_nothing, notice=_ignore, is_terminal=False
        )
        self._reader.start()

    def close(self) -> None:
        """Hang up."""
        if self._reader is not None:
            self._reader.close()
        self._writer.close(0.0)
        os.close(self._far_fd)
        os.close(self._fd)

    @property
    def notes(self) -> list[str]:
        """Where it is."""
        return [f"serial port on {self.path}"]


class Socket:
    """A Unix socket that one client at a time may connect to. Without one, output goes nowhere."""

    def __init__(self, path: str) -> None:
        import socket  # 2 ms that a console on stdio does not need

        self._path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(path)
            self._listener.listen(1)
        except OSError as error:
            self._listener.close()
            raise ConfigError(
                f"cannot listen on the socket {path}: {error.strerror or error}; "
                "name a path that does not exist, in a directory that does"
            ) from error
        self._shut_both_ways = socket.SHUT_RDWR
        self._writer: ConsoleWriter | None = None
        self._client_left = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def write(self, data: bytes) -> None:
        """Take what the guest sends."""
        writer = self._writer
        if writer is not None:
            writer.write(data)

    def start(self, port: Receiver) -> None:
        """Wait for clients."""
        self._thread = threading.Thread(
            target=self._serve, args=[port], name="serial-socket", daemon=True
        )
        start_thread(self._thread)

    def close(self) -> None:
        """Hang up, and take the socket away."""
        self._closed = True
        writer = self._writer
        if writer is not None:
            writer.flush(_FLUSH_PATIENCE_S)
        self._client_left.set()
        self._listener.shutdown(self._shut_both_ways)  # wakes up accept()
        if self._thread is not None:
            self._thread.join()
        self._listener.close()
        try:
            os.unlink(self._path)
        except OSError:
            pass  # somebody was quicker

    @property
    def notes(self) -> list[str]:
        """Where it is."""
        return [f"serial port on socket {self._path}"]

    def _serve(self, port: Receiver) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                self._client_left.clear()
                if self._closed:
                    return
                reader = ConsoleReader(
                    client.fileno(), port, on_leave=_nothing, notice=_ignore,
                    on_end=self._client_left.set,
                )  # fmt: skip
                self._writer = ConsoleWriter(client.fileno())
                reader.start()
                self._client_left.wait()
                writer, self._writer = self._writer, None
                reader.close()
                writer.close(0.0)


def open_backend(text: str, on_leave: Callable[[], object]) -> SerialBackend | None:
    """What ``text`` names: ``stdio``, ``file:PATH``, ``pty``, ``socket:PATH``; None for ``none``.

    Raises ConfigError if it names none of them, or nothing that can be had; HostError if this host
    cannot write there.
    """
    kind, colon, path = text.partition(":")
    if kind in ("file", "socket") and path:
        return File(path) if kind == "file" else Socket(path)
    if kind in ("stdio", "pty", "none") and not colon:
        if kind == "stdio":
            return Stdio(on_leave)
        return Pty() if kind == "pty" else None
    raise ConfigError(
        f"{text!r} is nothing that a serial port can be connected to; "
        "expected stdio, file:PATH, pty, socket:PATH or none"
    )


def _lost(where: str, writer: ConsoleWriter) -> list[str]:
    notes = []
    if writer.dropped_bytes:
        notes.append(f"{writer.dropped_bytes} bytes of console output were not read, and lost")
    if writer.error is not None and writer.error.errno != EPIPE:  # `| head` is no accident
        notes.append(f"console output was lost: {where}: {writer.error.strerror}")
    return notes


def _nothing() -> None:
    """There is nobody who could leave."""


def _ignore(text: bytes) -> None:
    """There is nobody to be told."""
