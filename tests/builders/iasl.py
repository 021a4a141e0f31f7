"""Intel's ACPI compiler and interpreter as oracles (Debian: acpica-tools)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

needs_acpica = pytest.mark.skipif(
    shutil.which("iasl") is None and os.environ.get("CI") != "true",
    reason="iasl is not installed (Debian: acpica-tools)",
)

HEADER_BYTES = 36  # ACPI 6.5, 5.2.6

_CLEAN = "Compilation successful. 0 Errors, 0 Warnings, 0 Remarks"


def compile_source(source: str) -> bytes:
    """The table that ``source`` makes, in ASL or iasl's language of data tables.

    AssertionError if iasl has anything to say about it.
    """
    table, output = _compile(source)
    assert _CLEAN in output, output
    return table


def compile_terms(terms: str) -> bytes:
    """The AML of ASL ``terms`` at the top level, with names as they are written."""
    source = f'DefinitionBlock ("", "SSDT", 2, "PYVMM ", "TEST    ", 1) {{ {terms} }}'
    return _compile(source, "-on")[0][HEADER_BYTES:]


def disassemble(table: bytes) -> str:
    """The source of ``table``. AssertionError if iasl finds it at fault."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "table.dat").write_bytes(table)
        output = _run(["iasl", "-d", "table.dat"], directory)
        assert "Warning" not in output, output
        assert "Error" not in output, output
        return Path(directory, "table.dsl").read_text()


def fields(table: bytes) -> dict[str, list[str]]:
    """The fields of a data table by iasl's names for them, values as iasl prints them."""
    found: dict[str, list[str]] = {}
    for line in disassemble(table).splitlines():
        match = re.match(r"(?:\[.*?\])? +(\S.*?) : (.+)", line)
        if match:
            found.setdefault(match[1], []).append(match[2].strip())
    return found


def execute(table: bytes, commands: list[str]) -> str:
    """What ACPICA's interpreter, which is Linux's, prints at ``commands`` with ``table`` loaded."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "table.aml").write_bytes(table)
        return _run(["acpiexec", "-b", ";".join(commands), "table.aml"], directory)


def _compile(source: str, *options: str) -> tuple[bytes, str]:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "table.dsl").write_text(source)
        output = _run(["iasl", *options, "table.dsl"], directory)
        return Path(directory, "table.aml").read_bytes(), output


def _run(command: list[str], directory: str) -> str:
    result = subprocess.run(
        command,
        cwd=directory,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout
