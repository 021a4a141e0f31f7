"""Finishing in userspace the instructions that this host's KVM cannot emulate.

Where KVM has no hardware under it, the guest's kernel mode runs in KVM's instruction emulator,
which knows a small part of the instruction set. At an instruction that it does not know KVM_RUN
ends with KVM_EXIT_INTERNAL_ERROR; RIP is still at the instruction. We execute it and run on:

    completer.py    fetch, decode, operands from registers and memory, execute, commit at once
      paging_walk.py  a linear address through the guest's own page tables, or the #PF it gives
      addressing.py   a memory operand's linear address, or the #GP or #SS
      table.py        which function executes which instruction, and what must hold before
        integer.py bmi.py vector.py x87.py xsave.py system.py   those functions
      operation.py    what such a function gets and gives: an instruction, and a processor's state
      xstate.py       the x87 and vector registers, as XSAVE lays them out
      state.py        the rest of the state; exceptions

The functions are pure: one Operation in, another out, or a Fault. They know nothing of KVM and
are tested against the host's processor, which executes the same instruction on the same operands.
No byte of the guest's is executed in this process, and no address of the guest's is dereferenced:
memory is read and written through GuestMemory, by physical address, within bounds.

Only ``completer.py`` talks to a vCPU. Nothing here is imported, the decoder least of all, before
the first instruction that needs it.

Left out: instructions that no kernel was seen to need; single-stepping (RFLAGS.TF) over a
completed instruction; alignment checks (RFLAGS.AC in user mode); protection keys; the debug
registers' data breakpoints. A LOCK prefix holds against other instructions completed here, not
against those that another vCPU executes at the same moment.
"""
