"""The entry point: finds the subcommand, runs it, turns errors into one line and a status.

A subcommand is a module with three things: ``HELP`` (a line), ``configure(parser)`` (its options)
and ``run(args) -> int`` (the exit status). With ``TAKES_COMMAND`` it gets what stands behind ``--``
as ``args.command``, a list, or None. Only the one that is asked for is imported: what
``pyvmm run`` does not need does not delay a boot.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from pyvmm.cli.messages import complain, tell
from pyvmm.errors import ConfigError, PyvmmError

if TYPE_CHECKING:
    from argparse import HelpFormatter
    from typing import NoReturn

SUBCOMMANDS = ("run", "test", "explain", "doctor", "fetch", "initramfs", "extract")

STATUS_FAILURE = 1
STATUS_USAGE = 2
STATUS_INTERRUPTED = 130  # 128 + SIGINT, as a shell says it


def main(argv: list[str] | None = None) -> int:
    """Run ``pyvmm`` with ``argv`` (default: the process's) and return the exit status."""
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where it can still be told if that fails
    except PyvmmError as error:
        complain(error)
        status = error.exit_status
    except KeyboardInterrupt:
        tell("pyvmm: ended by SIGINT")
        status = STATUS_INTERRUPTED
    except BrokenPipeError:  # who read our standard output has left, and needs to be told nothing
        status = STATUS_FAILURE
    except OSError as error:
        complain(error)
        status = STATUS_FAILURE
    except MemoryError:
        complain("this process got no more memory; raise its limit (ulimit -v), or free some")
        status = STATUS_FAILURE
    if status:
        _leave_nothing_to_flush()
    return status


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else STATUS_USAGE
    if arguments[0] == "--version":
        print(f"pyvmm {_version()}")
        return 0
    name = arguments[0]
    if name not in SUBCOMMANDS:
        raise ConfigError(
            f"{name!r} is not a pyvmm command; expected one of {', '.join(SUBCOMMANDS)} "
            "(`pyvmm --help` explains them)"
        )
    return _run_subcommand(name, arguments[1:])


def _run_subcommand(name: str, arguments: list[str]) -> int:
    from argparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"{message}; `{self.prog} --help` explains the options")

    # What is imported stays. The garbage collector is not to look through it, neither meanwhile
    # (2 ms of the 50 until a kernel is opened) nor at the end (5 ms).
    gc.disable()
    module = import_module(f"pyvmm.cli.{name}")
    gc.freeze()
    gc.enable()
    command = None
    if getattr(module, "TAKES_COMMAND", False) and "--" in arguments:
        at = arguments.index("--")
        arguments, command = arguments[:at], arguments[at + 1 :]
        if not command:
            raise ConfigError("nothing stands behind --; expected a command for the guest")
    parser = Parser(
        prog=f"pyvmm {name}",
        description=module.HELP,
        formatter_class=_help_formatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    try:
        args = parser.parse_args(arguments)
        args.command = command
    except SystemExit:  # after --help
        return 0
    status: int = module.run(args)
    return status


def _leave_nothing_to_flush() -> None:
    """Empty standard output's buffer: Python does so when it exits, and complains if it cannot."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help_formatter(prog: str) -> HelpFormatter:
    """argparse's own, told the width: to find it out, argparse imports shutil, which takes 4 ms.

    It makes a formatter for each option, help wanted or not.
    """
    import os
    from argparse import RawDescriptionHelpFormatter

    try:
        columns = os.get_terminal_size().columns
    except OSError:
        columns = 80
    return RawDescriptionHelpFormatter(prog, width=columns - 2)


def _overview() -> str:
    lines = ["usage: pyvmm COMMAND [OPTION]...", "", "Boot Linux kernels in a KVM micro-VM.", ""]
    lines += [f"  {name:<10} {import_module(f'pyvmm.cli.{name}').HELP}" for name in SUBCOMMANDS]
    lines += [
        "",
        "`pyvmm COMMAND --help` tells a command's options; `pyvmm --version` the version.",
    ]
    return "\n".join(lines)


def _version() -> str:
    from importlib.metadata import version

    return version("pyvmm")
