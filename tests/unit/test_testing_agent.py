"""The agent, both ends: agent.sh run by this host's shell, with a pseudo-terminal as its port."""

from __future__ import annotations

import os
import pty
import random
import subprocess
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvmm import testing
from pyvmm.console import Console, SerialInput
from pyvmm.testing.agent import PART_BYTES, Agent, Completed
from pyvmm.testing.outcomes import CommandFailed, VmmError

AGENT = Path(testing.__file__).with_name("agent.sh")


class Port:
    """The serial port between the two: a pseudo-terminal, with the console's end as a Console."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        self.path = os.ttyname(slave)
        self._slave = slave
        self.console = Console(SerialInput())
        # What is typed goes straight to the terminal, which holds up the writer when it is full.
        self.console.write = self._write  # type: ignore[method-assign]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._master, data) :]

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 65536):
                self.console.take(data)
        except OSError:
            pass
        self.console.end()

    def close(self) -> None:
        os.close(self._slave)
        self._reader.join(10)
        os.close(self._master)


def wait(port: Console, waiting_for: str, deadline: float | None) -> bytes:
    data = port.read(20)
    assert data, f"nothing has come of {waiting_for}"
    return data


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    yield port
    port.close()


@pytest.fixture
def agent(port: Port) -> Iterator[Agent]:
    process = subprocess.Popen(
        ["sh", str(AGENT), port.path], stdin=subprocess.DEVNULL, start_new_session=True
    )
    yield Agent(port.console, wait)
    process.kill()
    process.wait()


def test_command_has_status_and_both_outputs(agent: Agent) -> None:
    done = agent.run("echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


def test_commands_one_after_the_other(agent: Agent) -> None:
    assert [agent.run(f"echo {number}").output for number in range(5)] == list("01234")


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 200_000])
def test_input_and_output_of_any_size_and_bytes(agent: Agent, size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert agent.run("cat", stdin=data).stdout == data


def test_every_byte_passes(agent: Agent) -> None:
    data = bytes(range(256)) * 3
    done = agent.run("cat; cat >&2 </dev/null", stdin=data)
    assert done.stdout == data


def test_long_command(agent: Agent) -> None:
    text = "x" * 100_000
    assert agent.run(f"printf %s {text} | wc -c").output.strip() == "100000"


def test_command_reads_its_input_and_not_the_port(agent: Agent) -> None:
    assert agent.run("cat").stdout == b""
    assert agent.run('read -r line; echo "<$line>"', stdin=b"one\ntwo\n").output == "<one>"
    assert agent.run("echo still there").output == "still there"


def test_environment_and_directory(agent: Agent, tmp_path: Path) -> None:
    done = agent.run('pwd; printf %s "$A"', env={"A": "it's\n$HOME"}, cwd=str(tmp_path))
    assert done.stdout.decode() == f"{tmp_path}\nit's\n$HOME"


def test_directory_that_is_not_there(agent: Agent) -> None:
    assert agent.run("echo no", cwd="/no/such").returncode == 127


def test_command_killed_by_a_signal(agent: Agent) -> None:
    assert agent.run("kill -9 $$").returncode == 128 + 9


def test_command_that_takes_too_long_is_killed(agent: Agent) -> None:
    done = agent.run("echo begun; sleep 1000 & sleep 1000", timeout_s=1)
    assert (done.timed_out, done.returncode, done.stdout) == (True, 137, b"begun\n")
    with pytest.raises(CommandFailed, match="did not end in time"):
        done.check()


def test_what_a_command_leaves_running_does_not_mix_in(agent: Agent) -> None:
    agent.run("(sleep 0.2; echo late) & echo now")
    assert agent.run("sleep 0.5; echo next").stdout == b"next\n"


def test_wrong_version_is_told(port: Port) -> None:
    port.console.take(b"noise\nready 2\n")
    with pytest.raises(VmmError, match="speaks version 2 of its protocol; expected 1"):
        Agent(port.console, wait).run("true")


def test_check_tells_the_last_line_of_errors() -> None:
    with pytest.raises(CommandFailed, match="'x' ended with 2: second"):
        Completed("x", 2, b"", b"first\nsecond\n").check()
    assert Completed("x", 0, b"text\n", b"").check().output == "text"
