/*
 * Where the kernel begins: four ways in, one way on.
 *
 *   entered by                     the CPU is in          what it was given
 *   PVH                            32-bit, paging off     EBX = hvm_start_info
 *   Linux 32-bit boot protocol     32-bit, paging off     ESI = boot_params
 *   Linux 64-bit boot protocol     64-bit, paging on      RSI = boot_params
 *
 * Each way leaves the protocol's number in EDI and its table in ESI, then brings the CPU to the
 * same state: long mode, our own GDT, page tables and stack, a zeroed BSS. C code takes over there.
 *
 * The image begins with the 32-bit entry, and the 64-bit entry is 0x200 after it: that is where
 * the Linux boot protocol looks for them (Documentation/arch/x86/boot.rst), so that this code can
 * be a bzImage's protected-mode part as it stands. The PVH entry is named by an ELF note.
 *
 * Left out: relocation (we run where we are linked, at 1 MiB), and the 16-bit real-mode entry.
 */

#include "protocols.h"

/* SDM 3A 2.5, "Control Registers", and 2.2.1, "Extended Feature Enable Register". */
#define CR0_PE          (1 << 0)
#define CR0_PG          (1 << 31)
#define CR4_PAE         (1 << 5)
#define MSR_EFER        0xc0000080
#define EFER_LME        (1 << 8)

/* SDM 3A 4.5, "4-Level Paging and 5-Level Paging". */
#define PAGE_PRESENT    (1 << 0)
#define PAGE_WRITABLE   (1 << 1)
#define PAGE_LARGE      (1 << 7)        /* in a page directory: this entry maps 2 MiB */

/* Xen's public/elfnote.h: the note that holds a kernel's PVH entry point. */
#define XEN_ELFNOTE_PHYS32_ENTRY 18

        .section .note.Xen, "a", @note
        .balign 4
        .long   2f - 1f                 /* size of the name */
        .long   4f - 3f                 /* size of the value */
        .long   XEN_ELFNOTE_PHYS32_ENTRY
1:      .asciz  "Xen"
2:      .balign 4
3:      .long   pvh_entry
4:      .balign 4

        .section .text.start, "ax"
        .code32
        .globl  startup_32
startup_32:                             /* at + 0: the Linux 32-bit boot protocol */
        movl    $PROTOCOL_LINUX32, %edi
        jmp     enter_long_mode

pvh_entry:
        movl    $PROTOCOL_PVH, %edi
        movl    %ebx, %esi

enter_long_mode:                        /* SDM 3A 9.8.5, "Initializing IA-32e Mode" */
        cli
        cld
        movl    $CR4_PAE, %eax
        movl    %eax, %cr4
        movl    $pml4, %eax
        movl    %eax, %cr3
        movl    $MSR_EFER, %ecx
        rdmsr
        orl     $EFER_LME, %eax
        wrmsr
        movl    %cr0, %eax
        orl     $(CR0_PG | CR0_PE), %eax
        movl    %eax, %cr0              /* long mode is active, still in a 32-bit segment */
        lgdt    gdt_descriptor
        ljmp    $KERNEL_CS, $long_mode

        .org    0x200
        .code64
        .globl  startup_64
startup_64:                             /* at + 0x200: the Linux 64-bit boot protocol */
        movl    $PROTOCOL_LINUX64, %edi
        cli
        cld
        movl    $pml4, %eax             /* from the loader's page tables to our own: */
        movq    %rax, %cr3              /* both map this code where it is */
        lgdt    gdt_descriptor
        movl    $stack_top, %esp
        pushq   $KERNEL_CS              /* a far return is how 64-bit code loads CS */
        pushq   $long_mode
        lretq

long_mode:
        movl    $KERNEL_DS, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        xorl    %eax, %eax
        movl    %eax, %fs
        movl    %eax, %gs
        movl    $stack_top, %esp

        movl    %edi, %ebx              /* main(protocol, table), once the BSS is zero. */
        movl    $bss_start, %edi        /* A bzImage carries its payload where our BSS is, */
        movl    $bss_quads, %ecx        /* so we do not leave this to whoever loaded us. */
        rep stosq
        movl    %ebx, %edi
        movl    %esi, %esi              /* zero-extends: we map nothing above 4 GiB */
        call    main
1:      cli
        hlt
        jmp     1b

        .section .rodata
        .balign 8
gdt:                                    /* SDM 3A 3.4.5, "Segment Descriptors" */
        .quad   0
        .quad   0x00af9b000000ffff      /* KERNEL_CS: 64-bit code, present, ring 0 */
        .quad   0x00cf93000000ffff      /* KERNEL_DS: flat data, present, ring 0 */
gdt_end:
gdt_descriptor:
        .word   gdt_end - gdt - 1
        .quad   gdt

/*
 * The page tables are constants: 2048 pages of 2 MiB, each at its own address, make 4 GiB.
 */
        .section .data
        .balign 4096
pml4:   .quad   pdpt + (PAGE_PRESENT | PAGE_WRITABLE)
        .fill   511, 8, 0
pdpt:   .quad   page_directories + 0x0000 + (PAGE_PRESENT | PAGE_WRITABLE)
        .quad   page_directories + 0x1000 + (PAGE_PRESENT | PAGE_WRITABLE)
        .quad   page_directories + 0x2000 + (PAGE_PRESENT | PAGE_WRITABLE)
        .quad   page_directories + 0x3000 + (PAGE_PRESENT | PAGE_WRITABLE)
        .fill   508, 8, 0
page_directories:
        .set    page, 0
        .rept   2048
        .quad   page + (PAGE_PRESENT | PAGE_WRITABLE | PAGE_LARGE)
        .set    page, page + 0x200000
        .endr

        .section .bss
        .balign 16
        .skip   8192
stack_top:

        .section .note.GNU-stack, "", @progbits
