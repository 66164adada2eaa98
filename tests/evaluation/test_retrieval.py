"""Image-text retrieval: recall by hand, and captions files with faults."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from regcache_deploy.data.captions import read_captions
from regcache_deploy.errors import DataError
from regcache_deploy.evaluation.metrics import retrieval_metrics
from regcache_deploy.evaluation.records import compare_captions


def test_recall_by_hand():
    images = torch.eye(3)
    # texts 0, 1 describe image 0; text 2 image 1; text 3 image 2
    texts = torch.tensor([[9.0, 1, 0], [2, 8, 1], [0, 9, 1], [9, 0, 8]])
    owner = torch.tensor([0, 0, 1, 2])
    metrics, hits = retrieval_metrics(images, texts, owner, (1, 2))
    assert hits["image_retrieval"].tolist() == [True, False, True, False]
    assert metrics["image_retrieval_recall@1"] == 0.5
    assert metrics["image_retrieval_recall@2"] == 1.0
    # image 0 finds text 0; image 1 text 2 before text 1; image 2 text 3
    assert metrics["text_retrieval_recall@1"] == 1.0


def test_an_image_finds_any_of_its_texts_and_more_ks_never_hurt():
    torch.manual_seed(0)
    images, texts = torch.randn(20, 8), torch.randn(100, 8)
    metrics, _ = retrieval_metrics(images, texts, torch.arange(100) // 5, (1, 5, 100))
    for side in ("image_retrieval_recall", "text_retrieval_recall"):
        values = [metrics[f"{side}@{k}"] for k in (1, 5, 100)]
        assert values == sorted(values)
        assert values[-1] == 1.0


def test_runners_are_compared_image_by_image():
    owner = torch.arange(100) // 5  # twenty images of five captions
    reference = torch.zeros(100, dtype=torch.bool)
    found = reference.clone()
    found[:15] = True  # three images gain all five
    reference[20], found[21] = True, True  # one loses a caption and gains another
    pair, line = compare_captions(reference, found, owner, seed=0)
    assert (pair.n, pair.lost, pair.won) == (20, 0, 3)
    assert pair.p_value == pytest.approx(0.25)
    assert pair.difference == pytest.approx(15.0)
    assert pair.low == 0.0 or pair.low == 5.0
    # mean square 3 / 20: 0.15 * (1.96 / 0.005)^2
    assert line.startswith("3 of 20 images won or lost captions on balance")
    assert line.endswith("takes 23049 images")
    same, line = compare_captions(found, found, owner, seed=0)
    assert (same.n, same.low, same.high, same.p_value) == (20, 0, 0, 1)
    assert line.startswith("no image of 20 won or lost captions")


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    names = [f"{i:012d}.jpg" for i in range(3)]
    for name in names:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "val2017" / name)
    document = {
        "images": [{"id": 10 + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": 10 + i % 3, "caption": f"text {i}"} for i in range(18)],
    }
    return tmp_path, document


def write(root, document):
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(document))


def test_the_layout_of_coco_data_root(coco):
    root, document = coco
    write(root, document)
    pairs = read_captions(root)
    assert len(pairs.images) == 3
    assert len(pairs.texts) == 15, "five captions an image, as in clip_benchmark"
    assert pairs.texts[:2] == ("text 0", "text 3")
    assert pairs.image_of_text == (0,) * 5 + (1,) * 5 + (2,) * 5
    assert len(read_captions(root, limit=2).images) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": []}, "holds no captions"),
        ({"annotations": [{"image_id": 10, "caption": "  "}]}, "holds no captions"),
        ({"annotations": [{"image_id": 99, "caption": "x"}]}, "which is not listed"),
        ({"annotations": None}, "is no captions file"),
        ({"images": [{"id": 10}]}, "is no captions file"),
        ({"annotations": [{"image_id": {"id": 10}, "caption": "x"}]}, "is no captions file"),
        ({"annotations": [{"image_id": None, "caption": "x"}]}, "is no captions file"),
        ({"annotations": [{"image_id": 10, "caption": None}]}, "None is no text"),
        ({"images": [{"id": 10, "file_name": None}]}, "None is no text"),
        ({"images": [{"id": i, "file_name": "x" * 300} for i in (10, 11, 12)]}, "is in none of"),
        ({"images": [{"id": i, "file_name": "a\0b"} for i in (10, 11, 12)]}, "is in none of"),
        ({"annotations": [{"image_id": 10, "caption": float("nan")}]}, "nan is no text"),
        ({"images": [{"id": 10, "file_name": n} for n in "ab"]}, "10 is there twice, as a and b"),
        ({"images": [{"id": 10, "file_name": "../x.jpg"}]}, "outside of its data set"),
        ({"images": [{"id": 10, "file_name": "/x.jpg"}]}, "outside of its data set$"),
    ],
)
def test_faults_of_a_captions_file(coco, change, message):
    root, document = coco
    write(root, document | change)
    with pytest.raises(DataError, match=message):
        read_captions(root)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"caption,file\n", b"\xff\xfe{"])
def test_an_empty_or_foreign_captions_file(coco, content):
    root, _ = coco
    (root / "annotations" / "captions_val2017.json").write_bytes(content)
    with pytest.raises(DataError, match="is no captions file: expected COCO's"):
        read_captions(root)


def test_a_missing_image_is_no_smaller_set(coco):
    root, document = coco
    write(root, document)
    (root / "val2017" / f"{1:012d}.jpg").unlink()
    with pytest.raises(DataError, match=r"000000000001.jpg is missing"):
        read_captions(root)
    with pytest.raises(DataError, match=r"annotations/captions_val2017\.json"):
        read_captions(root / "val2017")
