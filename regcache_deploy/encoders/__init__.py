"""One description, one forward pass, one adapter per family."""

from .canonical import Encoder, FloatNumerics, Numerics
from .regcache import RegCache, RegCacheConfig

__all__ = ["Encoder", "FloatNumerics", "Numerics", "RegCache", "RegCacheConfig"]
