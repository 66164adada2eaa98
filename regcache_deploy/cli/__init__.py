"""The commands: one file each, nothing but arguments and calls."""
