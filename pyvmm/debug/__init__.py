"""Looking into a machine."""
