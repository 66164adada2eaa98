"""What search and export share: load -> image sets -> find -> corners -> scores."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.images import Images
from ..data.sets import skipped_lines
from ..encoders.load import LoadedModel, load_model
from ..encoders.regcache import RegCacheConfig
from ..errors import ConfigError
from ..evaluation import Objective, Score
from ..evaluation.corners import calibrate_corner, corner_configs
from ..evaluation.image_sets import ImageSets, load_image_sets
from ..quantization.baselines import Baseline, make_baseline
from ..quantization.choice import chosen_baseline
from ..quantization.settings import AUTO, layer_name, layer_names
from ..quantization.simulate import Calibration
from ..report.result import ExportResult
from ..search.embedder import Embedder
from ..search.find import FoundChoice, find_choice
from ..search.float_layers import choose_float
from ..search.settings import PAPER, REGCACHE
from ..search.statistics import Difference, compare_scores
from ..search.token_norms import TokenNorms, measure_norms
from ..search.ways import Raced, race_ways, reason, ways_of
from ..work.count import Work
from ..work.progress import Reporter
from .finished import parts_of
from .options import ExportOptions


@dataclass
class Study:
    """One encoder and one quantizer with the choice that was found, and its corners.

    Attributes:
        baseline, config: of the way that was chosen.
        features: corner -> embeddings `[n, E]` of the held-out images; `recipe` is the chosen way,
            `paper/` in front where every quantizer is as published. An export adds `deployed`.
        ways: that were raced; empty where the recipe was fixed.
        norms: of the tokens at the sensitive layer, with the chosen way's RegCache and without.
        over_budget: a warning where `--keep-float auto` did not meet its budget.
    """

    options: ExportOptions
    model: LoadedModel
    sets: ImageSets
    baseline: Baseline
    config: RegCacheConfig
    found: FoundChoice
    held_out: Embedder
    features: dict[str, Tensor]
    ways: list[Raced]
    norms: TokenNorms
    over_budget: tuple[str, ...]
    began: float = field(repr=False)

    @property
    def recipe(self) -> str:
        """Name of the way that was chosen, or of the recipe that fixed it."""
        chosen = [each.way.name for each in self.ways if each.chosen]
        return chosen[0] if chosen else self.options.chosen_recipe

    def calibrate(self) -> Calibration:
        """The choice's quantizers, on the whole encoder."""
        return calibrate_corner(
            self.baseline,
            self.model.encoder,
            self.sets.calibration_tokens,
            self.config,
            self.found.register,
        )

    @cached_property
    def judge(self) -> Objective:
        """The metric of the held-out images."""
        return self.sets.judge(self.features["fp32"])

    def scores(self) -> dict[str, Score]:
        """Corner -> score on the held-out images."""
        return {name: self.judge.score(features) for name, features in self.features.items()}

    def accuracy(self) -> dict[str, float]:
        """Corner -> value, without the published forms."""
        return {n: s.value for n, s in self.scores().items() if not n.startswith("paper/")}

    def result(self, **more: Any) -> ExportResult:
        """What both commands report; `more` is what only one of them knows."""
        options, found, scores = self.options, self.found, self.scores()
        reference = scores["fp32"]
        paired: Mapping[str, Difference] = {
            name: compare_scores(self.judge.name, reference, score, options.seed)
            for name, score in scores.items()
            if name != "fp32"
        }
        warnings = (
            *skipped_lines(self.sets.search, self.sets.evaluation),
            *self.held_out.warnings["recipe"],
            *self.over_budget,
        )
        return ExportResult(
            model=self.model.name,
            baseline=options.baseline,
            bits=options.bits,
            sensitive_layer=found.sensitivity.layer,
            prefix_block_candidates=found.space.blocks,
            config=self.config,
            depth=self.model.encoder.spec.depth,
            search_accuracy=found.result.score.value,
            search_metric=found.objective.name,
            metric=self.judge.name,
            n_search=len(self.sets.search),
            n_eval=len(self.sets.evaluation),
            accuracy=self.accuracy(),
            paired=paired,
            paper_form={
                name.removeprefix("paper/"): score.value
                for name, score in scores.items()
                if name.startswith("paper/")
            },
            in_float=tuple(
                name
                for name in self.model.encoder.spec.linears()
                if name in self.baseline.keep_float
            ),
            warnings=warnings,
            caution=self.model.caution,
            seconds=time.monotonic() - self.began,
            search_cost=found.cost.to_json(),
            not_tried=found.result.not_tried,
            recipe=self.recipe,
            ways=tuple(each.to_json() for each in self.ways),
            token_norms=self.norms.to_json(),
            reason=reason(self.ways, self.sets.objective.name) if self.ways else "",
            trials=found.result.trials,
            **more,
        )


@torch.no_grad()
def run_study(
    options: ExportOptions,
    reporter: Reporter,
    parts: Path | None = None,
    model: LoadedModel | None = None,
) -> Study:
    """Search, and embed the held-out images in every corner.

    A killed run goes on where it stopped: finished parts are in the folder `parts` of the run
    folder, or in the one that is given, which several runs may share. A `model` that is given takes
    the place of the one that the options name.

    Raises:
        RegCacheError: with the exit code of its kind; finished parts stay.
    """
    began = time.monotonic()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = model or load_model(
        options.model,
        options.pretrained,
        options.image_size,
        options.templates,
        options.classifier,
    )
    check_choice(options, model)
    sets = load_image_sets(options, model, reporter, parts or parts_of(options.output_dir))
    encoder, published = model.encoder, chosen_baseline(options)
    recipe = options.chosen_recipe
    settings = replace(options, two_counts=False) if recipe == PAPER else options
    found = find_choice(settings, published, encoder, sets, reporter, options.keep_float == AUTO)
    kept = sets.cache.counting(Work())

    def embedder(title: str, images: Images) -> Embedder:
        tokens = sets.calibration_tokens
        return Embedder(title, encoder, images, tokens, kept, options.batch_size, reporter)

    searched, held_out = (
        embedder("search images", sets.search),
        embedder("held-out images", sets.evaluation),
    )
    over_budget: tuple[str, ...] = ()
    if options.keep_float == AUTO:
        over_budget = choose_float(published, searched, sets, found, options.budget)
    best, ways = found.result.best, list[Raced]()
    baseline, config = published, best
    if recipe not in (PAPER, REGCACHE):
        all_ways = ways_of(published, best, found.sensitivity.layer, encoder.spec)
        if recipe == AUTO:
            work, seed = sets.cache.work, options.seed
            ways = race_ways(all_ways, searched, found.register, sets.objective, work, seed)
            all_ways = [each.way for each in ways if each.chosen]
        way = next((way for way in all_ways if recipe in (AUTO, way.name)), None)
        if way is None:
            raise ConfigError(f"--recipe {recipe}: {published.name} has no such way here")
        baseline, config = way.baseline, way.config
    layer, size = found.sensitivity.layer, options.batch_size
    norms = measure_norms(encoder, sets, layer, config, found.register, kept, size)
    features = {"fp32": held_out.float_features}
    for name, corner in corner_configs(best).items():
        features[name] = held_out.features(name, published, corner, found.register)
    features["recipe"] = held_out.features("recipe", baseline, config, found.register)
    if published.differences and published.form == "deploy":
        paper = make_baseline(published.name, published.bits, "paper")
        for name in ("baseline", "regcache"):
            features[f"paper/{name}"] = held_out.features(
                f"{name}, published form", paper, corner_configs(best)[name], found.register
            )
    return Study(
        options,
        model,
        sets,
        baseline,
        config,
        found,
        held_out,
        features,
        ways,
        norms,
        over_budget,
        began,
    )


def check_choice(options: ExportOptions, model: LoadedModel) -> None:
    """Refuse numbers that this encoder cannot have, before any image is read.

    Raises:
        ConfigError: a block or a count is out of range, or a linear is not there.
    """
    spec = model.encoder.spec
    RegCacheConfig(
        prefix_block=options.prefix_block or 0,
        prefix_count=options.prefix_count or 0,
        delete_block=0,
        delete_count=options.delete_count or 0,
        range_delete_count=max(options.delete_count or 0, options.range_delete_count or 0),
    ).check(spec)
    named = dict[str, str]()
    if options.keep_float != AUTO:
        named |= dict.fromkeys(sorted(layer_names(options.keep_float)), "--keep-float")
    if options.sensitive_layer is not None:
        option = "--sensitive-layer"
        named[layer_name(option, options.sensitive_layer)] = option
    for name in named.keys() - set(spec.linears()):
        raise ConfigError(f"{named[name]} {name}: this encoder has blocks 0..{spec.depth - 1}")
