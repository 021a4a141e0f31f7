"""tests/guests/user_mode: a static program that checks what user mode may rely on."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCES = Path(__file__).parents[1] / "guests" / "user_mode"
_WARNINGS = ("-Wall", "-Wextra", "-Werror")

RUN_S = 110
"""It takes a second, and more only where other programs have the processor."""


def build_user_mode(directory: Path) -> Path:
    """The program, in ``directory``."""
    program = directory / "user_mode"
    sources = sorted(path for path in _SOURCES.iterdir() if path.suffix in (".c", ".S"))
    options = ["-std=gnu11", "-O2", *_WARNINGS, "-static", "-no-pie", "-pthread", "-s"]
    subprocess.run(["gcc", *options, "-o", program, *sources], check=True)
    return program


def run_here(program: Path) -> subprocess.CompletedProcess[str]:
    """What the program says on this machine's own processor and kernel."""
    return subprocess.run([program], capture_output=True, text=True, timeout=RUN_S)
