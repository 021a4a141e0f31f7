"""The installed ``pyvmm`` command, run as a user runs it: another process, from another directory.

result = pyvmm("run", "--timeout", "1")
with running("run", "--kernel", path) as process:
    process.wait_for(b"> ")
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

WAIT_S = 30.0

# -P: not what lies in the working directory. What is to be tested is what is installed.
COMMAND = (sys.executable, "-P", "-m", "pyvmm")

# The end of what the embedded kernel says before it takes commands.
PROMPT = b"powers off\r\n> "


def pyvmm(
    *arguments: str | os.PathLike[str], typed: bytes = b"", **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end, with ``typed`` on its standard input."""
    if "stdout" not in options:
        options["stdout"] = subprocess.PIPE
    return subprocess.run(
        [*COMMAND, *arguments],
        input=typed,
        stderr=subprocess.PIPE,
        timeout=WAIT_S,
        cwd="/",
        check=False,
        **options,
    )


def complaint(result: subprocess.CompletedProcess[bytes]) -> str:
    """The one line that it ended with and that is all it said, without what each begins with."""
    said = result.stderr.decode()
    prefix = "pyvmm: error: "
    assert said.startswith(prefix), said
    assert said.endswith("\n"), said
    assert said.count("\n") == 1, said
    return said[len(prefix) : -1]


def last_line(result: subprocess.CompletedProcess[bytes]) -> str:
    """The last line that it said: how a run ended."""
    return result.stderr.decode().splitlines()[-1]


class Running:
    """A process that goes on while the test looks at what it prints."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.output = b""

    def wait_for(self, text: bytes, limit_s: float = WAIT_S) -> None:
        """Wait until it has printed ``text``."""
        deadline = time.monotonic() + limit_s
        stdout = _pipe(self.process.stdout)
        while text not in self.output:
            remaining_s = deadline - time.monotonic()
            assert remaining_s > 0, f"no {text!r} in {self.output!r}"
            if select.select([stdout], [], [], remaining_s)[0]:
                part = os.read(stdout.fileno(), 4096)
                assert part, f"it ended without {text!r}: {self.output!r}"
                self.output += part

    def type(self, text: bytes) -> None:
        """Send ``text`` to its standard input, which must be a pipe."""
        os.write(_pipe(self.process.stdin).fileno(), text)

    def end(self, limit_s: float = WAIT_S) -> tuple[int, str]:
        """Wait for its end: its exit status, and what it said on standard error."""
        errors = self.process.communicate(timeout=limit_s)[1]
        return self.process.returncode, errors.decode()


@contextmanager
def running(*arguments: str | os.PathLike[str], **options: Any) -> Iterator[Running]:
    """Start it; it is killed on the way out if it has not ended by itself."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **options}
    process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, cwd="/", **options)
    with process:
        try:
            yield Running(process)
        finally:
            process.kill()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
