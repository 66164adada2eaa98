"""Another image size than the weights were trained at is told, and so are pixels never seen."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders.load import load_model
from regcache_deploy.encoders.open_clip_checkpoint import load_checkpoint
from regcache_deploy.encoders.size_warnings import warn_of_cut_pixels
from regcache_deploy.encoders.transformers_blocks import resample_positions
from tests.tiny_plans import tame_encoder

VISION = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 8, "vocab_size": 30, "width": 32, "heads": 2, "layers": 1}


@pytest.fixture(autouse=True)
def level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


def test_cut_pixels(caplog: pytest.LogCaptureFixture) -> None:
    spec = tame_encoder().spec
    warn_of_cut_pixels("x", spec)
    assert not caplog.messages
    warn_of_cut_pixels("x", replace(spec, image_size=(37, 24), patch_size=(8, 8)))
    assert "of images of 37 x 24 pixels, 32 x 24 are seen" in caplog.text


def test_positions_of_transformers(caplog: pytest.LogCaptureFixture) -> None:
    table = torch.randn(16, 4)
    assert resample_positions(table, (4, 4)) is table
    assert not caplog.messages
    resample_positions(table, (2, 3))
    assert "the position embedding of 4 x 4 is resampled to 2 x 3" in caplog.text


def test_a_checkpoint_of_open_clip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = import_open_clip().model.CLIP
    torch.save(clip(16, VISION, TEXT).state_dict(), tmp_path / "x.pt")
    load_checkpoint(clip(16, VISION, TEXT), tmp_path / "x.pt")
    assert not caplog.messages
    load_checkpoint(clip(16, VISION | {"image_size": 64}, TEXT), tmp_path / "x.pt")
    assert "the position embedding of 5 tokens is resampled to 17" in caplog.text


def test_another_grid_of_as_many_patches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """open_clip takes 2 x 2 positions for 1 x 4, and the weights cannot say which they were."""
    clip = import_open_clip().model.CLIP
    torch.save(clip(16, VISION, TEXT).state_dict(), tmp_path / "x.pt")
    load_checkpoint(clip(16, VISION | {"image_size": (16, 64)}, TEXT), tmp_path / "x.pt")
    assert "of 4 patches is taken as 1 x 4 as it is" in caplog.text


def test_a_model_of_timm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    timm = pytest.importorskip("timm")
    path = tmp_path / "x.pt"
    torch.save(timm.create_model("test_vit").state_dict(), path)
    load_model("timm/test_vit", str(path))
    assert not any("resampled" in message for message in caplog.messages)
    load_model("timm/test_vit", str(path), (96, 96))
    assert "position embedding of 160 x 160 is resampled to 96 x 96" in caplog.text
