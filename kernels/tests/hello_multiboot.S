/*
 * A Multiboot kernel: says on COM1 what it was told, then powers off.
 *
 *      cmdline: the command line
 *      module: a module's string = the module's first line
 *      loader: the loader's name
 *
 * Multiboot Specification 0.6.96: EAX is 0x2badb002, EBX points to the information.
 */

        .section .note.GNU-stack, "", @progbits

        .text
        .code32
        .balign 4
header:
        .long   0x1badb002
        .long   0x3                     /* page-aligned modules, memory information */
        .long   -(0x1badb002 + 0x3)

        .globl  _start
_start:
        cmpl    $0x2badb002, %eax
        jne     off
        movl    %ebx, %ebp
        movl    $stack_top, %esp

        movl    $cmdline, %esi
        call    print
        testl   $0x4, (%ebp)            /* flags: cmdline is there */
        jz      off
        movl    16(%ebp), %esi
        call    print_line

        testl   $0x8, (%ebp)            /* flags: mods_count and mods_addr are there */
        jz      name
        movl    20(%ebp), %edi          /* mods_count */
        movl    24(%ebp), %ebx          /* mods_addr: mod_start, mod_end, string, 0 */
modules:
        testl   %edi, %edi
        jz      name
        movl    $module, %esi
        call    print
        movl    8(%ebx), %esi
        call    print
        movl    $equals, %esi
        call    print
        movl    (%ebx), %esi
        call    print_line
        addl    $16, %ebx
        subl    $1, %edi
        jmp     modules
name:
        movl    $loader, %esi
        call    print
        movl    64(%ebp), %esi          /* boot_loader_name */
        call    print_line
off:
        movl    $0x604, %edx            /* PM1a control */
        movl    $0x2000, %eax           /* SLP_EN */
        outw    %ax, %dx
1:      cli
        hlt
        jmp     1b

/* The text at ESI up to a NUL or a newline, and a newline. */
print_line:
        call    print
        movl    $newline, %esi
        /* goes on */

/* The text at ESI up to a NUL, or, not included, a newline that is not the first byte. */
print:
        movb    (%esi), %al
1:      testb   %al, %al
        jz      3f
        movb    %al, %cl
        movl    $0x3fd, %edx            /* LSR */
2:      inb     %dx, %al
        testb   $0x20, %al              /* LSR.THRE: there is room for a byte */
        jz      2b
        movb    %cl, %al
        movl    $0x3f8, %edx            /* THR */
        outb    %al, %dx
        addl    $1, %esi
        movb    (%esi), %al
        cmpb    $10, %al
        jne     1b
3:      ret

cmdline:        .asciz "cmdline: "
module:         .asciz "module: "
equals:         .asciz " = "
loader:         .asciz "loader: "
newline:        .asciz "\n"

        .balign 16
        .fill   256
stack_top:
