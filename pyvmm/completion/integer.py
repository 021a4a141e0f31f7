"""Instructions on general registers, but for BMI (bmi.py): SDM 2, each under its name.

Flags that the manuals leave undefined are left as they were.
"""

from __future__ import annotations

from pyvmm.completion import state as s
from pyvmm.completion.operation import Operation
from pyvmm.completion.state import CF, DF, OF, STATUS_FLAGS, ZF, Fault, Unhandled

# CRC-32C, bits reversed: the polynomial 0x11EDC6F41 (SDM 2A CRC32).
_CRC32C_REVERSED = 0x82F6_3B78


def popcnt(op: Operation) -> Operation:
    """The number of bits set."""
    source = op.read(1)
    return op.write(0, source.bit_count()).set_flags(STATUS_FLAGS, 0 if source else ZF)


def lzcnt(op: Operation) -> Operation:
    """The number of zero bits above the highest set."""
    source = op.read(1)
    return _count(op, source, 8 * op.size_bytes(1) - source.bit_length())


def tzcnt(op: Operation) -> Operation:
    """The number of zero bits below the lowest set."""
    source = op.read(1)
    lowest = (source & -source).bit_length() - 1
    return _count(op, source, lowest if source else 8 * op.size_bytes(1))


def _count(op: Operation, source: int, count: int) -> Operation:
    flags = (0 if source else CF) | (0 if count else ZF)
    return op.write(0, count).set_flags(CF | ZF, flags)


def movbe(op: Operation) -> Operation:
    """Move, bytes reversed."""
    swapped = op.read(1).to_bytes(op.size_bytes(1), "big")
    return op.write(0, int.from_bytes(swapped, "little"))


def bswap(op: Operation) -> Operation:
    """Reverse a register's bytes."""
    swapped = op.read(0).to_bytes(op.size_bytes(0), "big")
    return op.write(0, int.from_bytes(swapped, "little"))


def mov(op: Operation) -> Operation:
    """Move between registers of any kind and memory, as all of MOVNTI, MOVD, MOVDQA do it.

    What is too long is cut, what is too short has zeros above it. That some of them go around the
    cache is nothing that can be seen.
    """
    return op.write(0, op.read(1))


def crc32(op: Operation) -> Operation:
    """Add the source to a CRC-32C."""
    crc = op.read(0) & 0xFFFF_FFFF
    for byte in op.read(1).to_bytes(op.size_bytes(1), "little"):
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CRC32C_REVERSED if crc & 1 else 0)
    return op.write(0, crc)


def adcx(op: Operation) -> Operation:
    """Add with CF as the carry, in and out."""
    return _add_with(op, CF)


def adox(op: Operation) -> Operation:
    """Add with OF as the carry, in and out."""
    return _add_with(op, OF)


def _add_with(op: Operation, carry: int) -> Operation:
    total = op.read(0) + op.read(1) + (1 if op.state.rflags & carry else 0)
    carried = total >> 8 * op.size_bytes(0)
    return op.write(0, total).set_flags(carry, carry if carried else 0)


def cmpxchg8b(op: Operation) -> Operation:
    """Compare EDX:EAX with memory; if equal store ECX:EBX, else load.

    Memory is written in both cases: what a write would fault at, faults.
    """
    expected = op.gpr32(s.RDX) << 32 | op.gpr32(s.RAX)
    found = op.read(0)
    if found == expected:
        return op.write(0, op.gpr32(s.RCX) << 32 | op.gpr32(s.RBX)).set_flags(ZF, ZF)
    return op.write(0, found).set_edx_eax(found).set_flags(ZF, 0)


def cmpxchg16b(op: Operation) -> Operation:
    """The same with RDX:RAX and RCX:RBX. The operand must be aligned: the table sees to that."""
    gpr = op.state.gpr
    found = op.read(0)
    if found == gpr[s.RDX] << 64 | gpr[s.RAX]:
        return op.write(0, gpr[s.RCX] << 64 | gpr[s.RBX]).set_flags(ZF, ZF)
    op = op.write(0, found).set_gpr(s.RAX, found & (1 << 64) - 1).set_gpr(s.RDX, found >> 64)
    return op.set_flags(ZF, 0)


def nothing(op: Operation) -> Operation:
    """Fences, prefetches, cache lines written back; NOP.

    The guest's memory is coherent with all that we do between two of its instructions.
    """
    return op


def undefined(_op: Operation) -> Operation:
    """UD0, UD1: #UD, for which they are there."""
    raise Fault.undefined_opcode()


def cld(op: Operation) -> Operation:
    """String instructions go upwards. KVM knows it; we need it at a breakpoint of ours."""
    return op.set_flags(DF, 0)


def int_n(op: Operation) -> Operation:
    """INT n: the next thing that happens is interrupt n."""
    if op.state.cpl:
        raise Unhandled("INT in user mode: whether it may is for the gate to say")
    return op._replace(interrupt=op.read(0))


def int3(op: Operation) -> Operation:
    """INT3: the next thing that happens is #BP."""
    return op._replace(interrupt=3)
