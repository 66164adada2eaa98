"""Register, hidden states, resume and the search command: what must hold beside the decision."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import planted_vit
import pytest
import torch
from torch import Tensor

from regcache_deploy.cli.main import main
from regcache_deploy.encoders.canonical import Encoder
from regcache_deploy.encoders.open_clip_vit import from_open_clip
from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.errors import ConfigError, DataError
from regcache_deploy.evaluation import FeatureError
from regcache_deploy.evaluation.image_sets import load_image_sets
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.search.clipping import Clipped
from regcache_deploy.search.find import FoundChoice, find_choice
from regcache_deploy.search.register.capture import capture, rank_candidates
from regcache_deploy.search.sensitivity import measure_proxy
from regcache_deploy.search.space import SearchSpace
from regcache_deploy.search.strategies import search
from regcache_deploy.work import cache
from regcache_deploy.work.count import Work
from regcache_deploy.work.progress import Reporter
from regcache_engines.files import atomic_write_bytes
from tests.search.search_helpers import encoder_and_images, problem_for

SMALL = ["--baseline", "naive", "--bits", "W4A4", "--search-images", "48"]
SMALL += ["--calibration-images", "8", "--limit", "4", "-q"]


@lru_cache(maxsize=1)
def made() -> tuple[Encoder, Tensor]:
    return encoder_and_images()


# -- register ---------------------------------------------------------------------------------


def test_candidates_are_the_largest_patches_and_never_cls() -> None:
    encoder, images = made()
    found = rank_candidates(encoder, images.split(5), [1, 2], 2, size=7)
    tokens = encoder.run_blocks(encoder.embed(images), stop=2)
    norms = tokens[:, 1:].abs().amax(-1)
    two_each = norms.topk(2, dim=1).values.flatten().sort(descending=True).values[:7]
    assert [c.score for c in found.by_input[2]] == pytest.approx(two_each.tolist(), rel=1e-5)
    assert all(c.position >= 1 for c in found.by_input[1] + found.by_fc2)
    assert max(sum(c.image == i for c in found.by_input[2]) for i in range(12)) <= 2


def test_rankings_and_their_recall_on_planted_sinks() -> None:
    structure = planted_vit.small()
    planted = planted_vit.build(structure)
    encoder, k = from_open_clip(planted.visual), planted.plant.block
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, structure.image_size, structure.image_size, generator=generator)
    ranking = rank_candidates(encoder, images.split(4), [k - 3, k], k, size=16)
    assert {c.position for c in ranking.by_fc2} <= set(planted.sink_tokens)
    # two of four equal sinks of each image in either ranking: about half are the same ones
    assert ranking.recall(k) >= 0.25
    assert {c.position for c in ranking.by_input[k]} <= set(planted.sink_tokens)
    assert ranking.recall(k - 3) < ranking.recall(k)
    assert ranking.chosen("fc2_input", k - 3) is ranking.by_fc2
    with torch.no_grad():
        tokens = encoder.embed(images)
        proxy = measure_proxy(encoder, lambda rows: tokens[rows], torch.arange(8), 4, Work())
    assert proxy.block == k
    assert proxy.jump > 20


def test_register_is_the_mean_of_the_keys_in_their_own_images() -> None:
    encoder, images = made()
    candidates = rank_candidates(encoder, [images], [1], 1, size=9).by_input[1]
    register = capture(encoder, lambda rows: images[rows], {1: candidates}, 2)[1].register()
    assert sorted(register) == [1, 2, 3]
    tokens = encoder.run_blocks(encoder.embed(images), stop=2)
    chosen = torch.stack([tokens[c.image, c.position] for c in candidates])
    weight = encoder.weights["blocks.2.attn.qkv.weight"][64:128]
    bias = encoder.weights["blocks.2.attn.qkv.bias"][64:128]
    keys = encoder.norm("blocks.2.norm1", chosen) @ weight.T + bias
    got, _ = encoder.prefix_kv(2, register[2])
    assert torch.allclose(got.flatten(), keys.mean(0), atol=1e-5)


def test_solo_register_is_one_token_alone() -> None:
    encoder, images = made()
    candidates = rank_candidates(encoder, [images], [1], 1, size=5).by_input[1]
    found = capture(encoder, lambda rows: images[rows], {1: candidates})[1]
    solo = found.solo_register(encoder)
    token = found.states.mean(0)
    assert torch.allclose(solo[1], encoder.norm("blocks.1.norm1", token), atol=1e-5)
    # attention over itself alone is the identity on its value
    width, w = encoder.spec.width, encoder.weights
    value = solo[1] @ w["blocks.1.attn.qkv.weight"][2 * width :].T
    value = value + w["blocks.1.attn.qkv.bias"][2 * width :]
    token = token + value @ w["blocks.1.attn.out_proj.weight"].T + w["blocks.1.attn.out_proj.bias"]
    hidden = encoder.norm("blocks.1.norm2", token) @ w["blocks.1.mlp.fc1.weight"].T
    hidden = torch.nn.functional.gelu(hidden + w["blocks.1.mlp.fc1.bias"])
    token = token + hidden @ w["blocks.1.mlp.fc2.weight"].T + w["blocks.1.mlp.fc2.bias"]
    assert torch.allclose(solo[2], encoder.norm("blocks.2.norm1", token), atol=1e-4)
    single = found.register(slice(3, 4))
    assert torch.allclose(single[3], found.normed[3][3])


def test_bad_reference_images_are_data_errors() -> None:
    encoder, images = made()
    with pytest.raises(DataError, match="reference images"):
        rank_candidates(encoder, [], [1], 1)
    with pytest.raises(DataError, match="NaN"):
        rank_candidates(encoder, [images * torch.nan], [1], 1)


# -- objective and clipping -------------------------------------------------------------------


def test_feature_error_is_relative_to_the_features() -> None:
    reference = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    score = FeatureError(reference).score(torch.tensor([[3.0, 4.0], [0.0, 4.0]]))
    assert score.per_image.tolist() == pytest.approx([1.0, 1 - 1 / 25])
    part = FeatureError(reference).score(reference[1:] * 1.2, torch.tensor([1]))
    assert part.value == pytest.approx(1 - 1 / 25)


@pytest.mark.parametrize("name", ["naive", "ptq4vit", "repqvit"])
def test_clipping_narrows_ranges_and_nothing_else(name: str) -> None:
    encoder, images = made()
    with torch.no_grad():
        tokens = encoder.embed(images)
        tokens[0, 3, 5] = 1000.0
    plain = make_baseline(name).fast().calibrate(encoder, tokens, 2)
    clipped = Clipped(make_baseline(name).fast(), 0.999).calibrate(encoder, tokens, 2)
    fc2 = "blocks.2.mlp.fc2"
    wide, narrow = (c.quantization.linears[fc2].input for c in (plain, clipped))
    if name != "ptq4vit":  # it searches its scales within the range
        assert narrow.scale < wide.scale  # type: ignore[attr-defined]
    assert plain.quantization.linears.keys() == clipped.quantization.linears.keys()


# -- resume -----------------------------------------------------------------------------------

CONFIG = RegCacheConfig(1, 2, 1, 2)


def test_finished_parts_are_not_computed_again(tmp_path: Path, monkeypatch: Any) -> None:
    encoder, images = made()
    space = SearchSpace((0, 1), 1, prefix=(0, 2), delete=(0, 2))
    first = problem_for(encoder, images, blocks=(0, 1), folder=tmp_path)
    found = search(first, space)
    again = problem_for(encoder, images, blocks=(0, 1), folder=tmp_path)
    monkeypatch.setattr(Encoder, "block", None)  # nothing may run
    repeated = search(again, space)
    assert repeated.best == found.best
    assert [t.score.value for t in repeated.trials] == [t.score.value for t in found.trials]
    assert again.work.block_forwards == first.work.block_forwards
    assert again.work.resumed > 0


def test_a_damaged_part_is_computed_again(tmp_path: Path) -> None:
    encoder, images = made()
    score = problem_for(encoder, images, folder=tmp_path).evaluate(CONFIG)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:40])
    problem = problem_for(encoder, images, folder=tmp_path)
    assert problem.evaluate(CONFIG).value == score.value
    assert problem.work.resumed == 0


def test_a_full_disk_is_a_typed_error_and_resumable(tmp_path: Path, monkeypatch: Any) -> None:
    encoder, images = made()
    space = SearchSpace((1,), 1, prefix=(0, 2), delete=(0, 2))
    written: list[Path] = []
    original = atomic_write_bytes

    def write(path: Path, data: bytes) -> None:
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, data)
        written.append(path)

    monkeypatch.setattr(cache, "atomic_write_bytes", write)
    with pytest.raises(ConfigError, match="run the same command again"):
        search(problem_for(encoder, images, folder=tmp_path), space)
    monkeypatch.setattr(cache, "atomic_write_bytes", original)
    problem = problem_for(encoder, images, folder=tmp_path)
    resumed, fresh = search(problem, space), search(problem_for(encoder, images), space)
    assert resumed.best == fresh.best
    assert resumed.score.value == fresh.score.value
    assert problem.work.resumed > 0


def run_search(out: Path, capsys: Any, *more: str) -> dict[str, Any]:
    assert main(["search", *SMALL, "--output", str(out), "--json", *more]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


SCRIPT = """
import json, sys
from pathlib import Path
import torch
sys.path[:0] = json.loads(sys.argv[1])
torch.set_num_threads(int(sys.argv[3]))
from tests.search.search_helpers import encoder_and_images, problem_for
from regcache_deploy.search.space import SearchSpace
from regcache_deploy.search.strategies import search
from regcache_deploy.evaluation import Score
encoder, images = encoder_and_images(40)
problem = problem_for(
    encoder, images, calibration=8, blocks=(0, 1), folder=Path(sys.argv[2]) if sys.argv[2] else None
)
found = search(problem, SearchSpace((0, 1), 1))
scores = [t.score.per_image.tolist() for t in found.trials]
print(json.dumps([str(found.best), found.p_value, scores, problem.work.block_forwards]))
"""


def test_killed_and_resumed_search_gives_the_same_result(tmp_path: Path) -> None:
    """Killed with SIGKILL in the middle, resumed with another number of threads."""

    def start(folder: str, threads: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, json.dumps(sys.path), folder, str(threads)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    whole = start("", 1)
    killed = start(str(tmp_path), 1)
    limit = time.monotonic() + 300
    while len(list(tmp_path.glob("trial-*"))) < 5:
        assert killed.poll() is None, "finished or failed before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    resumed = start(str(tmp_path), 2)
    outputs = [json.loads(process.communicate(timeout=300)[0]) for process in (whole, resumed)]
    assert outputs[0] == outputs[1]


def test_search_of_planted_sinks_finds_them_and_resumes(tmp_path: Path) -> None:
    """Four planted sinks behind a huge unit: they are deleted, for a twentieth of the grid."""
    model = planted_vit.load(planted_vit.small(), 0)
    options = ExportOptions(
        baseline="naive", search_images=96, calibration_images=12, limit=2, batch_size=48
    )
    quiet = Reporter(quiet=True)

    def run() -> FoundChoice:
        sets = load_image_sets(options, model, quiet, tmp_path)
        return find_choice(options, make_baseline("naive"), model.encoder, sets, quiet)

    found = run()
    assert found.sensitivity.layer == "blocks.6.mlp.fc2"
    assert found.sensitivity.proxy.block == 6
    assert found.result.best.delete_count == 4
    assert found.result.best.has_prefix
    assert found.cost.share <= 1 / 20
    again = run()
    assert again.result.best == found.result.best
    assert again.cost.block_forwards == found.cost.block_forwards
    assert again.cost.resumed_block_forwards > 0.9 * found.cost.block_forwards


def test_a_search_without_outliers_ends_with_no_gain(tmp_path: Path, capsys: Any) -> None:
    arguments = ["search", "--model", "ViT-S-32-alt", "--pretrained", "random:3", "-q", "--json"]
    arguments += ["--data", "demo"]
    arguments += ["--baseline", "naive", "--search-images", "4", "--calibration-images", "2"]
    arguments += ["--limit", "2", "--output", str(tmp_path / "run")]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["prefix_count"], document["delete_count"]) == (0, 0)
    assert document["gain"]["found"] is False
    assert "random weights" in document["caution"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--delete-count", "36"], 2, "at least one must stay"),
        (["--ranking", "norm"], 2, "block_input, fc2_input"),
        (["--memory", "0"], 2, "--memory"),
        (["--memory", "inf"], 2, "--memory inf is out of range"),
        (["--objective", "top2"], 2, "top1"),
        (["--error", "2"], 2, "0.001 to 0.5"),
        (
            "--model ViT-S-32-alt --pretrained random --data demo --objective top1".split(),
            2,
            "labels",
        ),
    ],
)
def test_bad_input_of_the_command(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: Any
) -> None:
    assert main(["search", *SMALL, *arguments, "--output", str(tmp_path / "run")]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_fewer_images_than_candidates_and_the_other_readings(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    few = ["--search-images", "6", "--calibration-images", "4", "--candidates", "best"]
    few += ["--delete-at", "mlp_input", "--objective", "mse", "--ranking", "fc2_input"]
    document = run_search(out, capsys, *few, "--register", "solo")
    assert document["n_search"] == 6
    assert document["readings"]["candidates"] == "best"
    assert document["search_metric"] == "mse"
    assert set(document["ranking_recall"]) == {"0", "1", "2"}
    assert len(document["sensitivity"]["layers"]) == 24
    assert document["search_cost"]["block_forwards"] > 0
    assert document["accuracy"]["deployed"] is None
