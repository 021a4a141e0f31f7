"""Any bytes give a LoadedKernel that keeps its promises, or a KernelImageError of one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
from builders import bzimage as bz
from builders.sample_images import (
    BZIMAGE,
    ELF,
    ELF32,
    FOREIGN,
    KERNELS,
    MULTIBOOT,
    UKI,
    WRAPPED,
    ZBOOT,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.config import MachineConfig
from pyvmm.errors import InitrdError, KernelImageError
from pyvmm.explain import as_html, as_json, text
from pyvmm.explain.report import explain
from pyvmm.loader.image import ImageFormat, KernelImage, detect
from pyvmm.loader.initrd import place_initrd
from pyvmm.loader.kaslr import Kaslr
from pyvmm.loader.load import Decompress, LoadedKernel, extract_vmlinux, load_kernel
from pyvmm.memory import GuestMemory
from pyvmm.units import MiB

IMAGES = [*KERNELS, *WRAPPED, *FOREIGN]
# ELF's or zboot's and PE's; bzImage's; the rest of PE's, with its section table.
HEADERS = [range(64 + 3 * 56), range(0x1F1, 0x26C), range(0x80, 0x188 + 4 * 40)]
WAYS: list[dict[str, Any]] = [
    {"decompress": Decompress.HOST},
    {"kaslr": Kaslr(4 * MiB, 0xFFFF_FFFF_8140_0000)},
    {"decompress": Decompress.GUEST},
    {"relocate_by": 0x20_0000},
]

# Enough to meet every check; the same ones in each run.
EXAMPLES = 600
bounded = settings(derandomize=True, deadline=None, database=None, max_examples=EXAMPLES)


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.create(16 * MiB) as memory:
        yield memory


@st.composite
def mutated_images(draw: st.DrawFn) -> bytes:
    """An image with some bytes changed, most of them in its headers, and perhaps cut or grown."""
    image = bytearray(draw(st.sampled_from(IMAGES)))
    anywhere = st.integers(0, len(image) - 1)
    in_header = st.sampled_from(HEADERS).flatmap(lambda header: st.sampled_from(header))
    for _ in range(draw(st.integers(0, 4))):
        position = draw(st.one_of(in_header, in_header, anywhere))
        value = draw(st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8)))
        end = min(position + len(value), len(image))
        image[position:end] = value[: end - position]
    match draw(st.sampled_from(["whole", "whole", "cut", "grown"])):
        case "cut":
            del image[draw(anywhere) :]
        case "grown":
            image += draw(st.binary(max_size=64))
    return bytes(image)


def check_promises(kernel: LoadedKernel, memory: GuestMemory) -> None:
    assert kernel.placements
    for placement in kernel.placements:
        assert kernel.start_gpa <= placement.base_gpa
        assert placement.end_gpa <= kernel.end_gpa
        assert placement.base_gpa >= 0x10_0000
        assert memory.contains(placement.base_gpa, placement.size_bytes)
    entries = (
        *(kernel.linux64_entry_gpa, kernel.linux32_entry_gpa),
        *(kernel.pvh_entry_gpa, kernel.multiboot_entry_gpa),
    )
    # An ELF32 file may be without a way in; that is told when a protocol is chosen.
    assert any(entries) or kernel.format is ImageFormat.ELF
    for entry in entries:
        assert entry is None or any(p.base_gpa <= entry < p.end_gpa for p in kernel.placements)
    if kernel.setup_header is not None:
        assert len(kernel.setup_header.raw) <= 0x290 - 0x1F1  # boot_params has no more room


def attempt(image: KernelImage, memory: GuestMemory, way: dict[str, Any]) -> LoadedKernel | str:
    """The loaded kernel, or why it is none. Any other exception fails the test."""
    try:
        return load_kernel(image, memory, **way)
    except KernelImageError as error:
        return str(error)


def try_to_boot(data: bytes, memory: GuestMemory) -> None:
    image = KernelImage.from_bytes(data)
    for way in WAYS:
        kernel = attempt(image, memory, way)
        if isinstance(kernel, str):
            assert kernel.startswith("<bytes>: ")
            assert "\n" not in kernel
            continue
        check_promises(kernel, memory)
        try:
            initrd = place_initrd(bytes(0x1234), memory, kernel)
        except InitrdError:
            continue
        assert initrd is not None
        assert kernel.end_gpa <= initrd.base_gpa
    for operation in (detect, extract_vmlinux):
        try:
            operation(image)
        except KernelImageError:
            pass


@bounded
@given(mutated_images())
def test_mutated_image_is_loaded_or_refused(memory: GuestMemory, data: bytes) -> None:
    try_to_boot(data, memory)


@bounded
@given(
    st.sampled_from(
        [
            b"",
            b"\x7fELF\x02\x01\x01",
            b"MZ",
            b"\x1f\x8b",
            b"PK\x03\x04",
            ELF[:120],
            BZIMAGE[:0x26C],
            ELF32[:148],
            MULTIBOOT[:32],
            UKI[:0x188],
            ZBOOT[:0x40],
            b"\x28\xb5\x2f\xfd",
            b"\x02\x21\x4c\x18",
            b"\x5d\x00\x00",
        ]
    ),
    st.binary(max_size=2048),
)
def test_arbitrary_bytes_are_loaded_or_refused(
    memory: GuestMemory, start: bytes, rest: bytes
) -> None:
    try_to_boot(start + rest, memory)


@settings(bounded, max_examples=EXAMPLES // 2)
@given(st.sampled_from(bz.COMPRESSIONS), st.data())
def test_mutated_payload_is_loaded_or_refused(
    memory: GuestMemory, name: str, data: st.DataObject
) -> None:
    payload = bytearray(bz.compress(name, ELF))
    for _ in range(data.draw(st.integers(1, 3))):
        # Most of a stream's structure is at its beginning and end.
        position = data.draw(
            st.one_of(
                st.integers(0, min(40, len(payload) - 1)),
                st.integers(max(0, len(payload) - 40), len(payload) - 1),
                st.integers(0, len(payload) - 1),
            )
        )
        payload[position] = data.draw(st.integers(0, 255))
    try_to_boot(bz.bzimage(bytes(payload)), memory)


@settings(bounded, max_examples=EXAMPLES // 2)
@given(mutated_images(), st.sampled_from(Decompress))
def test_mutated_image_is_explained(data: bytes, decompress: Decompress) -> None:
    config = MachineConfig(kernel="kernel", memory_bytes=16 * MiB, decompress=decompress)
    report = explain(KernelImage.from_bytes(data), config)
    json.loads(as_json.render(report))
    ElementTree.fromstring(as_html.render(report))
    lines = text.render(report, width=80).splitlines()
    assert [line for line in lines if len(line) > 80 or not line.isprintable()] == []
