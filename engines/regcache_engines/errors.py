"""The one exception tree of the project, and the exit code each branch ends a command with.

It lives in the lowest room so that every other room can raise it; `regcache_export.errors` and
`regcache_deploy.errors` re-export it.
"""

from __future__ import annotations


class RegCacheError(Exception):
    """A problem the user can act on. The message says what is wrong, where, and how to mend it."""

    exit_code = 1


class ConfigError(RegCacheError):
    """Usage or configuration: an unknown name, a value out of range, a missing extra."""

    exit_code = 2


class ModelError(RegCacheError):
    """Weights or model: unknown name, missing key, wrong shape, NaN, unsupported feature."""

    exit_code = 3


class UnsupportedEncoderError(ModelError):
    """The encoder does not fit the canonical pre-norm ViT; the message names the feature."""


class DataError(RegCacheError):
    """Images or labels: empty folder, unreadable files, too few images."""

    exit_code = 4


class BundleError(RegCacheError):
    """Plan, ONNX file or bundle: damaged, incomplete, of a newer schema, against the contract."""

    exit_code = 5


class VerificationError(RegCacheError):
    """What runs is not what was simulated, or an accuracy budget is not met."""

    exit_code = 6


class EngineError(RegCacheError):
    """The runtime: missing, of another version, the wrong provider, or it failed."""

    exit_code = 7
