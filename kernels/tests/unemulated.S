/*
 * Executes POPCNT in kernel mode, then exits with status 0. Where KVM runs kernel mode through its
 * instruction emulator, which does not know POPCNT, pyvmm executes it.
 */

#include "guest.inc"

        .globl  unemulated
unemulated:
        popcntl %eax, %eax

        movl    $0xf4, %edx             /* debug exit */
        xorl    %eax, %eax
        outb    %al, %dx
1:      cli
        hlt
        jmp     1b
