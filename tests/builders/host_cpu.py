"""This machine's processor as an oracle: it executes one instruction of the tests' choosing.

host_cpu.c does it, in a process of its own, in user mode. Its data pages, four from DATA:

    0 and 1   read and write      2   not mapped      3   read-only
"""

from __future__ import annotations

import functools
import struct
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

DATA = 0x2000_0000
CODE = 0x1000_0000
PAGE = 0x1000
UNMAPPED = DATA + 2 * PAGE
READ_ONLY = DATA + 3 * PAGE

_XSAVE_BYTES = 4096
_STATE = struct.Struct(f"<16QQQ{_XSAVE_BYTES}s{3 * PAGE}s")
_REQUEST_HEAD = struct.Struct("<16sQ")
_REPLY_HEAD = struct.Struct("<qQQ")
_COMPONENTS = struct.Struct("<186Q")


class CpuState(NamedTuple):
    """Registers and data pages; the same before and after an instruction."""

    gpr: tuple[int, ...]
    rflags: int
    gs_base: int
    xsave: bytes
    """In the standard format."""
    memory: bytes
    """Pages 0, 1 and 3."""

    def __repr__(self) -> str:
        numbers = " ".join(f"{value:x}" for value in self.gpr)
        return f"<gpr {numbers} rflags {self.rflags:x} xsave header {self.xsave[512:528].hex()}>"


class Executed(NamedTuple):
    """What an instruction did: a new state; or ``vector``, an exception, and the rest is void."""

    vector: int | None
    error_code: int
    cr2: int
    state: CpuState


class HostCpu:
    """The process that executes; a context manager."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            program = Path(directory, "host_cpu")
            source = Path(__file__).with_suffix(".c")
            subprocess.run(["gcc", "-O1", "-no-pie", "-o", program, source], check=True)
            self._process = subprocess.Popen(
                [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            told = _COMPONENTS.unpack(self._read(_COMPONENTS.size))
        self.xcr0 = told[0]
        self.components = {
            number: told[3 * (number - 1) : 3 * number]
            for number in range(2, 63)
            if told[3 * (number - 1) + 1]
        }
        """Of the extended region: CPUID leaf 0xd's offset, size and ECX, by number."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def execute(self, code: bytes, before: CpuState) -> Executed:
        """Execute the one instruction ``code`` in the state ``before``."""
        assert self._process.stdin is not None
        self._process.stdin.write(
            _REQUEST_HEAD.pack(code, len(code))
            + _STATE.pack(*before.gpr, before.rflags, before.gs_base, before.xsave, before.memory)
        )
        self._process.stdin.flush()
        reply = self._read(_REPLY_HEAD.size + _STATE.size)
        vector, error_code, cr2 = _REPLY_HEAD.unpack_from(reply)
        *gpr, rflags, gs_base, xsave, memory = _STATE.unpack_from(reply, _REPLY_HEAD.size)
        state = CpuState(tuple(gpr), rflags, gs_base, xsave, memory)
        return Executed(None if vector < 0 else vector, error_code, cr2, state)

    def _read(self, size_bytes: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size_bytes)
        if len(data) < size_bytes:
            raise RuntimeError("the process that executes instructions has ended")
        return data


@functools.cache
def host_features() -> frozenset[str]:
    """What /proc/cpuinfo says that this processor can."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":")[1].split())
    return frozenset()
