"""What a finished part of a search belongs to: nothing that decides it may be forgotten."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import planted_vit
import torch
from torch import Tensor

import regcache_export
from regcache_deploy.encoders.load import DemoHead, load_model
from regcache_deploy.encoders.model import LoadedModel
from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.evaluation import FeatureError, FeatureFidelity, Objective
from regcache_deploy.evaluation.image_sets import ImageSets, load_image_sets
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.quantization.baselines.naive import Naive
from regcache_deploy.quantization.baselines.repqvit import RepQViT
from regcache_deploy.quantization.histogram import Observer
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.search.embedder import Embedder
from regcache_deploy.search.sensitivity import measure_sensitivity
from regcache_deploy.work import cache
from regcache_deploy.work.cache import PartCache
from regcache_deploy.work.count import Work
from regcache_deploy.work.progress import Reporter
from tests.search.search_helpers import encoder_and_images, problem_for

CONFIG = RegCacheConfig(1, 2, 1, 2)


def test_a_part_does_not_outlive_what_it_depends_on(tmp_path: Path, monkeypatch: Any) -> None:
    encoder, images = encoder_and_images()
    problem_for(encoder, images, folder=tmp_path).evaluate(CONFIG)

    def resumes(**changes: Any) -> bool:
        problem = problem_for(encoder, images, folder=tmp_path, **changes)
        problem.evaluate(CONFIG)
        return problem.work.resumed > 0

    assert resumes()
    assert not resumes(name="repqvit")
    assert not resumes(objective=FeatureError(torch.ones(6, 16)))
    assert not resumes(baseline=Naive(observer="percentile"))
    per_tensor = RepQViT()
    per_tensor.reparametrize = False
    assert not resumes(baseline=per_tensor)
    problem = problem_for(encoder, images, folder=tmp_path)
    problem.registers = {1: {i: v + 1e-3 for i, v in problem.registers[1].items()}}
    problem.evaluate(CONFIG)
    assert problem.work.resumed == 0
    monkeypatch.setattr(cache, "code_hash", lambda: "other code")
    assert not resumes()


def test_the_code_hash_covers_what_the_quantizers_import() -> None:
    package = Path(cache.__file__).parents[1]
    export = Path(regcache_export.__file__).parent
    covered = cache._matching(export, cache.EXPORT_CODE)
    imported = set()
    for file in cache._matching(package, cache.CODE):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "regcache_export."
            ):
                path = export.joinpath(*str(node.module).split(".")[1:])
                imported.add(path.with_suffix(".py") if not path.is_dir() else path / "__init__.py")
    assert imported
    assert imported <= covered


IN_THE_KEYS = {
    "data/sets.py",
    "data/settings.py",
    "encoders/load.py",
    "errors.py",
    "search/settings.py",
    "search/space.py",
    "search/statistics.py",
    "work/cache.py",
    "work/count.py",
    "work/memory.py",
    "work/progress.py",
    "work/settings.py",
    "work/workers.py",
}
"""What the modules of `CODE` import beside each other. Weights, pixels, choices and settings are
hashed themselves; statistics are made of parts, not kept in them."""


def test_the_code_hash_covers_what_computes_a_part() -> None:
    package = Path(cache.__file__).parents[1]
    covered = cache._matching(package, cache.CODE)
    computing = {f for f in package.rglob("*.py") if "cache.part(" in f.read_text("utf-8")}
    assert len(computing) >= 5
    assert computing <= covered
    imported = {path for file in covered for path in project_imports(file)}
    beside = {path.relative_to(package).as_posix() for path in imported - covered}
    assert {path for path in beside if not path.endswith("__init__.py")} == IN_THE_KEYS


def project_imports(file: Path) -> set[Path]:
    """Modules of the package that a module imports when it is loaded, by relative imports."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            names = [base, *(base / alias.name for alias in node.names)]
            found |= {
                path.with_suffix(".py") for path in names if path.with_suffix(".py").is_file()
            }
            if (base / "__init__.py").is_file():
                found.add(base / "__init__.py")
    return found


def _embedder(model: LoadedModel, sets: ImageSets, folder: Path | None) -> Embedder:
    cache, quiet = PartCache(folder, {}, Work()), Reporter(quiet=True)
    tokens = sets.calibration_tokens
    return Embedder("held-out", model.encoder, sets.evaluation, tokens, cache, 8, quiet)


@torch.no_grad()
def test_held_out_features_keep_their_warnings(tmp_path: Path) -> None:
    """An input that is always zero is told again by the run that goes on from finished parts."""
    model = planted_vit.load(planted_vit.small(), 0)
    for name in ("weight", "bias"):
        model.encoder.weights[f"blocks.2.mlp.fc1.{name}"].zero_()
    options = ExportOptions(search_images=8, calibration_images=4, limit=2, batch_size=8)
    quiet = Reporter(quiet=True)
    sets = load_image_sets(options, model, quiet)
    warned, files = [], []
    for _ in range(2):
        held_out = _embedder(model, sets, tmp_path)
        held_out.features("baseline", make_baseline("naive"), RegCacheConfig(0, 0, 0, 0), {})
        warned.append(held_out.warnings["baseline"])
        files.append([(path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir()])
    assert warned == [("the input of blocks.2.mlp.fc2 is zero on every calibration image",)] * 2
    assert files[0] == files[1]


@torch.no_grad()
def test_held_out_features_are_those_of_the_observer(tmp_path: Path) -> None:
    model, quiet = planted_vit.load(planted_vit.small(), 0), Reporter(quiet=True)
    options = ExportOptions(search_images=8, calibration_images=4, limit=2, batch_size=8)
    sets = load_image_sets(options, model, quiet)

    def features(observer: Observer, folder: Path | None) -> Tensor:
        held_out = _embedder(model, sets, folder)
        nothing = RegCacheConfig(0, 0, 0, 0)
        return held_out.features("baseline", Naive(observer=observer), nothing, {})

    ranges = features("minmax", tmp_path)
    assert features("percentile", tmp_path).equal(features("percentile", None))
    assert not features("percentile", tmp_path).equal(ranges)


def test_sensitivity_is_that_of_the_objective(tmp_path: Path) -> None:
    encoder, images = encoder_and_images()
    with torch.no_grad():
        tokens, reference = encoder.embed(images), encoder(images)

    def curve(objective: Objective, folder: Path | None) -> list[float]:
        found = measure_sensitivity(
            encoder,
            tokens[:4],
            lambda _, rows: tokens[rows],
            len(tokens),
            objective,
            cache=PartCache(folder, {}, Work()),
        )
        return [score.value for score in found.layers.values()]

    cosine = curve(FeatureFidelity(reference), tmp_path)
    assert curve(FeatureError(reference), tmp_path) == curve(FeatureError(reference), None)
    assert curve(FeatureError(reference), tmp_path) != cosine


def test_parts_belong_to_the_text_tower(tmp_path: Path) -> None:
    """Another text tower beside the same image tower gives another top-1."""
    model, quiet = load_model("demo"), Reporter(quiet=True)
    options = ExportOptions(search_images=8, calibration_images=4, limit=2, batch_size=8)

    def identity() -> str:
        return load_image_sets(options, model, quiet, tmp_path).cache.identity

    assert isinstance(model.text_head, DemoHead)
    before, weight = identity(), model.text_head.demo.clip.token_embedding.weight
    assert identity() == before
    with torch.no_grad():
        weight[0] += 1
    assert identity() != before
