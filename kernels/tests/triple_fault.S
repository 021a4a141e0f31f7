/* Loads an IDT of no entries, then faults: nothing is there to deliver even the double fault. */

#include "guest.inc"

        movl    $empty_idt, %edx
        lidt    (%rdx)
        ud2

empty_idt:
        .word   0                       /* limit */
        .quad   0                       /* base; 32-bit mode reads four bytes of it */
