"""What every command does with a mistake, an interrupt, and a standard output that is no use."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from pyvmm.cli import main as cli_main
from pyvmm.cli.main import main
from pyvmm.cli.messages import complain, tell
from pyvmm.errors import ConfigError, HostError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[object], int]], None]:
    """Gives `pyvmm doctor` another body."""

    def set_body(body: Callable[[object], int]) -> None:
        module = SimpleNamespace(HELP="", configure=lambda parser: None, run=body)
        monkeypatch.setattr(cli_main, "import_module", lambda name: module)

    return set_body


def raising(error: BaseException) -> Callable[[object], int]:
    def body(args: object) -> int:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("a mistake"), 2, "pyvmm: error: a mistake\n"),
        (HostError("no KVM"), 1, "pyvmm: error: no KVM\n"),
        (OSError(24, "Too many open files"), 1, "pyvmm: error: [Errno 24] Too many open files\n"),
        (KeyboardInterrupt(), 130, "pyvmm: ended by SIGINT\n"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_error_becomes_one_line_and_a_status(
    command: Callable[[Callable[[object], int]], None],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    said: str,
) -> None:
    command(raising(error))
    assert main(["doctor"]) == status
    assert capsys.readouterr() == ("", said)


def test_want_of_memory_is_told(
    command: Callable[[Callable[[object], int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(raising(MemoryError()))
    assert main(["doctor"]) == 1
    assert "no more memory" in capsys.readouterr().err


def test_interrupt_while_a_command_is_imported_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_main, "import_module", interrupted)
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "pyvmm: ended by SIGINT\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], "'bogus' is not a pyvmm command; expected one of run, test, explain, "),
        (["run", "bzImage"], "unrecognized arguments: bzImage; `pyvmm run --help` explains"),
        (["run", "--mem"], "argument --mem: expected one argument; `pyvmm run --help` explains"),
        (["run", "--protocol", "x"], r"argument --protocol: invalid choice: 'x' \(choose from"),
        (["run", "--m", "1G"], "unrecognized arguments: --m 1G"),
        (["extract", "bzImage"], "the following arguments are required: -o/--output"),
    ],
)
def test_mistake_in_the_arguments_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.match(f"pyvmm: error: {said}", err)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "--help"], ["--version"]])
def test_what_was_asked_for_goes_to_standard_output(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "pyvmm" in out
    assert err == ""


def test_without_a_command_the_commands_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "  doctor " in capsys.readouterr().out


def test_complaint_about_a_name_with_a_line_break_is_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    complain(ConfigError("a\nb: there is no such file"))
    assert capsys.readouterr().err == "pyvmm: error: a b: there is no such file\n"


def test_closed_standard_error_sends_nothing_to_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as Python has it then
    tell("a message")
    assert capsys.readouterr().out == ""


def test_full_standard_error_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    tell("a message")


def test_standard_output_that_fails_only_when_flushed_is_told(
    command: Callable[[Callable[[object], int]], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def report(args: object) -> int:
        print("a report")
        return 0

    command(report)
    fd = os.open("/dev/full", os.O_WRONLY)
    with io.TextIOWrapper(io.FileIO(fd, "w"), write_through=False) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["doctor"]) == 1
        monkeypatch.undo()
    assert capsys.readouterr().err == "pyvmm: error: [Errno 28] No space left on device\n"
