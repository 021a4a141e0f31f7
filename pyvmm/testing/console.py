"""The guest's console as pexpect users know it: pexpect's own spawn class over a Console.

What comes is made into text on the way (text.py), so patterns match what a person would see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pexpect
from pexpect.spawnbase import SpawnBase

from pyvmm.testing.text import TextFilter

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.console import Console


class ConsoleSpawn(SpawnBase):  # type: ignore[misc]
    """``expect``, ``before``, ``after``, ``match``, ``sendline`` ... of pexpect, for a guest.

    Nothing that the guest has sent is missed: matching begins with its first byte.
    """

    def __init__(
        self,
        console: Console,
        timeout_s: float,
        read: Callable[[float | None], bytes] | None = None,
    ) -> None:
        """``read`` replaces ``console.read``, to look after the guest meanwhile."""
        super().__init__(timeout=timeout_s, encoding="utf-8", codec_errors="replace")
        self._guest = console
        self._read = read or console.read
        self._filter = TextFilter()
        self.linesep = "\n"

    def read_nonblocking(self, size: int = 1, timeout: float | None = None) -> str:
        """What has come; for pexpect. Raises its TIMEOUT or EOF."""
        while True:
            data = self._read(timeout)
            if data:
                text = self._filter.feed(data)
                if text:
                    self._log(text, "read")
                    return text
                continue
            if self._guest.ended:
                self.flag_eof = True
                raise pexpect.EOF("the guest has ended")
            raise pexpect.TIMEOUT("nothing has come")

    def send(self, text: str) -> int:
        """Type ``text``, as it is."""
        data = text.encode()
        self._log(text, "send")
        self._guest.write(data)
        return len(data)

    def sendline(self, text: str = "") -> int:
        """Type ``text`` and the enter key."""
        return self.send(text + self.linesep)

    def sendcontrol(self, letter: str) -> int:
        """Type a control character: ``sendcontrol("c")`` is Ctrl-C."""
        return self.send(chr(ord(letter.upper()) & 0x1F))

    def isalive(self) -> bool:
        """Whether the guest may still say something."""
        return not self._guest.ended
