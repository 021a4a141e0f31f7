/*
 * The two loops of kaslr.py, a quarter of a million turns each time that a kernel is moved.
 *
 * Numbers are little-endian and may lie unaligned. They are put together from their bytes, which
 * is right on any host; with the width known when compiling it becomes one instruction on most.
 */

#include <stddef.h>
#include <stdint.h>

static uint32_t load32(const uint8_t *from)
{
    return from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

static void store32(uint8_t *to, uint32_t value)
{
    to[0] = value;
    to[1] = value >> 8;
    to[2] = value >> 16;
    to[3] = value >> 24;
}

static void add32(uint8_t *number, uint64_t delta)
{
    store32(number, load32(number) + (uint32_t)delta);
}

static void add64(uint8_t *number, uint64_t delta)
{
    uint64_t sum = (load32(number) | (uint64_t)load32(number + 4) << 32) + delta;

    store32(number, sum);
    store32(number + 4, sum >> 32);
}

/* The index of the last of the 32-bit `words` of `table` that is 0; `words` if none is. */
size_t last_zero(const uint8_t *table, size_t words)
{
    for (size_t i = words; i-- > 0;)
        if (load32(table + 4 * i) == 0)
            return i;
    return words;
}

/*
 * Add `delta` to the number of `width` bytes, 4 or 8, at each of the addresses in `table`: 32-bit
 * words that stand for their sign extension. The kernel was linked so that its first byte is at
 * `link_address`, and lies at `kernel`.
 *
 * Returns the index of the first address whose number is not inside the kernel, where it stops;
 * `words` if there is none.
 */
size_t apply_relocations(uint8_t *kernel, size_t kernel_bytes, uint64_t link_address,
                         const uint8_t *table, size_t words, size_t width, uint64_t delta)
{
    if (kernel_bytes < width)
        return 0;
    for (size_t i = 0; i < words; i++) {
        uint64_t address = (uint64_t)(int64_t)(int32_t)load32(table + 4 * i);
        uint64_t offset = address - link_address; /* huge, if the address is below the kernel */

        if (offset > kernel_bytes - width)
            return i;
        if (width == 8)
            add64(kernel + offset, delta);
        else
            add32(kernel + offset, delta);
    }
    return words;
}
