size_t last_zero(const uint8_t *table, size_t words);
size_t apply_relocations(uint8_t *kernel, size_t kernel_bytes, uint64_t link_address,
                         const uint8_t *table, size_t words, size_t width, uint64_t delta);
