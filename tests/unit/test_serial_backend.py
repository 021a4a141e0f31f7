"""What a guest's serial port can be connected to."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError
from pyvmm.serial_backend import Pty, SerialBackend, Stdio, open_backend
from pyvmm.terminal import RawTerminal


class Port:
    """A UART's receiving end, which takes all."""

    def __init__(self) -> None:
        self.on_room: Callable[[], object] = lambda: None
        self._news = threading.Condition()
        self._taken = b""

    def receive(self, data: bytes) -> int:
        with self._news:
            self._taken += data
            self._news.notify_all()
        return len(data)

    def receive_break(self) -> bool:
        return True

    def wait_for(self, data: bytes) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self._taken == data, 10), self._taken


class FakeReader:
    """A ConsoleReader that leaves this process's stdin alone."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass


def backend(text: str) -> SerialBackend:
    opened = open_backend(text, on_leave=lambda: None)
    assert opened is not None
    return opened


def test_file_gets_the_output_added(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    file = backend(f"file:{path}")
    file.start(Port())
    file.write(b"one ")
    file.write(b"two")
    file.close()
    assert path.read_bytes() == b"before\none two"
    assert file.notes == []


def test_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*: Is a directory; expected the path"):
        backend(f"file:{tmp_path}")


def test_pty_goes_both_ways() -> None:
    pty, port = backend("pty"), Port()
    assert isinstance(pty, Pty)
    pty.start(port)
    far = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)
    pty.write(b"login: ")
    assert os.read(far, 100) == b"login: "
    os.write(far, b"root\r\x01x")  # Ctrl-A x means nothing here
    port.wait_for(b"root\r\x01x")
    os.close(far)
    pty.close()


def test_socket_serves_one_client_after_the_other(tmp_path: Path) -> None:
    path = str(tmp_path / "console")
    server, port = backend(f"socket:{path}"), Port()
    server.start(port)
    seen = b""
    for number in (b"1", b"2"):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(path)
            client.sendall(number)
            seen += number
            port.wait_for(seen)
            server.write(b"hello " + number)
            assert client.recv(100) == b"hello " + number
    server.close()
    assert not os.path.exists(path)


def test_socket_without_a_client_takes_output_all_the_same(tmp_path: Path) -> None:
    server = backend(f"socket:{tmp_path / 'console'}")
    server.start(Port())
    server.write(b"nobody listens")
    server.close()


def test_socket_that_is_there_already_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="cannot listen on the socket"):
        backend(f"socket:{path}")
    assert path.read_bytes() == b"precious"


def test_socket_that_somebody_has_removed_is_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "console"
    server = backend(f"socket:{path}")
    server.start(Port())
    path.unlink()
    server.close()


def test_stdio_that_is_closed_leaves_the_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[RawTerminal] = []
    monkeypatch.setattr(RawTerminal, "apply", lambda terminal: applied.append(terminal))
    monkeypatch.setattr("pyvmm.serial_backend.ConsoleReader", FakeReader)
    stdio = Stdio(on_leave=lambda: None)
    stdio.foreground()
    assert len(applied) == 0
    stdio.start(Port())
    stdio.foreground()
    assert len(applied) == 2
    stdio.close()
    stdio.foreground()
    assert len(applied) == 2


def test_none_is_no_backend() -> None:
    assert open_backend("none", on_leave=lambda: None) is None


@pytest.mark.parametrize("text", ["", "file", "file:", "socket:", "pty:x", "stdio:", "tcp:1"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected stdio, file:PATH, pty, socket:PATH or none"):
        open_backend(text, on_leave=lambda: None)
