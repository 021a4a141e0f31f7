"""The initramfs that a Vm boots into: busybox, the agent, and a shell or a script of the test's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyvmm.fetch import fetch_busybox
from pyvmm.initramfs import READY_MARKER, build_initramfs

if TYPE_CHECKING:
    from collections.abc import Iterable

AGENT_PORT = "/dev/ttyS1"
_AGENT = os.path.join(os.path.dirname(__file__), "agent.sh")

_BEGIN = f"""\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
[ -c {AGENT_PORT} ] && setsid sh /bin/pyvmm-agent {AGENT_PORT} &
echo '{READY_MARKER}'
"""

_SHELL = """\
setsid cttyhack sh
[ -d /sys/firmware/acpi/tables ] && poweroff -f
reboot -f
"""

# The debug exit port, 0xf4 (pyvmm/devices/ports.py): what is written there is the run's status.
_SCRIPT = """\
setsid cttyhack sh /test
status=$?
printf "\\\\$(printf %o $status)" | dd of=/dev/port bs=1 seek=244 conv=notrunc 2>/dev/null
reboot -f
"""


def make_initramfs(
    path: str,
    *,
    script: str | None = None,
    busybox_path: str | None = None,
    extra_files: Iterable[tuple[str, str]] = (),
) -> str:
    """Write the initramfs to ``path``, and return that.

    With a ``script``, a file of the host's, the guest runs it on its console, and the run ends with
    its exit status. Without, there is a shell. ``extra_files``: see ``build_initramfs``.

    Raises FetchError if there is no busybox, ImageError for a file that is of no use.
    """
    if busybox_path is None:
        busybox_path = fetch_busybox()
    files = [(_AGENT, "/bin/pyvmm-agent"), *extra_files]
    if script is not None:
        files.append((script, "/test"))
    init = _BEGIN + (_SHELL if script is None else _SCRIPT)
    build_initramfs(path, busybox_path=busybox_path, init_script=init.encode(), extra_files=files)
    return path
