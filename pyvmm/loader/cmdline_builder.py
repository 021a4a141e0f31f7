"""The kernel's command line put together from its parts, and taken apart.

    console=ttyS0,115200 motd="hello world" quiet -- single "two words"
    +------------- parameters -----------------+    +- arguments of init -+

How the kernel reads it, which is all that counts:

* Spaces separate words. Between quotes they do not; nothing escapes a quote.
* A word with an ``=`` behind its first character is a name and a value.
* A quote that begins the word or its value is dropped, and then one that ends the word.
* The word ``--`` ends the parameters. What follows is for init, up to another ``--``.

So a value may have spaces and no quotes, a name neither. What is added is held against these rules;
then what the kernel reads is what was meant.

Left out: the early readers (arch/x86/lib/cmdline.c), which find a few options by themselves and
know neither quotes nor ``--``.

Specification: Linux 6.12, next_arg() in lib/cmdline.c, parse_args() in kernel/params.c,
set_init_arg() in init/main.c; Documentation/admin-guide/kernel-parameters.rst.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from pyvmm.errors import CmdlineError
from pyvmm.loader.cmdline import COMMAND_LINE_SIZE
from pyvmm.units import GiB, KiB, MiB

SEPARATOR = "--"

_WORD = re.compile(r'(?:[^ "]|"[^"]*")+')
_UNPRINTABLE = re.compile(r"[^ -~]")

# What memparse() of lib/cmdline.c takes, but for T, P and E: no device has such a size.
_SIZE_SUFFIXES = ((GiB, "G"), (MiB, "M"), (KiB, "K"))


class Parameter(NamedTuple):
    """A parameter as the kernel reads it."""

    name: str
    value: str | None = None
    """None if there is no ``=``."""


class Cmdline:
    """A command line that grows part by part. ``str`` of it is the line.

    ``capacity_bytes`` is the kernel's buffer, the NUL included. What cannot be added is a
    CmdlineError, and leaves the line as it was.
    """

    __slots__ = ("_init_words", "_words", "capacity_bytes")

    def __init__(self, capacity_bytes: int = COMMAND_LINE_SIZE) -> None:
        if capacity_bytes < 1:
            raise CmdlineError(
                f"a command line of {capacity_bytes} bytes was asked for; expected 1 or more, as "
                "there is a NUL at its end",
                "cmdline-capacity",
            )
        self.capacity_bytes = capacity_bytes
        self._words: list[str] = []
        self._init_words: list[str] = []

    @classmethod
    def parse(cls, line: str, capacity_bytes: int = COMMAND_LINE_SIZE) -> Cmdline:
        """The command line ``line``. Its words stay as they are, with one space between them."""
        words = _split(line)
        read = [_read_word(word) for word in words]
        cmdline = cls(capacity_bytes)
        if Parameter(SEPARATOR) not in read:
            cmdline._extend(cmdline._words, words)
            return cmdline
        end = read.index(Parameter(SEPARATOR))
        if Parameter(SEPARATOR) in read[end + 1 :]:
            raise _separator(line)
        cmdline._extend(cmdline._words, words[:end])
        cmdline._extend(cmdline._init_words, words[end + 1 :])
        return cmdline

    def __str__(self) -> str:
        init = [SEPARATOR, *self._init_words] if self._init_words else []
        return " ".join([*self._words, *init])

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What the kernel reads before ``--``."""
        return tuple(_read_word(word) for word in self._words)

    @property
    def init_arguments(self) -> tuple[str, ...]:
        """What init gets: after its name, and after words that the kernel did not know."""
        return tuple(
            name if value is None else f"{name}={value}"
            for name, value in map(_read_word, self._init_words)
        )

    def insert(self, key: str, value: str) -> None:
        """Add ``key=value``, the value in quotes if it has spaces."""
        _check_printable(key)
        _check_printable(value)
        _check_key(key)
        if '"' in value:
            raise CmdlineError(
                f"the value {value!r} of {key} has a quote in it, which the kernel's command line "
                "cannot express; leave it out",
                "cmdline-value-quote",
            )
        self._extend(self._words, [f'{key}="{value}"' if " " in value else f"{key}={value}"])

    def insert_multiple(self, key: str, values: Sequence[str]) -> None:
        """Add ``key=value,value``."""
        if not values:
            raise CmdlineError(
                f"no value was given for {key!r}; expected one or more", "cmdline-values-none"
            )
        self.insert(key, ",".join(values))

    def insert_str(self, text: str) -> None:
        """Add parameters that are written already: ``quiet loglevel=3``."""
        words = _split(text)
        if Parameter(SEPARATOR) in map(_read_word, words):
            raise _separator(text)
        self._extend(self._words, words)

    def insert_init_args(self, *arguments: str) -> None:
        """Add arguments for init, each in quotes if it is empty or has spaces."""
        for argument in arguments:
            _check_printable(argument)
            if '"' in argument:
                raise CmdlineError(
                    f"init's argument {argument!r} has a quote in it, which the kernel's command "
                    "line cannot express; leave it out",
                    "cmdline-init-quote",
                )
            if argument == SEPARATOR:
                raise _separator(argument)
        self._extend(
            self._init_words,
            [f'"{word}"' if not word or " " in word else word for word in arguments],
        )

    def add_virtio_mmio_device(
        self, size_bytes: int, base_gpa: int, irq: int, device_id: int | None = None
    ) -> None:
        """Add a virtio device that nothing else tells of: ``virtio_mmio.device=4K@0xc0001000:5``.

        ``device_id`` is the number in its name, ``virtio-mmio.0``; the kernel counts by itself.

        Specification: vm_cmdline_set() in drivers/virtio/virtio_mmio.c.
        """
        if size_bytes < 1:
            raise CmdlineError(
                f"a virtio device has {size_bytes} bytes of registers; expected 1 or more",
                "cmdline-virtio-size",
            )
        # It reads the base with %lli, the number of the interrupt with %u, the other with %d.
        if base_gpa < 0 or base_gpa + size_bytes > 1 << 63:
            raise CmdlineError(
                f"a virtio device has {size_bytes:#x} bytes of registers at {base_gpa:#x}; "
                "expected them to end at 2^63 or before",
                "cmdline-virtio-address",
            )
        if not 1 <= irq < 1 << 32:
            raise CmdlineError(
                f"a virtio device has the interrupt {irq}; expected 1 or more, in 32 bits",
                "cmdline-virtio-irq",
            )
        if device_id is not None and not 0 <= device_id < 1 << 31:
            raise CmdlineError(
                f"a virtio device has the number {device_id}; expected 0 or more, in 31 bits",
                "cmdline-virtio-id",
            )
        size = _format_size(size_bytes)
        suffix = "" if device_id is None else f":{device_id}"
        self.insert("virtio_mmio.device", f"{size}@{base_gpa:#x}:{irq}{suffix}")

    def _extend(self, words: list[str], more: list[str]) -> None:
        """Add ``more`` to ``words``, which is one of ours, or nothing."""
        before = len(words)
        words += more
        size_bytes = len(str(self)) + 1
        if size_bytes > self.capacity_bytes:
            del words[before:]
            raise CmdlineError(
                f"the command line would have {size_bytes} bytes, the NUL included; there is room "
                f"for {self.capacity_bytes}; shorten it",
                "cmdline-room",
            )


def _split(line: str) -> list[str]:
    """The words of ``line``, quotes and all."""
    _check_printable(line)
    if line.count('"') % 2:
        raise CmdlineError(
            f"{line!r} has a quote that nothing closes; the kernel would take all that follows for "
            "a part of that word; close it",
            "cmdline-quote-open",
        )
    return _WORD.findall(line)


def _read_word(word: str) -> Parameter:
    """What the kernel reads in ``word``."""
    quoted = word.startswith('"')
    body = word[1:] if quoted else word
    equals = body.find("=", 1)
    if equals < 0:
        return Parameter(body.removesuffix('"') if quoted else body)
    name, value = body[:equals], body[equals + 1 :]
    if value.startswith('"'):
        quoted = True
        value = value[1:]
    return Parameter(name, value.removesuffix('"') if quoted else value)


def _check_printable(text: str) -> None:
    found = _UNPRINTABLE.search(text)
    if found:
        raise CmdlineError(
            f"{text!r} has the character {found[0]!a} in it; expected printable ASCII; remove it",
            "cmdline-ascii",
        )


def _check_key(key: str) -> None:
    """Raise CmdlineError unless the kernel would read ``key`` as the name of a parameter."""
    if not key:
        raise CmdlineError(
            "a parameter has no name; expected one before its value", "cmdline-key-empty"
        )
    if " " in key:
        raise CmdlineError(
            f"the parameter's name {key!r} has a space in it, which would end it; leave it out",
            "cmdline-key-space",
        )
    if "=" in key:
        raise CmdlineError(
            f"the parameter's name {key!r} has a = in it, which would end it; leave it out",
            "cmdline-key-equals",
        )
    if '"' in key:
        raise CmdlineError(
            f"the parameter's name {key!r} has a quote in it, which would hold the next words "
            "together; leave it out",
            "cmdline-key-quote",
        )


def _separator(text: str) -> CmdlineError:
    return CmdlineError(
        f"{text!r} has a -- where the kernel would stop reading; expected one at most, between "
        "parameters and init's arguments; give those apart, without it",
        "cmdline-separator",
    )


def _format_size(size_bytes: int) -> str:
    """``size_bytes`` in the largest unit of memparse() that leaves no fraction."""
    for unit, suffix in _SIZE_SUFFIXES:
        if size_bytes % unit == 0:
            return f"{size_bytes // unit}{suffix}"
    return str(size_bytes)
