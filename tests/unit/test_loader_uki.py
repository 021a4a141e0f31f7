"""Unified kernel images: which sections count, and each fault."""

from __future__ import annotations

import pytest
from builders.pe import Pe, Section, uki

from pyvmm.errors import KernelImageError
from pyvmm.loader.uki import is_uki, parse, tidy_cmdline

KERNEL = Section(b".linux", b"kernel")


def refusal(image: bytes) -> str:
    """The rule that ``image`` breaks."""
    with pytest.raises(KernelImageError) as caught:
        parse(memoryview(image))
    assert "\n" not in str(caught.value)
    return caught.value.rule


def test_sections_are_found() -> None:
    image = uki(
        b"kernel", initrd=b"\x00rd", cmdline=b"a=1\n", osrel=b"ID=x\n", uname=b"6.1", splash=b"BM"
    )
    assert is_uki(memoryview(image))
    parts = parse(memoryview(image))
    assert (bytes(parts.linux), bytes(parts.initrd or b"")) == (b"kernel", b"\x00rd")
    assert image[parts.linux_offset :].startswith(b"kernel")
    assert (parts.cmdline, parts.osrel, parts.uname) == (b"a=1\n", b"ID=x\n", b"6.1")


def test_sections_other_than_linux_may_be_missing() -> None:
    parts = parse(memoryview(uki(b"kernel")))
    assert bytes(parts.linux) == b"kernel"
    assert parts[3:] == (None, None, None, None)


def test_empty_initrd_is_none() -> None:
    assert parse(memoryview(uki(b"kernel", initrd=b""))).initrd is None


def test_text_ends_at_a_nul() -> None:
    assert parse(memoryview(uki(b"kernel", cmdline=b"quiet\x00\x00junk"))).cmdline == b"quiet"


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"MZ",
        b"MZ" + bytes(100),
        Pe([Section(b".text")]).build(),
        Pe([Section(b".linux2")]).build(),
        uki(b"kernel")[:0x180],
        b"\x7fELF" + uki(b"kernel")[4:],
    ],
)
def test_what_has_no_linux_section_is_no_uki(image: bytes) -> None:
    assert not is_uki(memoryview(image))


def test_first_profile_replaces_what_is_before_it() -> None:
    image = Pe(
        [
            KERNEL,
            Section(b".cmdline", b"base"),
            Section(b".profile", b"ID=first"),
            Section(b".cmdline", b"first"),
            Section(b".profile", b"ID=second"),
            Section(b".cmdline", b"second"),
            Section(b".initrd", b"second"),
        ]
    ).build()
    parts = parse(memoryview(image))
    assert (bytes(parts.linux), parts.cmdline, parts.initrd) == (b"kernel", b"first", None)


def test_section_twice_is_refused() -> None:
    cmdlines = [Section(b".cmdline", b"a"), Section(b".cmdline", b"b")]
    assert refusal(Pe([KERNEL, *cmdlines]).build()) == "uki-section-twice"


def test_section_twice_in_a_profile_is_refused() -> None:
    cmdlines = [Section(b".profile"), Section(b".cmdline", b"a"), Section(b".cmdline", b"b")]
    assert refusal(Pe([KERNEL, *cmdlines]).build()) == "uki-section-twice"


def test_sections_that_are_not_used_may_be_there_twice() -> None:
    trees = [Section(b".dtb", b"a"), Section(b".dtb", b"b")]
    assert bytes(parse(memoryview(Pe([KERNEL, *trees]).build())).linux) == b"kernel"


def test_empty_kernel_is_refused() -> None:
    assert refusal(uki(b"")) == "uki-linux"


def test_kernel_of_another_profile_is_none() -> None:
    image = Pe([Section(b".profile"), Section(b".profile"), KERNEL]).build()
    assert refusal(image) == "uki-linux"


@pytest.mark.parametrize("name", [b".linux", b".initrd", b".cmdline"])
def test_section_that_is_cut_off_is_refused(name: bytes) -> None:
    sections = [Section(b".linux", b"k"), Section(b".initrd", b"i"), Section(b".cmdline", b"c")]
    next(section for section in sections if section.name == name).offset = 0x10_0000
    assert refusal(Pe(sections).build()) == "pe-section"


@pytest.mark.parametrize(
    ("text", "tidy"),
    [
        (b"quiet\n", b"quiet"),
        (b"\n a=1\nb=2\t c \n", b"a=1 b=2  c"),
        (b"name=\xc3\xa9", b"name=\xc3\xa9"),
        (b"\n", b""),
    ],
)
def test_command_line_is_tidied_as_the_stub_does_it(text: bytes, tidy: bytes) -> None:
    assert tidy_cmdline(text) == tidy
