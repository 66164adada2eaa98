"""`python -m regcache_deploy`: the same as `regcache`."""

from .cli.entry import regcache

if __name__ == "__main__":
    regcache()
