/*
 * Executes FLD1 in kernel mode, then exits with status 0. No kernel does such a thing; where KVM
 * runs kernel mode through its instruction emulator neither that nor pyvmm knows the instruction.
 */

#include "guest.inc"

        .globl  unknown
unknown:
        fld1

        movl    $0xf4, %edx             /* debug exit */
        xorl    %eax, %eax
        outb    %al, %dx
1:      cli
        hlt
        jmp     1b
