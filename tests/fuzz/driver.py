"""A process that fuzzes one parser: `driver.py MODULE TARGET [libFuzzer's options and inputs]`.

Atheris counts the branches that pyvmm's byte code takes and the values that it compares, and
libFuzzer makes inputs from that. What is imported in the course of it is instrumented as well.
"""

from __future__ import annotations

import importlib
import os
import sys

import atheris


class BrokenContractError(Exception):
    """The parser raised an error of ours, and not one that it should."""


def main() -> None:
    """Fuzz until an option or a fault ends it; the exit status is libFuzzer's, 0 if all is well."""
    # libFuzzer's limit of memory is one of ru_maxrss, which a process has from the one that started
    # it (exec keeps it, and a vfork before it shares the memory); in a fork it begins anew.
    child = os.fork()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    program, module_name, name, *options = sys.argv
    # The directory tests, instead of this script's own.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(program)))
    with atheris.instrument_imports(include=["pyvmm"]):
        from pyvmm.errors import PyvmmError

        run = importlib.import_module(module_name).TARGETS[name].run

        def run_one(data: bytes) -> None:
            try:
                run(data)
            except PyvmmError as error:
                message = str(error)
                if error.exit_status != 2:
                    raise BrokenContractError("the machine is blamed, not the bytes") from error
                if not message or "\n" in message:
                    raise BrokenContractError("the message is not of one line") from error

        atheris.Setup([program, *options], run_one)
        atheris.Fuzz()


main()
