"""ACPI: what the machine tells a kernel about itself.

tables   the tables in memory, from the RSDP on: start reading here
dsdt     the devices, as a program in AML
aml      the encoder of AML that dsdt is written with
"""
