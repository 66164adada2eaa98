"""Write files and folders whole or not at all."""

from regcache_engines.files import (
    atomic_write_bytes,
    clear_leftovers,
    sha256_bytes,
    sha256_file,
    staged_folder,
)

__all__ = ["atomic_write_bytes", "clear_leftovers", "sha256_bytes", "sha256_file", "staged_folder"]
