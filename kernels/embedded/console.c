/*
 * The console: a 16550 UART at COM1.
 *
 * Sending is polled, a FIFO at a time: the status is read once for each 16 bytes, not once for
 * each byte, since under a hypervisor every port access may cost as much as a thousand
 * instructions. Receiving is by interrupt, into a ring that never loses a byte: when it is full
 * we stop listening, which leaves the sender waiting, until the reader has caught up.
 *
 * Registers: PC16550D datasheet, table 2, "Summary of Registers".
 */

#include "kernel.h"

#define COM1            0x3f8

#define RBR             (COM1 + 0)      /* receive buffer (read) */
#define THR             (COM1 + 0)      /* transmitter holding (write) */
#define DLL             (COM1 + 0)      /* divisor latch, low, while LCR.DLAB is set */
#define DLM             (COM1 + 1)      /* divisor latch, high, likewise */
#define IER             (COM1 + 1)      /* interrupt enable */
#define FCR             (COM1 + 2)      /* FIFO control (write) */
#define LCR             (COM1 + 3)      /* line control */
#define MCR             (COM1 + 4)      /* modem control */
#define LSR             (COM1 + 5)      /* line status */

#define IER_ERBFI       0x01            /* interrupt when there is received data */
#define FCR_ENABLE      0x01
#define LCR_8N1         0x03
#define LCR_DLAB        0x80
#define MCR_DTR         0x01
#define MCR_RTS         0x02
#define MCR_OUT2        0x08            /* on a PC, connects the UART to its IRQ line */
#define LSR_DR          0x01            /* data ready */
#define LSR_TEMT        0x40            /* the FIFO and the shift register are empty */

#define FIFO_BYTES      16
#define RING_BYTES      1024            /* a power of two */

static char fifo[FIFO_BYTES];
static u32 fifo_count;

static volatile char ring[RING_BYTES];
static volatile u32 ring_head, ring_tail;       /* count up for ever; used modulo RING_BYTES */
static volatile u8 listening;

static void drain_receiver(void)
{
        while (inb(LSR) & LSR_DR) {
                if (ring_head - ring_tail == RING_BYTES) {
                        listening = 0;
                        outb(IER, 0);
                        return;
                }
                ring[ring_head++ % RING_BYTES] = inb(RBR);
        }
}

void console_init(void)
{
        outb(IER, 0);
        outb(LCR, LCR_DLAB);
        outb(DLL, 1);                   /* 115200 bits per second */
        outb(DLM, 0);
        outb(LCR, LCR_8N1);
        outb(FCR, FCR_ENABLE);
}

/*
 * Ready to be sent to. Only now, when the PIC is set up: a line that is already high then makes
 * no edge, and the interrupt would never come.
 */
void console_listen(void)
{
        outb(MCR, MCR_DTR | MCR_RTS | MCR_OUT2);
        listening = 1;
        outb(IER, IER_ERBFI);
}

void console_interrupt(void)
{
        drain_receiver();
}

char console_getc(void)
{
        char c;

        if (ring_head == ring_tail)
                flush();                /* what we are about to be answered to */
        interrupts_off();
        while (ring_head == ring_tail) {
                interrupts_on_and_wait();
                interrupts_off();
        }
        c = ring[ring_tail++ % RING_BYTES];
        if (!listening && ring_head == ring_tail) {
                listening = 1;
                outb(IER, IER_ERBFI);   /* raises the interrupt again if data is waiting */
        }
        interrupts_on();
        return c;
}

void flush(void)
{
        if (!fifo_count)
                return;
        outsb(THR, fifo, fifo_count);
        fifo_count = 0;
        while (!(inb(LSR) & LSR_TEMT))
                ;
}

void print_char(char c)
{
        if (c == '\n')
                print_char('\r');
        fifo[fifo_count++] = c;
        if (fifo_count == FIFO_BYTES || c == '\n')
                flush();
}

void print(const char *text)
{
        while (*text)
                print_char(*text++);
}

void print_hex(u64 value)
{
        print("0x");
        for (int shift = 60; shift >= 0; shift -= 4)
                print_char("0123456789abcdef"[value >> shift & 15]);
}

void print_number(u64 value)
{
        if (value >= 10)
                print_number(value / 10);
        print_char('0' + value % 10);
}
