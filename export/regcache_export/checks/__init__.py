"""Static checks of a graph against a runtime's rules, before anything is built."""

from .report import (
    BlockVerdict,
    Finding,
    Report,
    check_file,
    check_tensorrt,
    require_tensorrt_rules,
)
from .rules import RULES

__all__ = [
    "RULES",
    "BlockVerdict",
    "Finding",
    "Report",
    "check_file",
    "check_tensorrt",
    "require_tensorrt_rules",
]
