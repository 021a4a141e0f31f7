/*
 * The processor's state from and to a struct state, and instructions between the two: see state.h.
 *
 * Thread-local variables are at %fs:NAME@tpoff in a static program (ELF Handling For Thread-Local
 * Storage, 4.4.6: local exec).
 */

#include "state.h"

#define WANTED(field) %fs:wanted@tpoff+(field)
#define SEEN(field) %fs:seen@tpoff+(field)

	.text

/* void load_state(const struct state *): x87, MXCSR, vector and mask registers. */
	.globl	load_state
	.type	load_state, @function
load_state:
	fninit
	fldcw	FCW(%rdi)
	ldmxcsr	MXCSR(%rdi)
	.irp	n, 7, 6, 5, 4, 3, 2, 1, 0	/* the last is ST(0) */
	fildll	X87 + 8 * \n(%rdi)
	.endr
	cmpl	$32, vector_bytes(%rip)
	je	2f
	ja	3f
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movups	VECTORS + 64 * \n(%rdi), %xmm\n
	.endr
	ret
2:	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovups	VECTORS + 64 * \n(%rdi), %ymm\n
	.endr
	ret
3:	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovups	VECTORS + 64 * \n(%rdi), %zmm\n
	.endr
	.irp	n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	vmovups	VECTORS + 64 * \n(%rdi), %zmm\n
	.endr
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7
	kmovq	MASKS + 8 * \n(%rdi), %k\n
	.endr
	ret

/* void store_state(struct state *): the same back. Then x87, MXCSR are as the ABI has them. */
	.globl	store_state
	.type	store_state, @function
store_state:
	fnstcw	FCW(%rdi)
	stmxcsr	MXCSR(%rdi)
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7
	fistpll	X87 + 8 * \n(%rdi)
	.endr
	fninit
	ldmxcsr	initial_mxcsr(%rip)
	cmpl	$32, vector_bytes(%rip)
	je	2f
	ja	3f
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movups	%xmm\n, VECTORS + 64 * \n(%rdi)
	.endr
	ret
2:	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovups	%ymm\n, VECTORS + 64 * \n(%rdi)
	.endr
	vzeroupper
	ret
3:	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovups	%zmm\n, VECTORS + 64 * \n(%rdi)
	.endr
	.irp	n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	vmovups	%zmm\n, VECTORS + 64 * \n(%rdi)
	.endr
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7
	kmovq	%k\n, MASKS + 8 * \n(%rdi)
	.endr
	vzeroupper
	ret

/* What stands between `before` and `behind` finds the processor in the state `wanted`. */
	.macro	before name
	.globl	around_\name, at_\name, after_\name
	.type	around_\name, @function
around_\name:
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%rsp, WANTED(RSP)
	mov	%fs:0, %rdi
	lea	wanted@tpoff(%rdi), %rdi
	call	load_state
	pushq	WANTED(RFLAGS)
	popfq
	mov	WANTED(RAX), %rax
	mov	WANTED(RCX), %rcx
	mov	WANTED(RDX), %rdx
	mov	WANTED(RBX), %rbx
	mov	WANTED(RBP), %rbp
	mov	WANTED(RSI), %rsi
	mov	WANTED(RDI), %rdi
	.irp	n, 8, 9, 10, 11, 12, 13, 14, 15
	mov	WANTED(8 * \n), %r\n
	.endr
at_\name:
	.endm

	.macro	behind name
after_\name:
	mov	%rax, SEEN(RAX)
	mov	%rcx, SEEN(RCX)
	mov	%rdx, SEEN(RDX)
	mov	%rbx, SEEN(RBX)
	mov	%rsp, SEEN(RSP)
	mov	%rbp, SEEN(RBP)
	mov	%rsi, SEEN(RSI)
	mov	%rdi, SEEN(RDI)
	.irp	n, 8, 9, 10, 11, 12, 13, 14, 15
	mov	%r\n, SEEN(8 * \n)
	.endr
	mov	WANTED(RSP), %rsp
	pushfq
	popq	SEEN(RFLAGS)
	cld
	mov	%fs:0, %rdi
	lea	seen@tpoff(%rdi), %rdi
	call	store_state
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbp
	pop	%rbx
	ret
	.endm

	before	syscall
	syscall
	behind	syscall

	before	breakpoint
	int3
	behind	breakpoint

	before	undefined
	ud2
	behind	undefined

	before	step
	pushfq
	orl	$0x100, (%rsp)	/* TF (SDM 1 3.4.3.3): a trap behind the instruction after POPF */
	popfq
	nop
	behind	step

	before	divide
	div	%rcx
	behind	divide

	before	halt
	hlt
	behind	halt

	before	read
	movb	(%rdi), %al
	behind	read

	before	write
	movb	%al, (%rdi)
	behind	write

	before	jump
	jmp	*%rdi
	behind	jump

	before	loop
1:	lea	-1(%rcx), %rcx
	jrcxz	2f
	jmp	1b
2:
	behind	loop

	before	wait
1:	mov	alarms(%rip), %rcx
	jrcxz	1b
	behind	wait

	.section .rodata
	.balign	4
initial_mxcsr:
	.long	0x1f80			/* psABI 3.4.1 */

	.section .note.GNU-stack, "", @progbits
