"""The console as text, and as pexpect users know it."""

from __future__ import annotations

import pexpect
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.console import Console, SerialInput
from pyvmm.testing.console import ConsoleSpawn
from pyvmm.testing.text import TextFilter, plain_text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"one\r\ntwo\r\r\nthree\n", "one\ntwo\nthree\n"),
        (b"\x1b[1;32mgreen\x1b[0m \x1b[2J\x1b[H", "green "),
        (b"\x1b[6n/ # \x1b[J", "/ # "),
        (b"\x1b]0;title\x07x\x1b]0;title\x1b\\y", "xy"),
        ("grün\r".encode(), "grün"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"cut \x1b[3", "cut \x1b[3"),
    ],
)
def test_text_is_what_a_person_sees(data: bytes, text: str) -> None:
    assert plain_text(data) == text


@given(st.data())
def test_text_does_not_depend_on_how_it_is_cut(data: st.DataObject) -> None:
    pieces = st.sampled_from([b"\r\n", b"\x1b[31m", "ä".encode(), b"a", b"\x1b]0;t\x07", b"\x1b"])
    whole = b"".join(data.draw(st.lists(pieces, max_size=12)))
    cut = data.draw(st.integers(0, len(whole)))
    parts = TextFilter()
    text = parts.feed(whole[:cut]) + parts.feed(whole[cut:]) + parts.feed(b"", final=True)
    assert text == plain_text(whole)


@pytest.fixture
def console() -> Console:
    return Console(SerialInput())


def test_expect_finds_what_came_before_it_was_called(console: Console) -> None:
    spawn = ConsoleSpawn(console, 5)
    console.take(b"Linux version 6.1\r\nready\r\n")
    assert spawn.expect(["nothing", r"version ([\d.]+)\n"]) == 1
    assert spawn.match[1] == "6.1"
    assert spawn.before == "Linux "
    spawn.expect_exact("ready")


def test_silence_is_a_timeout_and_the_end_is_eof(console: Console) -> None:
    spawn = ConsoleSpawn(console, 5)
    console.take(b"some")
    with pytest.raises(pexpect.TIMEOUT):
        spawn.expect("more", timeout=0.05)
    console.end()
    with pytest.raises(pexpect.EOF):
        spawn.expect("more")
    assert spawn.before == "some"
    assert not spawn.isalive()


def test_what_is_sent_reaches_the_guest() -> None:
    received = bytearray()

    class Serial:
        on_room = None

        def receive(self, data: bytes) -> int:
            received.extend(data)
            return len(data)

    serial = SerialInput()
    console = Console(serial)
    serial.connect(Serial())  # type: ignore[arg-type]
    spawn = ConsoleSpawn(console, 5)
    spawn.sendline("ls")
    spawn.sendcontrol("c")
    assert bytes(received) == b"ls\n\x03"
