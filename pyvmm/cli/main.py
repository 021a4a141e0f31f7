"""The entry point: finds the subcommand, runs it, turns errors into one line and a status.

A subcommand is a module with three things: ``HELP`` (a line), ``configure(parser)`` (its options)
and ``run(args) -> int`` (the exit status). Only the one that is asked for is imported: what
``pyvmm run`` does not need does not delay a boot.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from pyvmm.errors import PyvmmError

if TYPE_CHECKING:
    from argparse import HelpFormatter

SUBCOMMANDS = ("run", "doctor", "fetch", "initramfs", "extract")

STATUS_FAILURE = 1
STATUS_USAGE = 2


def main(argv: list[str] | None = None) -> int:
    """Run ``pyvmm`` with ``argv`` (default: the process's) and return the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else STATUS_USAGE
    if arguments[0] == "--version":
        print(f"pyvmm {_version()}")
        return 0
    name = arguments[0]
    if name not in SUBCOMMANDS:
        print(
            f"pyvmm: error: {name!r} is not a pyvmm command; expected one of "
            f"{', '.join(SUBCOMMANDS)} (`pyvmm --help` explains them)",
            file=sys.stderr,
        )
        return STATUS_USAGE
    return _run_subcommand(name, arguments[1:])


def _run_subcommand(name: str, arguments: list[str]) -> int:
    from argparse import ArgumentParser

    module = import_module(f"pyvmm.cli.{name}")
    parser = ArgumentParser(
        prog=f"pyvmm {name}",
        description=module.HELP,
        formatter_class=_help_formatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    try:
        status: int = module.run(parser.parse_args(arguments))
    except PyvmmError as error:
        print(f"pyvmm: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as a shell says it
    except BrokenPipeError:
        # Who read our standard output has left. Nothing is lost, nobody is there to be told.
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_FAILURE
    except OSError as error:
        print(f"pyvmm: error: {error}", file=sys.stderr)
        return STATUS_FAILURE
    return status


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
