/*
 * How an interrupt gets from the CPU to C and back.
 *
 * The CPU pushes SS, RSP, RFLAGS, CS, RIP, and for some exceptions an error code (SDM 3A 6.14).
 * A stub for each vector pushes a zero where the CPU pushed no error code, then the vector, so
 * that every frame looks alike: struct interrupt_frame in interrupts.c.
 */

#include "protocols.h"

/* The exceptions that have an error code: SDM 3A 6.15. One bit for each vector. */
#define HAS_ERROR_CODE  (1 << 8 | 0x1f << 10 | 1 << 17 | 1 << 21 | 3 << 29)

        .text
        .balign 16
        .globl  vector_stubs
vector_stubs:                           /* 16 bytes each: stub n is at vector_stubs + 16 * n */
        .set    vector, 0
        .rept   VECTOR_COUNT
        .balign 16
        .if     vector >= 32 || !(HAS_ERROR_CODE >> vector & 1)
        pushq   $0
        .endif
        pushq   $vector
        jmp     common_stub
        .set    vector, vector + 1
        .endr

common_stub:                            /* save what a C function may change (SysV ABI 3.2.1) */
        pushq   %rax
        pushq   %rcx
        pushq   %rdx
        pushq   %rsi
        pushq   %rdi
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        cld
        movq    %rsp, %rdi
        call    interrupt               /* 16 words are pushed: the stack is aligned */
        popq    %r11
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rdi
        popq    %rsi
        popq    %rdx
        popq    %rcx
        popq    %rax
        addq    $16, %rsp               /* the vector and the error code */
        iretq

        .section .note.GNU-stack, "", @progbits
