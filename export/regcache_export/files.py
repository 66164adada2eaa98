"""Write files whole or not at all."""

from regcache_engines.files import atomic_write_bytes, sha256_bytes, sha256_file

__all__ = ["atomic_write_bytes", "sha256_bytes", "sha256_file"]
