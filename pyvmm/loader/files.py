"""Opening a file that the user named: a regular file with something in it, or one clear line."""

from __future__ import annotations

import os
import stat

from pyvmm.errors import ImageError

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
