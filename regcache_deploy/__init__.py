"""W8A8 for vision encoders: search, simulation and all commands; torch comes where it is needed."""

__version__ = "0.2.0"
