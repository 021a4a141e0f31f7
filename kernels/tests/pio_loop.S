/*
 * COUNT writes of a byte to PORT, then an exit through the debug-exit port with status 0.
 * What a round trip to the VMM costs is the time of this guest divided by COUNT.
 */

#ifndef COUNT
#define COUNT 100000
#endif
#ifndef PORT
#define PORT 0x80                       /* POST codes: a port where a byte does nothing */
#endif

#include "guest.inc"

        movl    $COUNT, %ecx
        movl    $PORT, %edx
        movl    $0x55, %eax
1:      outb    %al, %dx
        subl    $1, %ecx
        jnz     1b

        movl    $0xf4, %edx             /* debug exit */
        xorl    %eax, %eax
        outb    %al, %dx
1:      cli
        hlt
        jmp     1b
