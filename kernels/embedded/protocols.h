/* Numbers that start.S and the C code share. */

#define PROTOCOL_PVH            0
#define PROTOCOL_LINUX32        1
#define PROTOCOL_LINUX64        2

#define KERNEL_CS               0x08    /* selectors into the GDT in start.S */
#define KERNEL_DS               0x10

#define VECTOR_COUNT            48      /* 32 exceptions, then 16 IRQ lines of the two PICs */
