"""Fetching kernels by name: an apt of our own making, the real dpkg, a cache of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
from builders.fake_apt import FakeApt

from pyvmm import embedded
from pyvmm.cli import fetch as cli_fetch
from pyvmm.cli.main import main
from pyvmm.errors import ConfigError, FetchError
from pyvmm.fetch import (
    cached_kernel,
    fetch_kernel,
    fetch_kernel_modules,
    fetch_package_file,
    list_kernels,
    resolve_kernel,
    verify_kernel,
)

pytestmark = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="the packages are made with dpkg-deb"
)

CLOUD_9 = "linux-image-6.1.0-9-cloud-amd64-unsigned"
CLOUD_10 = "linux-image-6.1.0-10-cloud-amd64-unsigned"
VMLINUZ_9 = b"the kernel of ABI 9" * 1000
VMLINUZ_10 = b"the kernel of ABI 10" * 1000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pyvmm"


@pytest.fixture
def apt(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    """An apt with one cloud kernel, beside packages that only look like it."""
    fake = FakeApt(tmp_path)
    monkeypatch.setenv("PATH", fake.path)
    fake.add_package(
        CLOUD_9,
        "6.1.9-1",
        {"boot/config-9": b"CONFIG_X=y", "boot/vmlinuz-9": VMLINUZ_9, "usr/share/doc/x": b"x"},
    )
    fake.add_package("linux-image-6.1.0-99-cloud-amd64-dbg", "6.1.99-1", {"boot/vmlinuz-9": b""})
    fake.add_package("linux-image-6.1.0-99-amd64-unsigned", "6.1.99-1", {"boot/vmlinuz-9": b""})
    return fake


def test_fetch_puts_the_kernel_of_the_package_into_the_cache(apt: FakeApt, cache: Path) -> None:
    kernel = fetch_kernel("debian")
    assert kernel.path == str(cache / "kernels" / f"{CLOUD_9}_6.1.9-1" / "vmlinuz")
    assert Path(kernel.path).read_bytes() == VMLINUZ_9
    assert kernel[1:4] == ("debian:6.1-cloud", CLOUD_9, "6.1.9-1")
    assert kernel.sha256 == hashlib.sha256(VMLINUZ_9).hexdigest()


def test_fetch_takes_the_newest_version_not_the_last_name(apt: FakeApt) -> None:
    apt.add_package(CLOUD_10, "6.1.10-1", {"boot/vmlinuz-10": VMLINUZ_10})
    assert sorted([CLOUD_9, CLOUD_10])[-1] == CLOUD_9
    assert fetch_kernel("debian").package == CLOUD_10


def test_fetched_kernel_is_found_again_without_apt(apt: FakeApt) -> None:
    kernel = fetch_kernel("debian")
    calls = apt.calls
    for name in ("debian", "debian:6.1", "debian:6.1-cloud", f"{CLOUD_9}_6.1.9-1"):
        assert fetch_kernel(name) == kernel
    assert apt.calls == calls


def test_update_fetches_a_newer_kernel_and_all_names_follow(apt: FakeApt) -> None:
    fetch_kernel("debian:6.1")
    apt.add_package(CLOUD_10, "6.1.10-1", {"boot/vmlinuz-10": VMLINUZ_10})
    assert fetch_kernel("debian").package == CLOUD_9
    assert fetch_kernel("debian", update=True).package == CLOUD_10
    assert fetch_kernel("debian:6.1").package == CLOUD_10


def test_update_without_anything_newer_downloads_nothing(apt: FakeApt) -> None:
    fetch_kernel("debian")
    fetch_kernel("debian", update=True)
    assert sum(" download " in call for call in apt.calls) == 1


def test_damaged_cache_entry_is_fetched_again(apt: FakeApt) -> None:
    path = Path(fetch_kernel("debian").path)
    path.write_bytes(VMLINUZ_9[:-1])
    assert cached_kernel("debian") is None
    assert Path(fetch_kernel("debian").path).read_bytes() == VMLINUZ_9


def test_entry_without_a_record_is_fetched_again(apt: FakeApt) -> None:
    path = Path(fetch_kernel("debian").path)
    path.with_name("record").write_text("Name\n")
    assert fetch_kernel("debian").path == str(path)
    assert cached_kernel("debian") is not None


def test_verify_finds_a_change_that_size_and_time_do_not_show(apt: FakeApt) -> None:
    kernel = fetch_kernel("debian")
    status = os.stat(kernel.path)
    Path(kernel.path).write_bytes(VMLINUZ_9.swapcase())
    os.utime(kernel.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cached_kernel("debian") == kernel
    actual = hashlib.sha256(VMLINUZ_9.swapcase()).hexdigest()
    with pytest.raises(FetchError, match=f"has SHA-256 {actual}, expected {kernel.sha256}; remove"):
        verify_kernel("debian")


def test_verify_of_what_was_not_fetched_says_how_to(apt: FakeApt) -> None:
    with pytest.raises(FetchError, match=r"not in the cache .*; run `pyvmm fetch debian`"):
        verify_kernel("debian")


def test_two_fetches_at_once_both_succeed(apt: FakeApt) -> None:
    kernels = []
    threads = [
        threading.Thread(target=lambda: kernels.append(fetch_kernel("debian"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kernels) == 4
    assert len(set(kernels)) == 1
    assert Path(kernels[0].path).read_bytes() == VMLINUZ_9


def test_fetch_leaves_nothing_else_in_the_cache(apt: FakeApt, cache: Path) -> None:
    fetch_kernel("debian")
    assert [entry.name for entry in cache.iterdir()] == ["kernels"]
    names = {"debian", "debian:6.1", "debian:6.1-cloud", f"{CLOUD_9}_6.1.9-1"}
    assert {entry.name for entry in (cache / "kernels").iterdir()} == names


def test_progress_ends_with_all_bytes(apt: FakeApt) -> None:
    seen: list[tuple[str, int, int]] = []
    fetch_kernel("debian", progress=lambda *args: seen.append(args))
    name, done, size = seen[-1]
    assert name == CLOUD_9
    assert done == size > 0
    assert seen[0] == (CLOUD_9, 0, size)


def test_package_file_is_fetched_once_and_executable(apt: FakeApt, cache: Path) -> None:
    apt.add_package("tool", "1:2.0-1", {"usr/bin/tool": b"\x7fELF"})
    path = fetch_package_file("tool", "(usr/)?bin/tool")
    assert path.startswith(str(cache / "files"))
    assert path.endswith("/tool_1%3a2.0-1/tool")
    assert Path(path).read_bytes() == b"\x7fELF"
    calls = apt.calls
    assert fetch_package_file("tool", "(usr/)?bin/tool") == path
    assert apt.calls == calls


def test_two_files_of_one_package_are_two(apt: FakeApt) -> None:
    apt.add_package("tool", "1", {"bin/one": b"1", "bin/two": b"2"})
    paths = [fetch_package_file("tool", member) for member in ("bin/one", "bin/two", "bin/one")]
    assert [Path(path).read_bytes() for path in paths] == [b"1", b"2", b"1"]


def test_file_that_an_older_pyvmm_has_left_in_the_cache_is_no_trouble(
    apt: FakeApt, cache: Path
) -> None:
    # It had one file of each package, with nothing to tell which.
    apt.add_package("tool", "1", {"bin/one": b"1", "bin/two": b"2"})
    old = Path(fetch_package_file("tool", "bin/one")).parent
    shutil.copytree(old, cache / "files" / "tool_1")
    (cache / "files" / "tool").symlink_to("tool_1")
    shutil.rmtree(old.parent)
    assert Path(fetch_package_file("tool", "bin/two")).read_bytes() == b"2"


def test_relative_cache_home_is_ignored(
    apt: FakeApt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert fetch_kernel("debian").path.startswith(str(tmp_path / "home" / ".cache" / "pyvmm"))


# What can go wrong, each with its remedy.


@pytest.mark.parametrize(("typed", "meant"), [("debain", "debian"), ("embeded", "embedded")])
def test_unknown_name_suggests_a_known_one(apt: FakeApt, typed: str, meant: str) -> None:
    said = rf"'{typed}' is neither a file nor a kernel's name; did you mean {meant}\?"
    with pytest.raises(ConfigError, match=said):
        resolve_kernel(typed)


def test_unknown_name_lists_the_known_ones(apt: FakeApt) -> None:
    with pytest.raises(ConfigError, match=r"the names are embedded, debian, .*debian:6\.12-rt"):
        resolve_kernel("zzz")


@pytest.mark.parametrize("name", ["embedded", "./bzImage"])
def test_what_cannot_be_fetched_is_not_called_unknown(apt: FakeApt, name: str) -> None:
    said = rf"'{name}' is not the name of a kernel to fetch \(the names are debian, "
    with pytest.raises(ConfigError, match=said):
        fetch_kernel(name)


def test_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "relative")
    with pytest.raises(FetchError, match=r"no home directory for user id .* set XDG_CACHE_HOME"):
        fetch_kernel("debian")


def test_apt_can_tell_of_a_full_disk_on_a_full_disk(
    apt: FakeApt, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_on_full_disk(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).startswith(str(cache)):
            raise OSError(28, "No space left on device")
        return open(file, *args, **kwargs)

    apt.fail_downloads("E: Error writing to file - write (28: No space left on device)\n")
    monkeypatch.setattr("pyvmm.apt.open", open_on_full_disk, raising=False)
    with pytest.raises(FetchError, match=r"apt-get could not .* write \(28: .*; make room in"):
        fetch_kernel("debian")


def test_machine_without_apt_is_told(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match=r"apt-cache is not on this machine; .* give its path"):
        fetch_kernel("debian")


def test_empty_lists_ask_for_apt_get_update(apt: FakeApt) -> None:
    apt.lose_lists()
    with pytest.raises(FetchError, match="lists are empty; run `apt-get update`"):
        fetch_kernel("debian:6.12")


ARM64 = "linux-image-6.1.0-9-cloud-arm64-unsigned"


def test_kernel_of_another_architecture_is_fetched_with_a_state_of_its_own(
    apt: FakeApt, cache: Path
) -> None:
    apt.add_package(ARM64, "6.1.9-1", {"boot/vmlinuz-9": VMLINUZ_10})
    kernel = fetch_kernel("debian:6.1-arm64")
    assert (kernel.package, Path(kernel.path).read_bytes()) == (ARM64, VMLINUZ_10)
    state = cache / "apt" / "arm64"
    for call in apt.calls:
        # apt.conf(5): where what is kept, and for which architecture.
        assert " -o APT::Architecture=arm64 " in call
        assert f" -o Dir::State={state} " in call
        assert f" -o Dir::State::Lists={state}/lists " in call
        assert f" -o Dir::Cache={state}/cache " in call
    words = [call.split() for call in apt.calls]
    assert [word for line in words for word in line if word in ("update", "download")] == [
        "update",
        "download",
    ]


def test_kernel_of_this_architecture_is_fetched_with_the_systems_state(apt: FakeApt) -> None:
    fetch_kernel("debian")
    assert not any("Dir::" in call or "APT::Architecture" in call for call in apt.calls)


def test_lists_of_another_architecture_that_cannot_be_fetched_are_told(apt: FakeApt) -> None:
    apt.fail_downloads("E: Could not resolve 'x'\n")
    with pytest.raises(FetchError, match=r"update failed for arm64: Could not resolve 'x'; check"):
        fetch_kernel("debian:6.1-arm64")


def test_sources_without_another_architecture_are_told(apt: FakeApt) -> None:
    apt.lose_lists()
    with pytest.raises(FetchError, match="sources have nothing for arm64"):
        fetch_kernel("debian:6.1-arm64")


def test_release_without_the_package_is_told(apt: FakeApt) -> None:
    with pytest.raises(FetchError, match=r"apt knows no package whose name matches .*6"):
        fetch_kernel("debian:6.12")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Failed to fetch http://x/y.deb  Could not connect to x:80", "check the network"),
        ("Failed to fetch http://x/y.deb  404  Not Found", "run `apt-get update`"),
        ("Failed to fetch http://x/y.deb  write (28: No space left on device)", "make room in"),
    ],
)
def test_failed_download_says_what_apt_said_and_what_to_do(
    apt: FakeApt, cache: Path, said: str, remedy: str
) -> None:
    apt.fail_downloads(f"W: something else\nE: {said}\nE: Some files failed\n")
    with pytest.raises(FetchError) as caught:
        fetch_kernel("debian")
    assert said in str(caught.value)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((cache / "kernels").iterdir()) == []


def test_wrong_checksum_is_refused(apt: FakeApt) -> None:
    apt.add_package(CLOUD_10, "6.1.10-1", {"boot/vmlinuz-10": VMLINUZ_10}, sha256="0" * 64)
    with pytest.raises(FetchError, match=r"6\.1\.10-1 has SHA-256 [0-9a-f]{64}, expected 0{64};"):
        fetch_kernel("debian")
    assert cached_kernel("debian") is None


def test_package_without_the_file_is_refused(apt: FakeApt) -> None:
    apt.add_package(CLOUD_10, "6.1.10-1", {"boot/other": b""})
    with pytest.raises(FetchError, match="has no file that matches boot/vmlinuz-"):
        fetch_kernel("debian")


def test_cache_that_cannot_be_made_is_told(apt: FakeApt, cache: Path) -> None:
    cache.parent.write_text("a file where the directory should be")
    with pytest.raises(FetchError, match=r"cannot be written: Not a directory; .*XDG_CACHE_HOME"):
        fetch_kernel("debian")


# Paths and names.


def test_existing_file_wins_over_a_name(
    apt: FakeApt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "debian").write_bytes(b"")
    assert resolve_kernel("debian") == "debian"
    assert apt.calls == []


def test_what_has_a_slash_is_a_path(apt: FakeApt) -> None:
    assert resolve_kernel("./debian") == "./debian"
    assert apt.calls == []


def test_name_is_resolved_to_the_cached_file(apt: FakeApt) -> None:
    assert resolve_kernel("debian:6.1") == fetch_kernel("debian").path


@pytest.mark.parametrize(
    ("name", "file_name"),
    [
        ("embedded", "kernel.elf"),
        ("embedded:elf", "kernel.elf"),
        ("embedded:bzimage", "kernel.bzimage"),
    ],
)
def test_embedded_kernel_has_names(name: str, file_name: str) -> None:
    assert resolve_kernel(name) == embedded.path(file_name)


def test_shipped_manifest_is_the_one_of_the_sources() -> None:
    source = Path(__file__).parents[2] / "kernels" / "manifest.toml"
    assert Path(embedded.path("manifest.toml")).read_bytes() == source.read_bytes()


def test_manifest_names_are_unique_and_in_order() -> None:
    entries = list_kernels()
    names = [name for entry in entries for name in (entry.name, *entry.aliases)]
    assert len(set(names)) == len(names)
    source = Path(embedded.path("manifest.toml")).read_text()
    assert [entry.name for entry in entries] == list(tomllib.loads(source)["kernels"])


# The command.


def test_command_prints_the_path_alone(apt: FakeApt, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--path-only", "debian", "debian:6.1"]) == 0
    path = fetch_kernel("debian").path
    assert capsys.readouterr() == (f"{path}\n{path}\n", "")


def test_command_lists_what_is_fetched(apt: FakeApt, capsys: pytest.CaptureFixture[str]) -> None:
    fetch_kernel("debian")
    assert main(["fetch", "--list"]) == 0
    output = capsys.readouterr().out
    assert "debian:6.1-cloud = debian = debian:6.1\n" in output
    assert "fetched: 6.1.9-1\n" in output
    assert output.count("not fetched yet") == sum(not k.built for k in list_kernels()) - 1


def test_command_verifies(apt: FakeApt, capsys: pytest.CaptureFixture[str]) -> None:
    fetch_kernel("debian")
    assert main(["fetch", "--verify", "debian"]) == 0
    assert "checksum right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no kernel's name was given"),
        (["--list", "debian"], "--list goes with no names"),
        (["--update", "--verify", "debian"], "--update and --verify were both given"),
    ],
)
def test_command_refuses_what_makes_no_sense(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_progress_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda fd: False)
    assert cli_fetch.progress_on_stderr() is None


def test_progress_shows_sizes_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "isatty", lambda fd: True)
    progress = cli_fetch.progress_on_stderr()
    assert progress is not None
    progress("package", 3 << 19, 3 << 20)
    progress("package", 3 << 20, 3 << 20)
    assert capsys.readouterr().err == (
        "\rfetching package: 1.5 of 3.0 MiB\rfetching package: 3.0 of 3.0 MiB\n"
    )


def test_modules_of_a_kernel_come_as_an_archive_once(apt: FakeApt) -> None:
    apt.add_package(
        CLOUD_10,
        "6.1.10-1",
        {
            "boot/vmlinuz-10": VMLINUZ_10,
            "lib/modules/10/kernel/fs/a.ko": b"a",
            "lib/modules/10/kernel/fs/b.ko": b"b",
            "lib/modules/10/kernel/net/c.ko": b"c",
        },
    )
    kernel = fetch_kernel("debian")
    path = fetch_kernel_modules(kernel, r"lib/modules/[^/]+/kernel/fs/[^/]+\.ko")
    with tarfile.open(path) as archive:
        found = {os.path.basename(name): archive.extractfile(name) for name in archive.getnames()}
        assert {name: file.read() for name, file in found.items() if file} == {
            "a.ko": b"a",
            "b.ko": b"b",
        }
    calls = apt.calls
    assert fetch_kernel_modules(kernel, r"lib/modules/[^/]+/kernel/fs/[^/]+\.ko") == path
    assert apt.calls == calls


def test_modules_of_another_version_than_the_kernel_are_refused(apt: FakeApt) -> None:
    apt.add_package(CLOUD_10, "6.1.10-2", {"boot/vmlinuz-10": VMLINUZ_10, "lib/a.ko": b"a"})
    kernel = fetch_kernel("debian")._replace(version="6.1.10-1")
    with pytest.raises(FetchError, match=r"has .* 6\.1\.10-2 now, .* is 6\.1\.10-1, .*--update"):
        fetch_kernel_modules(kernel, r"lib/.*\.ko")
