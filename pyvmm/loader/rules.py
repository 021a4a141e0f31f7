"""Every rule that a kernel image, initrd or command line can break, by a key of its own.

The key is the ``rule`` of the error that is raised, for programs; the text is for people, and says
where the rule comes from. It is here and not beside the checks because a boot that goes well needs
none of it.
"""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    """What must hold, and the specification that says so."""

    text: str
    source: str


_ELF_HEADER = "System V gABI, chapter 4"
_ELF_LOADING = "System V gABI, chapter 5"
_PSABI = "x86-64 psABI 4.1"
_MULTIBOOT = "Multiboot Specification 0.6.96, 3.1"
_LAYOUT = "pyvmm, arch/x86_64/layout.py"
_MEMORY = "pyvmm, memory.py"
_BOOT_RST = "Documentation/arch/x86/boot.rst, "

RULES: dict[str, Rule] = {
    # Files
    "file-read": Rule("the whole file can be read while it is loaded", "POSIX, pread()"),
    # ELF
    "elf-magic": Rule("the file begins with 7f 45 4c 46", _ELF_HEADER),
    "elf-header-size": Rule(
        "the file holds the whole ELF header: 64 bytes, or 52 of ELF32", _ELF_HEADER
    ),
    "elf-class": Rule("EI_CLASS is ELFCLASS64 or ELFCLASS32", _ELF_HEADER),
    "elf-data": Rule("EI_DATA is ELFDATA2LSB or ELFDATA2MSB", _ELF_HEADER),
    "elf-big-endian": Rule("x86 is little-endian: EI_DATA is ELFDATA2LSB", _PSABI),
    "elf-machine": Rule("e_machine is EM_X86_64, or EM_386", _PSABI),
    "elf-class-machine": Rule("x86-64 goes with ELF64 here, i386 with ELF32", _PSABI),
    "elf-type": Rule("e_type is ET_EXEC or ET_DYN", _ELF_HEADER),
    "elf-phnum-none": Rule("there is a program header", _ELF_LOADING),
    "elf-phnum-many": Rule("there are at most 256 program headers", "pyvmm, loader/elf.py"),
    "elf-phentsize": Rule(
        "e_phentsize is the size of a program header: 56, or 32 of ELF32",
        _ELF_LOADING,
    ),
    "elf-phoff": Rule("the program headers are behind the ELF header", _ELF_LOADING),
    "elf-phdrs-truncated": Rule("the file holds all program headers", _ELF_LOADING),
    "elf-interpreter": Rule("a kernel asks for no interpreter (PT_INTERP)", _ELF_LOADING),
    "elf-filesz": Rule("p_filesz is not above p_memsz", _ELF_LOADING),
    "elf-address-overflow": Rule("a segment ends within the address space", _ELF_LOADING),
    "elf-segment-truncated": Rule("the file holds all of each segment", _ELF_LOADING),
    "elf-segment-low": Rule(
        "no segment is below the first MiB, where the tables for booting are",
        _LAYOUT,
    ),
    "elf-segment-overlap": Rule("no two segments overlap in physical memory", _ELF_LOADING),
    "elf-no-segment": Rule("there is a PT_LOAD with something in it", _ELF_LOADING),
    "elf-segment-ram": Rule("each segment is in guest RAM", _MEMORY),
    "elf-entry-outside": Rule(
        "e_entry is in a segment, by physical or virtual address", _ELF_HEADER
    ),
    "elf-entry-low": Rule(
        "e_entry is not below the lowest address that a segment may have", "pyvmm, loader/elf.py"
    ),
    "elf-entry-high": Rule(
        "the entry is below 4 GiB, which is what is mapped on entry",
        _BOOT_RST + "64-bit Boot Protocol",
    ),
    # Multiboot
    "multiboot-flags": Rule(
        "the kernel demands nothing but page-aligned modules and memory information",
        _MULTIBOOT,
    ),
    "multiboot-addresses": Rule(
        "a kernel that is no ELF file gives addresses (bit 16 of flags)",
        _MULTIBOOT,
    ),
    "multiboot-load-addr": Rule(
        "load_addr is not above header_addr, and not before the file",
        _MULTIBOOT,
    ),
    "multiboot-load-end-addr": Rule(
        "load_end_addr is above load_addr, and the file holds what is between",
        _MULTIBOOT,
    ),
    "multiboot-bss-end-addr": Rule("bss_end_addr is not below load_end_addr", _MULTIBOOT),
    "multiboot-entry-addr": Rule("entry_addr is in what is loaded", _MULTIBOOT),
    "multiboot-load-low": Rule(
        "nothing is loaded below the first MiB, where the tables for booting are",
        _LAYOUT,
    ),
    "multiboot-ram": Rule("all that is loaded is in guest RAM", _MEMORY),
    "multiboot-info-size": Rule("the information fits into its page", _LAYOUT),
    # PVH
    "pvh-start-info-size": Rule("start_info, modules and memory map fit into their page", _LAYOUT),
    # bzImage
    "bzimage-payload-elf": Rule("the payload is an ELF file", _BOOT_RST + "payload_offset"),
    "bzimage-address-low": Rule("the kernel is at 1 MiB or above", _BOOT_RST + "pref_address"),
    "bzimage-address-high": Rule(
        "the protected-mode kernel is below 4 GiB", _BOOT_RST + "code32_start"
    ),
    "bzimage-init-size": Rule(
        "init_size bytes from where it runs are RAM", _BOOT_RST + "init_size"
    ),
    # Entering
    "protocol-entry": Rule(
        "the image has an entry for the protocol that was asked for", "pyvmm, boot/"
    ),
}
