"""The files that the user named: one to read, or to write, or one clear line why not."""

from __future__ import annotations

import os
import stat
from errno import EDQUOT, EFBIG, EIO, ENOSPC, EROFS

from pyvmm.errors import ConfigError, HostError, ImageError, PyvmmError

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: str, what: str, error_class: type[ImageError]) -> tuple[int, int]:
    """Open ``path`` for reading: its file descriptor, which is the caller's to close, and size.

    ``what`` says in messages which file it should have been: ``"a kernel image"``.

    Raises ``error_class`` if it cannot be opened or is not a regular file.
    """
    try:
        # A pipe without a writer would block the open; O_NONBLOCK changes nothing for a file.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise error_class(
            f"{path}: there is no such file; expected {what}; check the path"
        ) from None
    except PermissionError:
        raise error_class(
            f"{path}: not readable by this user; give yourself read permission on it"
        ) from None
    except OSError as error:
        raise error_class(f"{path}: cannot be opened ({error.strerror}); expected {what}") from None
    except ValueError:
        raise error_class(f"{path!r}: a path cannot hold a NUL; expected {what}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
            raise error_class(f"{path}: is {kind}; expected a regular file, {what}")
    except BaseException:
        os.close(fd)
        raise
    return fd, status.st_size


def read_regular(path: str, what: str, error_class: type[ImageError]) -> bytes:
    """All of the regular file ``path``. Raises ``error_class`` as ``open_regular`` does."""
    fd, _ = open_regular(path, what, error_class)
    with open(fd, "rb") as file:
        try:
            return file.read()
        except OSError as error:
            raise error_class(f"{path}: cannot be read ({error.strerror})") from None


def write_whole(path: str, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path``: complete or, as far as files go, not at all.

    A new file is written beside its destination first: a full disk must not leave half of it, nor
    cost what was there. What is no regular file is written in place: a device, a pipe, and a
    symbolic link too, which may lead to one (/dev/stdout does).

    Raises ConfigError if there is no such place, HostError if this host cannot write there.
    """
    in_place = os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode)
    target = path if in_place else f"{path}.{os.getpid()}.partial"
    try:
        with open(target, "wb") as file:
            file.write(data)
        if not in_place:
            os.replace(target, path)
    except OSError as error:
        if not in_place and os.path.exists(target):
            os.unlink(target)
        raise cannot_write(path, error) from error


def cannot_write(path: str, error: OSError) -> PyvmmError:
    """What to raise for the ``error`` of opening or writing ``path``.

    It is a ConfigError if there is no such place, a HostError if this host cannot write there.
    """
    if error.errno in (ENOSPC, EDQUOT, EFBIG, EIO, EROFS):
        return HostError(
            f"cannot write {path}: {error.strerror}; make room there, or choose another place"
        )
    return ConfigError(
        f"cannot write {path!r}: {error.strerror}; expected the path of a file, in a directory "
        "that is there and that you may write in"
    )
