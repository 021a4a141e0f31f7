"""What can go wrong, in one small tree.

A message holds what was seen, what was expected, and what to do, in one line. ``exit_status`` is
what the ``pyvmm`` command ends with: 2 if the user's input is at fault, 1 if the machine is.
"""

from __future__ import annotations

from typing import Self


class PyvmmError(Exception):
    """Every error that pyvmm raises on purpose.

    ``rule`` tells faults apart for programs, as the message does for people: which rule of a
    format or protocol was broken, a key of ``pyvmm.loader.rules.RULES``; empty if it was none.
    """

    exit_status = 1

    def __init__(self, message: str, rule: str = "") -> None:
        super().__init__(message)
        self.rule = rule

    def about(self, name: str) -> Self:
        """The same error with ``name``, the file that it is about, in front of the message."""
        return type(self)(f"{name}: {self}", self.rule)


class HostError(PyvmmError):
    """This machine cannot do what was asked: no /dev/kvm, no permission, no memory."""


class MachineStateError(PyvmmError):
    """Something was asked of a machine that it cannot do in its present state."""


class ConsoleError(PyvmmError):
    """The guest's console did not show what was expected."""


class FetchError(PyvmmError):
    """A kernel or a tool could not be fetched through the package manager."""


class ConfigError(PyvmmError):
    """A value that the user gave is wrong: an option, a size, a combination."""

    exit_status = 2


class ImageError(PyvmmError):
    """A file that the user gave is wrong. Its name is put in front by whoever knows it."""

    exit_status = 2


class KernelImageError(ImageError):
    """The kernel image is not one that can be booted, or not in this way."""


class InitrdError(ImageError):
    """The initrd cannot be placed where the kernel would find it."""


class DeviceTreeError(ImageError):
    """The devicetree is not one that a kernel takes, or not at this place."""


class CmdlineError(ConfigError):
    """The command line is not one that the kernel can take."""


class GuestMemoryError(PyvmmError):
    """An access to guest memory that is not, or not wholly, inside RAM."""


class DeviceError(PyvmmError):
    """The machine was put together wrongly: two devices at one place, or one at no place."""
