/* Prints one line on COM1, as a polling driver does, then powers off. */

#include "guest.inc"

        movl    $message, %esi
next:
        movl    $0x3fd, %edx            /* LSR */
wait:
        inb     %dx, %al
        testb   $0x20, %al              /* LSR.THRE: there is room for a byte */
        jz      wait
        movb    (%rsi), %al
        testb   %al, %al
        jz      done
        movl    $0x3f8, %edx            /* THR */
        outb    %al, %dx
        addl    $1, %esi
        jmp     next
done:
        movl    $0x604, %edx            /* PM1a control */
        movl    $0x2000, %eax           /* SLP_EN */
        outw    %ax, %dx
1:      cli
        hlt
        jmp     1b

message:
        .asciz  "hello from a test guest\r\n"
