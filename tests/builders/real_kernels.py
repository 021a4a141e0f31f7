"""Debian's stock kernels, fetched once with apt and kept in the XDG cache directory.

Set PYVMM_TEST_KERNELS to a directory with vmlinuz-6.1* and vmlinuz-6.12* in it to use those.
"""

from __future__ import annotations

import functools
import glob
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SERIES = ("6.1", "6.12")


@functools.cache
def debian_vmlinuz(series: str) -> str:
    """The path of the newest cloud kernel of ``series``; skips the test if it cannot be had."""
    directory = os.environ.get("PYVMM_TEST_KERNELS")
    if directory is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        directory = os.path.join(cache, "pyvmm", "test-kernels", series)
        if not _find(directory, series):
            _fetch(series, Path(directory))
    found = _find(directory, series)
    if not found:
        pytest.skip(f"no vmlinuz-{series}.* in {directory}")
    return found[-1]


def _find(directory: str, series: str) -> list[str]:
    return sorted(glob.glob(f"{glob.escape(directory)}/**/vmlinuz-{series}.*", recursive=True))


def _fetch(series: str, directory: Path) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("Debian's kernels are fetched with apt-get, which is not here")
    names = subprocess.run(
        ["apt-cache", "pkgnames", f"linux-image-{series}."],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    packages = [name for name in names if name.endswith("-cloud-amd64-unsigned")]
    if not packages:
        pytest.skip(f"apt knows no cloud kernel {series}; run apt-get update")
    newest = max(packages, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", newest], cwd=directory, check=True)
    for package in directory.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, directory], check=True)
        package.unlink()
