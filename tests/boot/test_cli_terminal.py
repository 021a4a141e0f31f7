"""``pyvmm run`` at a terminal: keys, job control under a real shell, hanging up."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import termios
from collections.abc import Iterator
from typing import Any

import pexpect
import pytest
from builders.cli import COMMAND, WAIT_S

pytestmark = [pytest.mark.boot, pytest.mark.host]

RUN = f"{shlex.join(COMMAND)} run --mem 16M"
PROMPT = "powers off\r\n> "
SHELL_PROMPT = "shell-prompt> "


@pytest.fixture
def shell() -> Iterator[Shell]:
    shell = Shell()
    yield shell
    shell.close()


class Shell:
    """An interactive bash on a terminal of its own, and what it says the terminal's modes are."""

    def __init__(self) -> None:
        self.bash: Any = pexpect.spawn(
            "/bin/bash",
            ["--norc", "--noprofile", "-i"],
            env={**os.environ, "PS1": SHELL_PROMPT, "TERM": "dumb", "HISTFILE": "/dev/null"},
            encoding="utf-8",
            timeout=WAIT_S,
            cwd="/",
            dimensions=(24, 400),
        )
        self.prompted()
        self.modes = self.command("stty -a")

    def send(self, text: str) -> None:
        """Type ``text``."""
        self.bash.send(text)

    def expect(self, text: str) -> str:
        """Wait for ``text``; return what came before it."""
        self.bash.expect_exact(text)
        return str(self.bash.before)

    def prompted(self) -> str:
        """Wait for the shell; return what came before it asked."""
        return self.expect(SHELL_PROMPT)

    def command(self, line: str) -> str:
        """Have the shell run ``line``; return what that prints."""
        self.bash.sendline(line)
        return self.prompted().replace("\r\n", "\n").split("\n", 1)[1]

    def start(self, arguments: str = "") -> None:
        """Start `pyvmm run`, up to the guest's prompt."""
        self.bash.sendline(f"{RUN} {arguments}")
        self.expect(PROMPT)

    def status(self) -> int:
        """The exit status of the last command; the terminal has to be as it was before."""
        status = int(self.command("echo $?"))
        assert self.command("stty -a") == self.modes
        return status

    def pid(self) -> int:
        """The process that has the terminal."""
        return os.tcgetpgrp(self.bash.child_fd)

    def close(self) -> None:
        """Hang up."""
        self.bash.close(force=True)


def is_raw(shell: Shell) -> bool:
    lflag = termios.tcgetattr(shell.bash.child_fd)[3]
    return not lflag & (termios.ICANON | termios.ECHO | termios.ISIG)


def test_ctrl_a_x_leaves(shell: Shell) -> None:
    shell.start()
    assert is_raw(shell)
    shell.send("\x01x")
    assert shell.prompted() == "\r\npyvmm: ended from the terminal\r\n"
    assert shell.status() == 0


def test_ctrl_a_x_leaves_a_guest_that_does_not_listen(shell: Shell) -> None:
    shell.start()
    shell.send("halt-not-quite " * 100 + "\x01x")
    assert "pyvmm: ended from the terminal\r\n" in shell.prompted()
    assert shell.status() == 0


def test_ctrl_c_and_ctrl_z_are_the_guests(shell: Shell) -> None:
    shell.start()
    shell.send("poweroff\x03")  # the guest drops the line
    shell.expect("poweroff\r\n> ")
    shell.send("\x1aexit 3\r")
    assert "pyvmm: the guest exited with 3\r\n" in shell.prompted()
    assert shell.status() == 3


def test_ctrl_a_h_explains_the_keys(shell: Shell) -> None:
    shell.start()
    shell.send("\x01h")
    assert "Ctrl-A x  leave pyvmm" in shell.expect("Ctrl-A h  show this")


def test_last_line_begins_a_line(shell: Shell) -> None:
    shell.start("--timeout 0.5")  # the guest's prompt is there then, and no line's end
    assert shell.prompted() == "\r\npyvmm: timeout: still running after 0.5 s\r\n"
    assert shell.status() == 124


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=lambda n: n.name
)
def test_signal_gives_the_terminal_back(shell: Shell, number: signal.Signals) -> None:
    shell.start()
    os.kill(shell.pid(), number)
    assert shell.prompted() == f"\r\npyvmm: ended by {number.name}\r\n"
    assert shell.status() == 128 + number


def test_error_before_the_start_leaves_the_terminal_alone(shell: Shell) -> None:
    assert shell.command(f"{RUN} --kernel /dev/null").startswith("pyvmm: error: /dev/null: is a")
    assert shell.status() == 2


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGSTOP], ids=lambda n: n.name)
def test_stopped_run_goes_on_in_the_foreground(shell: Shell, number: signal.Signals) -> None:
    shell.start()
    for line in ("one", "two"):
        os.kill(shell.pid(), number)
        assert "Stopped" in shell.prompted()
        assert shell.command("stty -a") == shell.modes
        shell.send("fg\r")
        shell.expect(f"{RUN}\r\n")
        # What is typed now is echoed by the guest alone once the terminal is raw again.
        wait_until_raw(shell)
        shell.send(f"{line}\r")
        assert shell.expect("> ") == f"{line}\r\n{line}\r\n"
    shell.send("exit 7\r")
    shell.prompted()
    assert shell.status() == 7


def test_run_in_the_background_leaves_the_terminal_to_the_shell(shell: Shell) -> None:
    shell.send(f"{RUN} &\r")
    shell.expect("powers off\r\r\n> ")  # the terminal is not raw, and makes CR LF of LF
    assert shell.command("stty -a") == shell.modes
    assert "Running" in shell.command("jobs")
    shell.send("fg\r")
    shell.expect(f"{RUN}\r\n")
    wait_until_raw(shell)
    shell.send("exit 5\r")
    shell.prompted()
    assert shell.status() == 5


def wait_until_raw(shell: Shell) -> None:
    """Without typing: that would be echoed by whoever has the terminal."""
    for _ in range(1000):
        if is_raw(shell):
            return
        # Nothing announces it. To wait for output that does not come passes the time.
        with pytest.raises(pexpect.TIMEOUT):
            shell.bash.expect_exact("\0", timeout=0.01)
    raise AssertionError("the terminal does not become raw")


def test_hang_up_ends_the_run(shell: Shell) -> None:
    shell.start()
    pid = shell.pid()
    pidfd = os.pidfd_open(pid)
    shell.close()
    poller = select.poll()
    poller.register(pidfd)
    assert poller.poll(WAIT_S * 1000), "it goes on without a terminal"
    os.close(pidfd)


def test_standard_input_that_is_a_pipe_leaves_the_terminal_alone(shell: Shell) -> None:
    printed = shell.command(f"echo exit 4 | {RUN}")
    assert re.search(r"\npyvmm: the guest exited with 4\n$", printed)
    assert int(shell.command("echo $?")) == 4
    assert shell.command("stty -a") == shell.modes
