"""A terminal's bytes as text: UTF-8, sequences taken out, line ends a single newline."""

from __future__ import annotations

import codecs
import re

# ECMA-48: CSI with parameters, intermediate and final byte; OSC up to BEL or ST; two-byte ones.
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_=>78])")
# The beginning of one, that more may follow to.
_UNFINISHED = re.compile(r"(?:\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?)?|\r)\Z")
_LONGEST_SEQUENCE = 256


class TextFilter:
    """Bytes of a terminal in, plain text out; what is cut apart is put together again."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """The text of ``data``, as far as it is complete."""
        text = self._held + self._decoder.decode(data, final)
        self._held = ""
        unfinished = None if final else _UNFINISHED.search(text)
        if unfinished and len(unfinished[0]) < _LONGEST_SEQUENCE:
            self._held = unfinished[0]
            text = text[: unfinished.start()]
        return re.sub(r"\r+\n", "\n", _SEQUENCE.sub("", text)).replace("\r", "")


def plain_text(data: bytes) -> str:
    """All of ``data`` as text."""
    return TextFilter().feed(data, final=True)
