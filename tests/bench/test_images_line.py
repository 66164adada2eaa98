"""`regcache bench` of several bundles says which images each of them ran."""

from __future__ import annotations

from regcache_deploy.cli.bench import _images


def test_images_are_named_by_bundle_where_they_differ() -> None:
    own, random = "its certificate's images", "random pixels"
    assert _images({"a": own}) == _images({"a": own, "b": own}) == own
    assert _images({"a": own, "b": random}) == f"a: {own}; b: {random}"
