/* Halts with interrupts off: only an NMI could wake it, and none comes. */

#include "guest.inc"

1:      cli
        hlt
        jmp     1b
