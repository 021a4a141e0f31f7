"""Debian's stock kernels: had by name, and under the real `pyvmm run`, as a user starts it.

boot = boot_kernel(stock_kernel("debian:6.1-cloud"), "--protocol", "pvh", initrd=path)
assert boot.report["kernel"] == ["6.1.0-56-cloud-amd64"]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from pyvmm.cache import CachedFile
from pyvmm.errors import FetchError
from pyvmm.fetch import fetch_busybox, fetch_kernel, fetch_package_file
from pyvmm.initramfs import build_initramfs

# -P: not the package that lies in the working directory, but the one that is installed.
PYVMM = (sys.executable, "-P", "-m", "pyvmm")
CMDLINE = "console=ttyS0 reboot=k panic=-1"
BOOT_TIMEOUT_S = 90

SERIES = ("6.1", "6.12")
"""Of Debian's kernels: the one that the release came with, and the one of the next."""

T = TypeVar("T")


class Boot(NamedTuple):
    """How a run of `pyvmm run` went."""

    status: int
    console: str
    messages: str
    """What pyvmm itself said, on standard error."""

    @property
    def report(self) -> dict[str, list[str]]:
        """What the guest's init reported: ``report: WORD TEXT``, the texts by the word."""
        found: dict[str, list[str]] = {}
        for word, text in re.findall(r"^report: (\w+) ?(.*)$", self.console, re.MULTILINE):
            found.setdefault(word, []).append(text)
        return found


def stock_kernel(name: str) -> CachedFile:
    """A kernel by its name in the manifest. Skips if it cannot be had; in the lab that fails."""
    return _fetched(fetch_kernel, name)


def debian_vmlinuz(series: str) -> str:
    """The path of Debian's cloud kernel of one of SERIES."""
    return stock_kernel(f"debian:{series}").path


def package_file(package: str, member: str) -> str:
    """A file out of a package. Skips if it cannot be had; in the lab that fails."""
    return _fetched(fetch_package_file, package, member)


def _fetched(fetch: Callable[..., T], *arguments: str) -> T:
    try:
        return fetch(*arguments)
    except FetchError as error:
        if os.environ.get("PYVMM_LAB") == "1":
            raise
        pytest.skip(str(error))


def release(kernel: CachedFile) -> str:
    """What `uname -r` says in ``kernel``: Debian's packages are named after it."""
    return kernel.package.removeprefix("linux-image-").removesuffix("-unsigned")


def make_initramfs(directory: Path, init: bytes | None) -> str:
    """A busybox initramfs in ``directory`` with this /init, or the default one."""
    path = str(directory / "initramfs")
    build_initramfs(path, busybox_path=_fetched(fetch_busybox), init_script=init)
    return path


def boot_kernel(
    kernel: str, *options: str, initrd: str | None = None, cmdline: str = CMDLINE
) -> Boot:
    """Run ``kernel`` to its end; a reset counts as one."""
    options = ("--cmdline", cmdline, *options)
    if initrd is not None:
        options = ("--initrd", initrd, *options)
    return boot_image(kernel, *options)


def boot_image(kernel: str, *options: str) -> Boot:
    """The same with no command line and no initrd but those in the image, or in ``options``."""
    command = [*PYVMM, "run", "--kernel", kernel]
    command += ["--no-reboot", "--timeout", str(BOOT_TIMEOUT_S), *options]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=BOOT_TIMEOUT_S + 20
    )
    console = result.stdout.decode(errors="replace").replace("\r\n", "\n")
    return Boot(result.returncode, console, result.stderr.decode())
