"""The files that the user names: what is read, what is refused, what a write leaves behind."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pyvmm.errors import ConfigError, HostError, ImageError
from pyvmm.loader.files import read_regular, write_whole


def test_read_gives_all_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert read_regular(str(tmp_path / "file"), "a script", ImageError) == b"content"


@pytest.mark.parametrize("path", ["/dev/zero", "/", "/nothing/here", ""])
def test_read_refuses_what_is_no_regular_file(path: str) -> None:
    with pytest.raises(ImageError, match=r"expected .*a script"):
        read_regular(path, "a script", ImageError)


def test_read_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError, match="is a pipe"):
        read_regular(str(tmp_path / "fifo"), "a script", ImageError)


def test_write_makes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"first", b"second"):
        write_whole(str(path), content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


def test_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def no_replace(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_replace)
    with pytest.raises(HostError, match="No space left on device; make room"):
        write_whole(str(path), b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_write_goes_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    write_whole(str(tmp_path / "link"), b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_write_to_a_link_like_dev_stdout_leaves_it_one(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "output", os.O_RDWR | os.O_CREAT)
    stdout = tmp_path / "stdout"
    stdout.symlink_to(f"/proc/self/fd/{fd}")
    write_whole(str(stdout), b"data")
    assert stdout.is_symlink()
    assert os.pread(fd, 10, 0) == b"data"
    os.close(fd)


def test_write_to_a_pipe_goes_into_it(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    write_whole(str(fifo), b"data")
    reader.join(10)
    assert got == [b"data"]
    assert fifo.is_fifo()


def test_write_to_a_full_device_is_the_hosts_fault() -> None:
    with pytest.raises(HostError, match="/dev/full: No space left on device; make room"):
        write_whole("/dev/full", b"data")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no/file", "No such file or directory"),
        ("file/x", "Not a directory"),
        (".", "Is a directory"),
        ("", "No such file or directory"),
    ],
)
def test_write_to_no_place_is_the_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(ConfigError, match=f"cannot write '{path}': {said}; expected the path"):
        write_whole(path, b"data")
    assert os.listdir(tmp_path) == ["file"]
