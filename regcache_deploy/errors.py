"""The project's exceptions, as seen from this room."""

from regcache_engines.errors import (
    BundleError,
    ConfigError,
    DataError,
    EngineError,
    ModelError,
    RegCacheError,
    UnsupportedEncoderError,
    VerificationError,
)

__all__ = [
    "BundleError",
    "ConfigError",
    "DataError",
    "EngineError",
    "ModelError",
    "RegCacheError",
    "UnsupportedEncoderError",
    "VerificationError",
]
