"""An initramfs around busybox: a userspace of one binary, to boot a kernel into.

The format is the one of Documentation/driver-api/early-userspace/buffer-format.rst: a cpio archive
of the "newc" kind. Owners are 0:0 and times are 0, so that the same input gives the same bytes.

Left out: hard links, checksums ("070702"), and every compression but gzip.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from pyvmm import embedded
from pyvmm.errors import ConfigError, ImageError
from pyvmm.loader.files import read_regular, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable

READY_MARKER = "pyvmm initramfs: ready"
"""The line that both of our own /init print: before a shell, or before the end."""

# BusyBox's cttyhack makes the console the shell's controlling terminal, for Ctrl-C and job
# control. Linux can power off only through ACPI; a reset ends a run on every machine.
DEFAULT_INIT = f"""\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo '{READY_MARKER}'
setsid cttyhack sh
if [ -d /sys/firmware/acpi/tables ]; then
    poweroff -f
fi
reboot -f
""".encode()

_DIRECTORIES = ("bin", "dev", "etc", "proc", "root", "sys", "tmp")

# Documentation/admin-guide/devices.txt. The kernel opens /dev/console before /init runs.
_DEVICES = (("dev/console", 0o600, 5, 1), ("dev/null", 0o666, 1, 3))

_MAX_FILE_BYTES = 0xFFFF_FFFF  # c_filesize has eight hexadecimal digits


class CpioEntry(NamedTuple):
    """One member of an archive."""

    name: str
    """Its path, without a leading slash."""
    mode: int
    """st_mode: the type and the permissions."""
    data: bytes = b""
    """A regular file's content, a symbolic link's target."""
    device: tuple[int, int] = (0, 0)
    """A device node's major and minor number."""


def cpio_archive(entries: Iterable[CpioEntry]) -> bytes:
    """A newc archive of ``entries``, in their order, the trailer included.

    Raises ConfigError for a file that is too large for the format.
    """
    archive = bytearray()
    for inode, entry in enumerate(entries, start=1):
        _append_member(archive, inode, entry)
    _append_member(archive, 0, CpioEntry("TRAILER!!!", 0))
    return bytes(archive)


def _append_member(archive: bytearray, inode: int, entry: CpioEntry) -> None:
    name = os.fsencode(entry.name) + b"\0"
    if len(entry.data) > _MAX_FILE_BYTES:
        raise ConfigError(
            f"/{entry.name} would have {len(entry.data)} bytes; a file in an initramfs can have "
            f"at most {_MAX_FILE_BYTES}"
        )
    fields = (
        inode,
        entry.mode,
        0,  # c_uid
        0,  # c_gid
        2 if stat.S_ISDIR(entry.mode) else 1,  # c_nlink
        0,  # c_mtime
        len(entry.data),
        0,  # c_maj
        0,  # c_min
        *entry.device,  # c_rmaj, c_rmin
        len(name),
        0,  # c_chksum
    )
    archive += b"070701" + b"".join(b"%08x" % field for field in fields)
    for part in (name, entry.data):
        archive += part
        archive += bytes(-len(archive) % 4)


class _Tree:
    """The files of an initramfs by path; what is put at a path twice is refused."""

    def __init__(self) -> None:
        self._entries: dict[str, CpioEntry] = {}

    def add(self, entry: CpioEntry) -> None:
        """Add ``entry``, and the directories above it that are not there yet."""
        parent = os.path.dirname(entry.name)
        if parent:
            above = self._entries.get(parent)
            if above is None:
                self.add(CpioEntry(parent, stat.S_IFDIR | 0o755))
            elif not stat.S_ISDIR(above.mode):
                raise ConfigError(
                    f"/{entry.name} cannot be in the initramfs: /{parent} is not a directory there"
                )
        present = self._entries.get(entry.name)
        if present is None:
            self._entries[entry.name] = entry
        elif not (stat.S_ISDIR(present.mode) and stat.S_ISDIR(entry.mode)):
            raise ConfigError(
                f"/{entry.name} would be in the initramfs twice; give one of the two another name"
            )

    def add_from_host(self, source: str, name: str) -> None:
        """Add the host's file or directory ``source`` as ``name``, with all that is in it."""
        try:
            status = os.stat(source)
            if stat.S_ISDIR(status.st_mode):
                self.add(CpioEntry(name, stat.S_IFDIR | stat.S_IMODE(status.st_mode)))
                for child in sorted(os.listdir(source)):
                    child_source = os.path.join(source, child)
                    child_name = f"{name}/{child}"
                    if os.path.islink(child_source):
                        target = os.fsencode(os.readlink(child_source))
                        self.add(CpioEntry(child_name, stat.S_IFLNK | 0o777, target))
                    else:
                        self.add_from_host(child_source, child_name)
            elif stat.S_ISREG(status.st_mode):
                self.add(CpioEntry(name, status.st_mode, _read(source)))
            else:
                raise ImageError(f"{source} is neither a file nor a directory; leave it out")
        except OSError as error:
            raise ImageError(f"{source} cannot be added: {error.strerror or error}") from error

    def archive(self) -> bytes:
        """The cpio archive: every directory comes before what is in it."""
        return cpio_archive(self._entries.values())


def build_initramfs(
    out_path: str,
    *,
    busybox_path: str | None,
    init_script: bytes | None = None,
    extra_files: Iterable[tuple[str, str]] = (),
    compress: bool = False,
) -> int:
    """Write an initramfs to ``out_path`` and return its size in bytes.

    It has busybox with a link for each of its applets, ``/init`` (``init_script``, or one that
    gives a shell on the console and ends the run after it), mount points, and each of
    ``extra_files``: pairs of a path on the host, a directory with all that is in it, and the
    absolute path in the guest. ``compress`` gzips it: smaller, slower to unpack.

    Without busybox it is of a few KiB: no applets, and unless there is an ``init_script`` pyvmm's
    own init, which says READY_MARKER and powers off (kernels/userland/init.c).

    Raises ImageError for a file that is missing or of no use, ConfigError for two files with one
    name or an ``out_path`` that is none, HostError if it cannot be written.
    """
    tree = _Tree()
    for name in _DIRECTORIES:
        tree.add(CpioEntry(name, stat.S_IFDIR | (0o1777 if name == "tmp" else 0o755)))
    for name, permissions, major, minor in _DEVICES:
        tree.add(CpioEntry(name, stat.S_IFCHR | permissions, device=(major, minor)))
    if busybox_path is not None:
        tree.add(CpioEntry("bin/busybox", stat.S_IFREG | 0o755, _read_busybox(busybox_path)))
        for applet in _applets(busybox_path):
            if applet != "bin/busybox":
                tree.add(CpioEntry(applet, stat.S_IFLNK | 0o777, b"/bin/busybox"))
    if init_script is not None:
        init = init_script
    elif busybox_path is not None:
        init = DEFAULT_INIT
    else:
        init = _read(embedded.path("init"))
    if not init.startswith((b"#!", b"\x7fELF")):
        raise ImageError(
            f"the init script begins with {init[:16]!r}; the kernel can run it only if it begins "
            "with #! and an interpreter, such as #!/bin/sh"
        )
    tree.add(CpioEntry("init", stat.S_IFREG | 0o755, init))
    for source, destination in extra_files:
        tree.add_from_host(source, _guest_name(destination))

    archive = tree.archive()
    if compress:
        import gzip

        archive = gzip.compress(archive, 6, mtime=0)
    write_whole(out_path, archive)
    return len(archive)


def _guest_name(destination: str) -> str:
    """A path in the guest as cpio has it. Raises ConfigError if it is not an absolute path."""
    name = os.path.normpath(destination).lstrip("/")
    if not destination.startswith("/") or not name or name.startswith("..") or "\0" in name:
        raise ConfigError(
            f"{destination!r} is not a place in the initramfs; expected an absolute path of a "
            "file, such as /root/test.sh"
        )
    return name


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _read_busybox(path: str) -> bytes:
    """The busybox binary, once it is sure that it can run with nothing beside it."""
    data = read_regular(path, "a static busybox", ImageError)
    # System V gABI, chapters 4 and 5: EI_CLASS 2 is 64-bit, EM_X86_64 is 62, PT_INTERP is 3.
    machine = int.from_bytes(data[18:20], "little")
    if data[:5] != b"\x7fELF\x02" or machine != 62 or len(data) < 64:
        raise ImageError(
            f"{path} is not a busybox for this guest; expected an ELF file for x86-64, such as "
            "/bin/busybox of Debian's package busybox-static"
        )
    e_phoff = int.from_bytes(data[32:40], "little")
    e_phentsize = int.from_bytes(data[54:56], "little")
    e_phnum = int.from_bytes(data[56:58], "little")
    for index in range(e_phnum):
        start = e_phoff + index * e_phentsize
        if int.from_bytes(data[start : start + 4], "little") == 3:
            raise ImageError(
                f"{path} is dynamically linked: there are no libraries in the initramfs; expected "
                "a static one, such as /bin/busybox of Debian's package busybox-static"
            )
    return data


def _applets(busybox_path: str) -> list[str]:
    """Where busybox wants its links, such as ``usr/bin/seq``: it tells so itself."""
    import subprocess

    try:
        result = subprocess.run(
            [os.path.abspath(busybox_path), "--list-full"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ImageError(
            f"{busybox_path} --list-full does not run here ({error}); expected busybox to list its "
            "applets; is the file executable, and a busybox?"
        ) from error
    return [os.fsdecode(line).lstrip("/") for line in result.stdout.splitlines() if line]
