"""Opening an image, and telling by its content what it is."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from builders import bzimage as bz
from builders import multiboot
from builders.elf import Elf, Segment, vmlinux
from builders.pe import Pe, Section

from pyvmm.errors import KernelImageError
from pyvmm.loader.image import ImageFormat, KernelImage, detect


def at(offset: int, magic: bytes) -> bytes:
    return b"\xcc" * offset + magic + b"\xcc" * 64


UNBOOTABLE = {
    "lzop": (at(0, b"\x89LZO\x00\r\n\x1a\n"), "lzop-compressed file"),
    "cpio": (at(0, b"070701"), "give it with --initrd"),
    "deb": (at(0, b"!<arch>\ndebian-binary   "), "dpkg -x"),
    "ar": (at(0, b"!<arch>\nfoo.o/"), "static library"),
    "rpm": (at(0, b"\xed\xab\xee\xdb"), "RPM package"),
    "zip": (at(0, b"PK\x03\x04"), "zip archive"),
    "tar": (at(257, b"ustar"), "tar archive"),
    "qcow2": (at(0, b"QFI\xfb"), "qcow2 disk image"),
    "iso": (at(0x8001, b"CD001"), "ISO 9660"),
    "ext4": (at(0x438, b"\x53\xef"), "ext2/3/4 file system"),
    "squashfs": (at(0, b"hsqs"), "squashfs"),
    "android": (at(0, b"ANDROID!"), "Android boot image"),
    "uimage": (at(0, b"\x27\x05\x19\x56"), "uImage"),
    "device tree": (at(0, b"\xd0\x0d\xfe\xed"), "device tree"),
    "arm64": (at(0x38, b"ARM\x64"), "ARM64 kernel"),
    "riscv": (at(0x38, b"RSC\x05"), "RISC-V kernel"),
    "arm": (at(0x24, b"\x18\x28\x6f\x01"), "32-bit ARM kernel"),
    "efi arm64": (Pe(machine=0xAA64).build(), "EFI program for ARM64"),
    "efi unknown": (Pe(machine=0x1234).build(), "EFI program for machine 0x1234"),
    "efi x86-64": (Pe([Section(b".text")]).build(), "EFI program without a Linux setup header"),
    "dos": (b"MZ" + bytes(0x100), "DOS program"),
    "boot sector": (at(0x1FE, b"\x55\xaa"), "boot sector without a setup header"),
    "zeros": (bytes(4096), "512 zero bytes"),
    "script": (b"#!/bin/sh\nexec true\n", "is text (it begins '#!/bin/sh')"),
    "html": (b"<!DOCTYPE html>\n<title>404</title>", "is text (it begins '<!DOCTYPE html>')"),
    "garbage": (b"\x01\x02\x03\x04\x05\x06\x07\x08\x09", "01 02 03 04 05 06 07 08"),
    "empty": (b"", "is empty (0 bytes)"),
    "one byte": (b"\x7f", "no known format"),
}


@pytest.mark.parametrize("kind", UNBOOTABLE)
def test_detect_explains_what_cannot_be_booted(kind: str) -> None:
    data, explanation = UNBOOTABLE[kind]
    with pytest.raises(KernelImageError) as caught:
        detect(KernelImage.from_bytes(data, "some/file"))
    message = str(caught.value)
    assert explanation in message
    assert message.startswith("some/file: ")
    assert "expected an x86-64 kernel" in message
    assert "\n" not in message


def test_detect_finds_elf() -> None:
    assert detect(KernelImage.from_bytes(vmlinux())) is ImageFormat.ELF


def test_detect_finds_bzimage() -> None:
    image = bz.bzimage(bz.compress("gzip", vmlinux()))
    assert detect(KernelImage.from_bytes(image)) is ImageFormat.BZIMAGE


def test_detect_finds_bzimage_behind_efi_stub() -> None:
    image = b"MZ" + bz.bzimage(bz.compress("gzip", vmlinux()))[2:]
    assert detect(KernelImage.from_bytes(image)) is ImageFormat.BZIMAGE


def test_detect_takes_32_bit_elf() -> None:
    image = Elf([Segment(0x10_0000, b"x")], bits=32).build()
    assert detect(KernelImage.from_bytes(image)) is ImageFormat.ELF


def test_detect_takes_a_multiboot_header_without_elf() -> None:
    image = multiboot.image(b"code", before=bytes(8188 - 32))
    assert detect(KernelImage.from_bytes(image)) is ImageFormat.MULTIBOOT


def test_open_maps_the_file(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(vmlinux())
    with KernelImage.open(str(path)) as image:
        assert image.data == vmlinux()
        assert image.data.readonly
        assert image.name == str(path)
        assert image.fd is not None


def test_open_leaves_no_file_descriptor_behind(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(vmlinux())
    before = os.listdir("/proc/self/fd")
    with KernelImage.open(str(path)):
        pass
    (tmp_path / "empty").touch()
    with pytest.raises(KernelImageError):
        KernelImage.open(str(tmp_path / "empty"))
    with pytest.raises(KernelImageError):
        KernelImage.open(str(tmp_path))
    assert os.listdir("/proc/self/fd") == before


def test_close_with_a_view_still_out_does_not_raise(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(vmlinux())
    with KernelImage.open(str(path)) as image:
        view = image.data[:4]
    assert bytes(view) == b"\x7fELF"


def open_error(path: str | Path) -> str:
    with pytest.raises(KernelImageError) as caught:
        KernelImage.open(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_open_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    assert open_error(path).startswith(f"{path}: there is no such file")


def test_open_directory(tmp_path: Path) -> None:
    assert f"{tmp_path}: is a directory; expected a regular file" in open_error(tmp_path)


def test_open_empty_file(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").touch()
    assert "is empty (0 bytes)" in open_error(tmp_path / "vmlinux")


def test_open_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe" in open_error(tmp_path / "pipe")


def test_open_character_device() -> None:
    assert "is a character device" in open_error("/dev/null")


def test_open_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert "cannot be opened" in open_error(tmp_path / "socket")


def test_open_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # chmod would not do: the tests may be run by root, to whom everything is readable.
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "not readable by this user" in open_error(tmp_path / "vmlinux")


def test_open_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in open_error(tmp_path / "file" / "vmlinux")


def test_open_path_with_nul() -> None:
    assert "a path cannot hold a NUL" in open_error("vmlinux\x00")


def test_open_file_larger_than_the_address_space() -> None:
    fd = os.memfd_create("vmlinux")
    try:
        os.ftruncate(fd, 1 << 62)
        assert "cannot be mapped" in open_error(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_open_huge_sparse_file_of_zeros(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    with (
        KernelImage.open(str(path)) as image,
        pytest.raises(KernelImageError, match="512 zero bytes"),
    ):
        detect(image)
