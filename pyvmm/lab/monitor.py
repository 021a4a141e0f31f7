"""Asking QEMU about the machine's processor, over its QMP socket.

Specification: QEMU's docs/interop/qmp-spec; the registers come from the command for people, as
QMP has none of its own for them.
"""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

_QUESTIONS = ("info registers", "info lapic")
_SAMPLES = 3
_BETWEEN_SAMPLES_S = 0.3
_PATIENCE_S = 5


def describe_processor(path: str) -> str:
    """The registers of the processor and of its interrupt controller, a few times in a row.

    Is it somewhere else each time, or stuck? Text for people; if QEMU does not answer, it says so.
    """
    parts = ["\n-- the processor's registers, a few times in a row --\n"]
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PATIENCE_S)
            connection.connect(path)
            with connection.makefile("rw", encoding="utf-8") as monitor:
                monitor.readline()  # the greeting
                _ask(monitor, "qmp_capabilities")
                for _ in range(_SAMPLES):
                    for question in _QUESTIONS:
                        command_line = {"command-line": question}
                        parts.append(_ask(monitor, "human-monitor-command", command_line))
                    time.sleep(_BETWEEN_SAMPLES_S)
    except (OSError, ValueError) as error:
        parts.append(f"QEMU's monitor does not answer: {error}\n")
    return "\n".join(parts)


def _ask(monitor: TextIO, command: str, arguments: dict[str, str] | None = None) -> str:
    """Execute ``command`` and return what it answers, if that is text. Skips events."""
    monitor.write(json.dumps({"execute": command, "arguments": arguments or {}}) + "\n")
    monitor.flush()
    while True:
        answer = json.loads(monitor.readline())
        if "error" in answer:
            return f"{command}: {answer['error']}"
        if "return" in answer:
            return str(answer["return"] or "")
