"""Processor architectures."""
