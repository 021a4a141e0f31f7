"""Files that come with pyvmm: the embedded kernel, a small init, and the kernels' manifest.

``kernel.elf``, ``kernel.bzimage`` and ``init`` are made, at install, by kernels/build_guest.py,
``manifest.toml`` is kernels/manifest.toml.
"""

from __future__ import annotations

import os

from pyvmm.errors import HostError


def path(name: str) -> str:
    """The path of ``kernel.elf``, ``kernel.bzimage``, ``init`` or ``manifest.toml``.

    Raises HostError if the file is not there, as in a checkout that was never installed.
    """
    file_path = os.path.join(os.path.dirname(__file__), name)
    if not os.path.exists(file_path):
        raise HostError(
            f"pyvmm's own file {name} is missing from {os.path.dirname(__file__)}; it is made when "
            "pyvmm is installed: run `python3 -m pip install .` in the checkout"
        )
    return file_path
