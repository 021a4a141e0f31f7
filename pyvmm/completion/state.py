"""The processor's state, as far as completed instructions read or change it; and exceptions.

A State is a value. An instruction makes a new one, which is written to the vCPU as a whole.

Flags: SDM 1 3.4.3; control registers: SDM 3A 2.5; vectors: SDM 3A table 6-1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pyvmm.completion.xstate import XState

# RFLAGS
CF = 1 << 0
PF = 1 << 2
AF = 1 << 4
ZF = 1 << 6
SF = 1 << 7
DF = 1 << 10
OF = 1 << 11
RF = 1 << 16
AC = 1 << 18
STATUS_FLAGS = CF | PF | AF | ZF | SF | OF

CR0_PE = 1 << 0
CR0_MP = 1 << 1
CR0_EM = 1 << 2
CR0_TS = 1 << 3
CR0_NE = 1 << 5
CR0_WP = 1 << 16
CR0_PG = 1 << 31

CR4_TSD = 1 << 2
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_OSFXSR = 1 << 9
CR4_UMIP = 1 << 11
CR4_LA57 = 1 << 12
CR4_FSGSBASE = 1 << 16
CR4_PCIDE = 1 << 17
CR4_OSXSAVE = 1 << 18
CR4_SMEP = 1 << 20
CR4_SMAP = 1 << 21
CR4_PKE = 1 << 22

EFER_LMA = 1 << 10
EFER_NXE = 1 << 11

# Exceptions
UD = 6
NM = 7
SS = 12
GP = 13
PAGE_FAULT = 14
MF = 16

# The order of general registers and of segment registers in instruction encodings, SDM 2A 2.1.5
# and table 3-1.
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
ES, CS, SEGMENT_SS, DS, FS, GS = range(6)


class Segment(NamedTuple):
    """A segment register with its hidden part."""

    selector: int = 0
    base: int = 0
    limit: int = 0xFFFF_FFFF
    type: int = 3
    """The descriptor's type field, SDM 3A table 3-1."""
    db: int = 0
    """Default operation size: 32 bits; of an expand-down segment: it reaches to 4 GiB."""


class DescriptorTable(NamedTuple):
    """Where a table of segment descriptors is: GDT or LDT."""

    base: int = 0
    limit: int = 0
    selector: int = 0
    """The LDT's own, in the GDT."""


class Clock(NamedTuple):
    """What RDTSCP and RDPID tell: IA32_TSC and IA32_TSC_AUX."""

    tsc: int = 0
    tsc_aux: int = 0


class State(NamedTuple):
    """A processor between two instructions, or after one that has just been executed.

    ``clock`` and ``xstate`` are None unless the instruction needs them: reading them is dear.
    """

    gpr: tuple[int, ...]
    rip: int
    rflags: int
    cr0: int
    cr3: int
    cr4: int
    efer: int
    cpl: int
    is_64bit: bool
    """64-bit mode: not compatibility mode, nor one without EFER.LMA."""
    segments: tuple[Segment, ...]
    gdt: DescriptorTable = DescriptorTable()
    ldt: DescriptorTable = DescriptorTable()
    tr_selector: int = 0
    clock: Clock | None = None
    xstate: XState | None = None


class Fault(Exception):  # noqa: N818 - the manuals' name
    """The instruction raises this exception instead of completing; nothing of it happens."""

    def __init__(self, vector: int, error_code: int | None = None, cr2: int | None = None) -> None:
        super().__init__(f"exception {vector}")
        self.vector = vector
        self.error_code = error_code
        self.cr2 = cr2

    @classmethod
    def general_protection(cls) -> Fault:
        """#GP(0)."""
        return cls(GP, 0)

    @classmethod
    def undefined_opcode(cls) -> Fault:
        """#UD."""
        return cls(UD)


class Unhandled(Exception):  # noqa: N818 - of ours, and no error of the guest's
    """This instruction cannot be completed; the message says why, for people."""
