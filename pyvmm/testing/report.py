"""What people need to see of a guest that failed: its processors, its stack, what it is made of."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kvm_bindings import KvmError
from pyvmm.debug.kallsyms import find_symbols
from pyvmm.debug.registers import format_registers
from pyvmm.debug.symbols import from_elf, from_system_map
from pyvmm.errors import GuestMemoryError, ImageError
from pyvmm.loader.files import read_regular
from pyvmm.loader.image import ImageFormat
from pyvmm.units import PAGE_SIZE, format_size

if TYPE_CHECKING:
    from kvm_bindings import Vcpu
    from pyvmm.debug.symbols import SymbolTable
    from pyvmm.machine import Machine

_STACK_BYTES = 2 * PAGE_SIZE
_FRAMES = 24


def kernel_symbols(machine: Machine) -> SymbolTable | None:
    """The symbols of the guest's kernel, or None if nothing tells them.

    Its own kallsyms are right wherever it has moved itself to; a kernel without them may be a
    vmlinux with symbols, or lie beside its System.map.
    """
    kernel = machine.kernel
    image = machine.memory.read(kernel.start_gpa, kernel.end_gpa - kernel.start_gpa)
    found = find_symbols(image)
    if found is None:
        path = machine.config.kernel
        system_map = os.path.join(os.path.dirname(path), "System.map")
        try:
            if kernel.format is ImageFormat.ELF:
                found = from_elf(memoryview(read_regular(path, "a vmlinux", ImageError)))
            if not found and os.path.exists(system_map):
                text = read_regular(system_map, "a System.map", ImageError)
                found = from_system_map(text.decode("ascii", "replace"))
        except ImageError:
            return None
    return found or None


def describe_vcpus(machine: Machine) -> str:
    """Registers, symbolised RIP and backtrace of each vCPU of a machine that stands still.

    A machine that runs is paused for it.
    """
    is_running = machine.wait(0) is None and not machine.paused
    if is_running:
        machine.pause()
    try:
        symbols = kernel_symbols(machine)
        return "\n".join(
            f"vCPU {index}:\n{_describe_vcpu(machine, vcpu, symbols)}"
            for index, vcpu in enumerate(machine.vcpus)
        )
    except KvmError as error:
        return f"the registers could not be read: {error}"
    finally:
        if is_running:
            machine.resume()


def _describe_vcpu(machine: Machine, vcpu: Vcpu, symbols: SymbolTable | None) -> str:
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    lines = [format_registers(regs, sregs)]
    if symbols is not None:
        lines.append(f"rip is in {symbols.describe(regs.rip) or 'no function of the kernel'}")
        found = backtrace(machine, vcpu, symbols)
        lines += ["return addresses on the stack, as a guess:", *(f"  {line}" for line in found)]
    return "\n".join(f"  {line}" for line in "\n".join(lines).splitlines())


def backtrace(machine: Machine, vcpu: Vcpu, symbols: SymbolTable) -> list[str]:
    """What on the stack looks like a return address into a function, from the innermost outwards.

    Without frame pointers or unwind tables that is all there is to go by: old values are among
    them, as in the lines with a question mark of Linux's own backtraces.
    """
    text_start, text_end = symbols.find("_stext"), symbols.find("_etext")
    if text_start is None or text_end is None:
        return []
    found = []
    rsp = vcpu.get_regs().rsp & ~7
    for page_gva in range(rsp & ~(PAGE_SIZE - 1), rsp + _STACK_BYTES, PAGE_SIZE):
        translation = vcpu.translate(page_gva)
        if not translation.valid:
            break
        try:
            page = machine.memory.read(translation.physical_address, PAGE_SIZE)
        except GuestMemoryError:
            break
        start = max(rsp - page_gva, 0)
        for offset in range(start, PAGE_SIZE, 8):
            value = int.from_bytes(page[offset : offset + 8], "little")
            if text_start <= value < text_end:
                found.append(symbols.describe(value) or f"{value:#x}")
                if len(found) == _FRAMES:
                    return found
    return found


def describe_machine(machine: Machine) -> str:
    """What the machine was made of, and how it was entered."""
    config = machine.config
    lines = [
        f"kernel {config.kernel} ({machine.kernel.format.value}, by {machine.protocol.value})",
        f"cmdline {config.cmdline}",
        f"initrd {config.initrd or 'none'}",
        f"{config.cpus} CPUs, {format_size(config.memory_bytes)}, {machine.exits} exits",
    ]
    return "\n".join(["the machine:", *(f"  {line}" for line in lines)])
