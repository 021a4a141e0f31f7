"""A devicetree for a minimal virtual machine of arm64 or riscv64: what a kernel needs to start.

    /                        model, compatible
    /chosen                  bootargs, stdout-path, the initrd's place
    /memory@...              a node for each region of RAM
    /cpus/cpu@...            the processors
    /psci                    how to start and stop them (arm64)
    /timer                   the processors' own timers (arm64)
    /...interrupt-controller GICv3 (arm64), PLIC (riscv64)
    /serial@...              PL011 (arm64), 16550A (riscv64)

The addresses are those of the "virt" machines that QEMU has for both, which other VMMs keep to in
part, so that what is written here can be tried there. A riscv64 guest has its timer and the start
of its processors from the SBI, which is no device.

Specifications: Devicetree Specification 0.4; the bindings in Documentation/devicetree/bindings:
arm/cpus.yaml, arm/psci.yaml, timer/arm,arch_timer.yaml, interrupt-controller/arm,gic-v3.yaml,
serial/pl011.yaml, riscv/cpus.yaml, interrupt-controller/sifive,plic-1.0.0.yaml, serial/8250.yaml.

The library is ``fdt`` (pip install 'pyvmm[fdt]'); nothing that runs guests here needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyvmm.errors import CmdlineError, HostError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvmm.loader.load import Placement

ARM64_RAM_GPA = 0x4000_0000
RISCV64_RAM_GPA = 0x8000_0000

# base, size
_GIC_DISTRIBUTOR = (0x0800_0000, 0x1_0000)
_GIC_REDISTRIBUTORS = (0x080A_0000, 0xF6_0000)
_PL011 = (0x0900_0000, 0x1000)
_PLIC = (0x0C00_0000, 0x60_0000)
_UART_16550A = (0x1000_0000, 0x100)

_PL011_SPI = 1
_PL011_CLOCK_HZ = 24_000_000
_UART_16550A_SOURCE = 10
_UART_16550A_CLOCK_HZ = 3_686_400
_PLIC_SOURCES = 95
_RISCV_TIMEBASE_HZ = 10_000_000

# dt-bindings/interrupt-controller/arm-gic.h and irq.h
_GIC_SPI, _GIC_PPI = 0, 1
_LEVEL_HIGH, _LEVEL_LOW = 4, 8
# arm,arch_timer.yaml: secure, non-secure, virtual and hypervisor timer; BSA 1.0, 3.8.1: their PPIs.
_TIMER_PPIS = (13, 14, 11, 10)

# Privileged architecture, scause: a supervisor's external interrupt. The machine mode's does not
# come to a guest, and the PLIC's binding has a number for that.
_S_EXTERNAL, _NOT_CONNECTED = 9, 0xFFFF_FFFF

_CLOCK_PHANDLE, _CONTROLLER_PHANDLE, _FIRST_CPU_PHANDLE = 1, 2, 16


class VirtMachine(NamedTuple):
    """What differs from one machine to the next."""

    memory: Sequence[tuple[int, int]]
    """Its regions of RAM: base and size."""
    cpus: int = 1
    bootargs: str = ""
    initrd: Placement | None = None


def build_arm64(machine: VirtMachine) -> bytes:
    """The devicetree, flattened, of an arm64 machine: GICv3, PL011, PSCI by HVC.

    Raises CmdlineError if the command line is none that fits into a devicetree, HostError if the
    library is not there.
    """
    fdt, root = _begin("linux,dummy-virt", f"/serial@{_PL011[0]:x}", machine)
    root.append(fdt.PropWords("interrupt-parent", _CONTROLLER_PHANDLE))

    cpus = _add(fdt, root, "cpus", {"#address-cells": 1, "#size-cells": 0})
    for index in range(machine.cpus):
        # MPIDR_EL1's affinity: GICv3 takes 16 processors at its lowest level.
        mpidr = index >> 4 << 8 | index & 0xF
        _add(fdt, cpus, f"cpu@{mpidr:x}", {
            "device_type": "cpu", "compatible": "arm,armv8", "reg": mpidr, "enable-method": "psci",
        })  # fmt: skip
    _add(fdt, root, "psci", {"compatible": ["arm,psci-1.0", "arm,psci-0.2"], "method": "hvc"})

    timers = [word for ppi in _TIMER_PPIS for word in (_GIC_PPI, ppi, _LEVEL_LOW)]
    _add(fdt, root, "timer",
         {"compatible": "arm,armv8-timer", "interrupts": timers, "always-on": None})  # fmt: skip
    _add(fdt, root, f"interrupt-controller@{_GIC_DISTRIBUTOR[0]:x}", {
        "compatible": "arm,gic-v3",
        "reg": [*_range(_GIC_DISTRIBUTOR), *_range(_GIC_REDISTRIBUTORS)],
        "interrupt-controller": None, "#interrupt-cells": 3, "#address-cells": 0,
        "phandle": _CONTROLLER_PHANDLE,
    })  # fmt: skip
    _add(fdt, root, "apb-pclk", {
        "compatible": "fixed-clock", "#clock-cells": 0, "clock-frequency": _PL011_CLOCK_HZ,
        "phandle": _CLOCK_PHANDLE,
    })  # fmt: skip
    _add(fdt, root, f"serial@{_PL011[0]:x}", {
        "compatible": ["arm,pl011", "arm,primecell"], "reg": _range(_PL011),
        "interrupts": [_GIC_SPI, _PL011_SPI, _LEVEL_HIGH],
        "clocks": [_CLOCK_PHANDLE, _CLOCK_PHANDLE], "clock-names": ["uartclk", "apb_pclk"],
    })  # fmt: skip
    return _flatten(fdt, root)


def build_riscv64(machine: VirtMachine) -> bytes:
    """The devicetree, flattened, of a riscv64 machine: PLIC, 16550A.

    Raises what ``build_arm64`` does.
    """
    fdt, root = _begin("riscv-virtio", f"/soc/serial@{_UART_16550A[0]:x}", machine)

    cpus = _add(fdt, root, "cpus", {
        "#address-cells": 1, "#size-cells": 0, "timebase-frequency": _RISCV_TIMEBASE_HZ,
    })  # fmt: skip
    contexts = []
    for index in range(machine.cpus):
        cpu = _add(fdt, cpus, f"cpu@{index:x}", {
            "device_type": "cpu", "compatible": "riscv", "reg": index, "status": "okay",
            "riscv,isa": "rv64imafdc", "mmu-type": "riscv,sv48",
        })  # fmt: skip
        phandle = _FIRST_CPU_PHANDLE + index
        _add(fdt, cpu, "interrupt-controller", {
            "compatible": "riscv,cpu-intc", "interrupt-controller": None, "#interrupt-cells": 1,
            "#address-cells": 0, "phandle": phandle,
        })  # fmt: skip
        contexts += [phandle, _NOT_CONNECTED, phandle, _S_EXTERNAL]

    soc = _add(fdt, root, "soc", {
        "compatible": "simple-bus", "#address-cells": 2, "#size-cells": 2, "ranges": None,
    })  # fmt: skip
    _add(fdt, soc, f"interrupt-controller@{_PLIC[0]:x}", {
        "compatible": ["sifive,plic-1.0.0", "riscv,plic0"], "reg": _range(_PLIC),
        "interrupts-extended": contexts, "interrupt-controller": None, "#interrupt-cells": 1,
        "#address-cells": 0, "riscv,ndev": _PLIC_SOURCES, "phandle": _CONTROLLER_PHANDLE,
    })  # fmt: skip
    _add(fdt, soc, f"serial@{_UART_16550A[0]:x}", {
        "compatible": "ns16550a", "reg": _range(_UART_16550A),
        "interrupt-parent": _CONTROLLER_PHANDLE, "interrupts": _UART_16550A_SOURCE,
        "clock-frequency": _UART_16550A_CLOCK_HZ,
    })  # fmt: skip
    return _flatten(fdt, root)


def _begin(compatible: str, stdout_path: str, machine: VirtMachine) -> tuple[Any, Any]:
    """The library, and a root node with what all machines have: chosen and memory."""
    fdt = _import_fdt()
    if not machine.bootargs.isascii() or not machine.bootargs.isprintable():
        raise CmdlineError(
            f"the command line {machine.bootargs!a} cannot be written into a devicetree; expected "
            "printable ASCII only; remove the rest",
            "fdt-bootargs",
        )
    root = fdt.Node("/")
    _set(fdt, root, {
        "#address-cells": 2, "#size-cells": 2, "compatible": compatible, "model": "pyvmm,virt",
    })  # fmt: skip
    chosen = _add(fdt, root, "chosen", {"stdout-path": stdout_path})
    if machine.bootargs:
        _set(fdt, chosen, {"bootargs": machine.bootargs})
    if machine.initrd is not None:
        _set(fdt, chosen, {
            "linux,initrd-start": _cells(machine.initrd.base_gpa),
            "linux,initrd-end": _cells(machine.initrd.end_gpa),
        })  # fmt: skip
    for region in machine.memory:
        _add(fdt, root, f"memory@{region[0]:x}", {"device_type": "memory", "reg": _range(region)})
    return fdt, root


def _flatten(fdt: Any, root: Any) -> bytes:
    tree = fdt.FDT()
    tree.root = root
    flat: bytes = tree.to_dtb(version=17)
    return flat


def _add(fdt: Any, parent: Any, name: str, properties: dict[str, Any]) -> Any:
    node = fdt.Node(name)
    parent.append(node)
    _set(fdt, node, properties)
    return node


def _set(fdt: Any, node: Any, properties: dict[str, Any]) -> None:
    """Give ``node`` properties: text, 32-bit cells, a list of either, or None: just that it is."""
    for name, value in properties.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not values:
            node.append(fdt.Property(name))
        elif isinstance(values[0], str):
            node.append(fdt.PropStrings(name, *values))
        else:
            node.append(fdt.PropWords(name, *values))


def _cells(value: int) -> list[int]:
    """A 64-bit number as two cells."""
    return [value >> 32, value & 0xFFFF_FFFF]


def _range(base_size: tuple[int, int]) -> list[int]:
    """A base and a size as four cells."""
    return [*_cells(base_size[0]), *_cells(base_size[1])]


def _import_fdt() -> Any:
    try:
        import fdt
    except ImportError:
        raise HostError(
            "to write a devicetree a library is needed that is not installed; "
            "pip install 'pyvmm[fdt]'"
        ) from None
    return fdt
