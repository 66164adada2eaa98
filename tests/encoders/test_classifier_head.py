"""A supervised timm model's own classifier as the head: the same classes as timm itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from regcache_deploy.compat import import_open_clip
from regcache_deploy.data.class_names import imagenet_names
from regcache_deploy.encoders.classifier_head import ClassifierHead, imagenet_classifier
from regcache_deploy.encoders.load import load_model
from regcache_deploy.errors import ConfigError, DataError, ModelError
from regcache_deploy.evaluation.objective import zero_shot_predictions
from regcache_deploy.quantization.plan import make_plan
from regcache_deploy.quantization.simulate import Calibration, Quantization
from regcache_engines.engine import zero_shot
from regcache_export.bundle import write_bundle

import_open_clip()
import timm  # noqa: E402

DEIT = "deit_tiny_patch16_224"


@torch.no_grad()
def spread(model: Any) -> None:
    """Fresh classifiers are near zero; give this one rows of unlike lengths and a bias."""
    generator = torch.Generator().manual_seed(3)
    head = model.head
    head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
    head.weight.mul_(torch.rand(len(head.weight), 1, generator=generator) + 0.2)
    head.bias.copy_(3 * torch.randn(head.bias.shape, generator=generator))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    torch.manual_seed(0)
    model = timm.create_model(DEIT).eval()
    spread(model)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save({"state_dict": model.state_dict()}, path)
    return path, model


@torch.no_grad()
def test_top1_is_timms_own(classifier: tuple[Path, Any], tmp_path: Path) -> None:
    path, model = classifier
    loaded = load_model(f"timm/{DEIT}", str(path), classifier=True)
    images = torch.randn(12, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    want = model(images)
    assert len(set(want.argmax(dim=1).tolist())) > 1, "the images must not all be of one class"
    features = loaded.encoder(images)
    torch.testing.assert_close(features, want, atol=1e-3, rtol=1e-4)
    assert loaded.text_head is not None
    head = loaded.text_head(imagenet_names())
    assert torch.equal(zero_shot_predictions(features, head), want.argmax(dim=1))
    scores = zero_shot(features.numpy(), head.numpy(), loaded.logit_scale)
    assert torch.equal(torch.from_numpy(scores).topk(5).indices, want.topk(5).indices)
    # and so is the exported graph's
    pytest.importorskip("onnxruntime")
    from regcache_engines.load import load_engine

    plan = make_plan(
        Calibration(loaded.encoder, Quantization()),
        preprocess=loaded.preprocess,
        text_features=head,
        labels=imagenet_names(),
        logit_scale=loaded.logit_scale,
        provenance={},
    )
    bundle = write_bundle(plan, tmp_path / "t.regcache")
    with load_engine(bundle, threads=1) as engine:
        deployed = engine.infer(images[:2].numpy())
    scores = zero_shot(deployed, head.numpy(), loaded.logit_scale)
    assert scores.argmax(axis=1).tolist() == want[:2].argmax(dim=1).tolist()


@torch.no_grad()
def test_without_it_features_are_what_they_were(classifier: tuple[Path, Any]) -> None:
    path, model = classifier
    loaded = load_model(f"timm/{DEIT}", str(path))
    images = torch.randn(1, 3, 224, 224)
    want = model.forward_head(model.forward_features(images), pre_logits=True)
    assert loaded.text_head is None
    torch.testing.assert_close(loaded.encoder(images), want, atol=1e-4, rtol=1e-4)


def test_some_classes_are_rows_of_all() -> None:
    head = imagenet_classifier("x", 1000)
    names = imagenet_names()
    few = head([names[7], names[3]])
    assert few.argmax(dim=1).tolist() == [7, 3]
    assert few.sum() == 2
    assert head.key(names) != head.key(names[:2])
    with pytest.raises(DataError, match="matches none of the 1000 classes"):
        head(["no such animal", names[0]])
    assert ClassifierHead(("a", "b"))(["b"]).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("ViT-B-32", ConfigError, "supervised models of timm"),
        ("timm/vit_small_patch14_dinov2.lvd142m", ModelError, "no classifier"),
    ],
)
def test_what_has_no_classifier_says_so(name: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        load_model(name, "random:0", classifier=True)


def test_another_set_of_classes_is_refused() -> None:
    with pytest.raises(ModelError, match="a classifier of 21843 classes"):
        imagenet_classifier("timm/x", 21843)
