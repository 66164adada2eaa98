"""RoBERTa and XLM-R text towers of open_clip: canonical tower, graph, and text side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regcache_deploy.bundling.text import text_part
from regcache_deploy.compat import import_open_clip
from regcache_deploy.encoders.load_open_clip import _text_side
from regcache_deploy.encoders.roberta_text import from_roberta
from regcache_deploy.encoders.text_encoder import TextEncoder
from regcache_deploy.errors import UnsupportedEncoderError
from regcache_deploy.work.progress import Reporter
from regcache_engines.onnxruntime_session import open_session
from regcache_engines.text import TextTower
from regcache_export.text import build_text_model
from regcache_export.text_spec import TextSpec

open_clip = import_open_clip()
pytest.importorskip("onnxruntime")

PAD, CONTEXT, WORDS = 1, 12, 40


def some_ids(length: int = CONTEXT) -> torch.Tensor:
    ids = torch.randint(4, WORDS, (3, length), generator=torch.Generator().manual_seed(0))
    for row, own in zip(ids, (length, 5, 2), strict=True):
        row[0], row[own - 1], row[own:] = 0, 2, PAD
    return ids


def graph_of(encoder: TextEncoder, ids: torch.Tensor) -> np.ndarray:
    weights = {name: value.numpy() for name, value in encoder.weights.items()}
    session = open_session(build_text_model(encoder.spec, weights).SerializeToString(), threads=1)
    out: np.ndarray = session.run(None, {"input_ids": ids.numpy()})[0]
    return out


def random_encoder(**changes: Any) -> TextEncoder:
    """A tower without a library behind it."""
    values: dict[str, Any] = {
        "vocab_size": WORDS, "context_length": CONTEXT, "width": 16, "depth": 2, "heads": 2,
        "mlp_width": 32, "output_dim": 8, "causal": False, "pooling": "mean", "post_norm": True,
        "pad_id": PAD, "projection_hidden": 12,
    }  # fmt: skip
    spec = TextSpec(**values | changes)
    draw = torch.Generator().manual_seed(1)
    shapes = spec.weight_shapes().items()
    return TextEncoder(spec, {n: 0.3 * torch.randn(s, generator=draw) for n, s in shapes})


@pytest.mark.parametrize(
    "changes", [{}, {"pooling": "first"}, {"projection_hidden": 0}, {"post_norm": False}]
)
def test_the_graph_is_the_tower(changes: dict[str, Any]) -> None:
    encoder, ids = random_encoder(**changes), some_ids()
    expected = encoder(ids)
    assert expected.abs().max() > 0.1
    assert np.abs(graph_of(encoder, ids) - expected.numpy()).max() < 1e-5


def test_filling_changes_nothing() -> None:
    encoder, ids = random_encoder(), some_ids()
    assert encoder.spec.any_length
    short, whole = encoder(ids[1:2, :5]), encoder(ids[1:2])
    assert torch.allclose(short, whole, atol=1e-6)
    assert np.abs(graph_of(encoder, ids[1:2, :5]) - whole.numpy()).max() < 1e-5


def original(kind: str = "Roberta", pooler: str = "mean_pooler", proj: str | None = "mlp") -> Any:
    """open_clip's tower around a small model of transformers, every weight random."""
    transformers = pytest.importorskip("transformers")
    from open_clip.hf_model import HFTextEncoder

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=30, pad_token_id=PAD,
        bos_token_id=0, eos_token_id=2, type_vocab_size=1,
    )  # fmt: skip
    torch.manual_seed(2)
    tower = HFTextEncoder("x", 8, config=config, pooler_type=pooler, proj_type=proj)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_(0.0, 0.3)
    return tower.eval()


@pytest.mark.parametrize("kind", ["Roberta", "XLMRoberta"])
@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_last_hidden_state_pooler"])
@pytest.mark.parametrize("proj", ["mlp", "linear"])
def test_equals_the_original(kind: str, pooler: str, proj: str) -> None:
    tower, ids = original(kind, pooler, proj), some_ids()
    with torch.no_grad():
        expected = tower(ids)
    encoder = from_roberta(tower, CONTEXT)
    assert expected.abs().max() > 0.1
    assert torch.allclose(encoder(ids), expected, atol=1e-5)
    assert np.abs(graph_of(encoder, ids) - expected.numpy()).max() < 1e-4
    shapes = {name: tuple(value.shape) for name, value in encoder.weights.items()}
    assert shapes == encoder.spec.weight_shapes()


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(UnsupportedEncoderError, match="ClsPooler"):
        from_roberta(original(pooler="cls_pooler"), CONTEXT)
    with pytest.raises(UnsupportedEncoderError, match="BertModel of transformers"):
        from_roberta(original("Bert"), CONTEXT)


def test_the_text_side_goes_into_a_bundle(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "photo", "of", "the", "dog", "sea", "."]
    words += [f"w{i}" for i in range(WORDS - len(words))]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip
    fast.save_pretrained(tmp_path / "tokenizer")
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1}
    small = {"context_length": 4, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}
    model = open_clip.CustomTextCLIP(embed_dim=8, vision_cfg=vision, text_cfg=small).eval()
    model.text = original("XLMRoberta")

    class Library:
        @staticmethod
        def get_tokenizer(name: str) -> Any:
            from open_clip.tokenizer import HFTokenizer

            return HFTokenizer(str(tmp_path / "tokenizer"), context_length=CONTEXT)

    side = _text_side(Library, model, "small", ("a photo of the {}.", "{}"), 50.0)
    part = text_part(side, ("dog", "sea"), 8, Reporter(quiet=True))
    assert "left_out" not in part.manifest
    (tmp_path / "text").mkdir()
    for name, data in part.files.items():
        (tmp_path / name).write_bytes(data)
    texts = ["a photo of the dog.", "sea", "a photo of the sea of the dog of the sea of the dog"]
    with TextTower(tmp_path / "text") as tower:
        found = tower.embed(texts)
    expected = torch.nn.functional.normalize(side.features(texts), dim=-1).numpy()
    assert tower.config.context_length == CONTEXT
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    assert ((found * expected).sum(axis=1) > 0.999).all()
