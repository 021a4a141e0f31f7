"""Every rule that a kernel image, initrd or command line can break, by a key of its own.

The key is the ``rule`` of the error that is raised, for programs; the text is for people, and says
where the rule comes from. It is here and not beside the checks because a boot that goes well needs
none of it.
"""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    """What must hold, and the specification that says so."""

    text: str
    source: str


RULES: dict[str, Rule] = {
    # Files
    "file-read": Rule("the whole file can be read while it is loaded", "POSIX, pread()"),
}
