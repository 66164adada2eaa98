"""What search and export share: load -> image sets -> find -> corners -> scores."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regcache_export.merge import Merge
from regcache_export.spec import EncoderSpec

from ..bench.merge_latency import read_latency
from ..data.copies import with_copies
from ..data.images import Images
from ..data.sets import skipped_lines
from ..encoders.load import LoadedModel, load_model
from ..encoders.regcache import RegCacheConfig
from ..errors import ConfigError
from ..evaluation import Objective, Score
from ..evaluation.corners import calibrate_corner, corner_configs
from ..evaluation.image_sets import ImageSets, load_image_sets
from ..evaluation.instances import InstanceTop1
from ..quantization.baselines import Baseline, make_baseline
from ..quantization.choice import chosen_baseline
from ..quantization.settings import AUTO, layer_name, layer_names
from ..quantization.simulate import Calibration
from ..report.result import ExportResult
from ..search.embedder import Embedder, Embedding
from ..search.find import FoundChoice, find_choice
from ..search.float_layers import choose_float
from ..search.merging import fitting_merge
from ..search.settings import PAPER, REGCACHE
from ..search.statistics import Difference, compare_scores
from ..search.token_norms import TokenNorms, measure_norms
from ..search.way_race import MAX_SHARE, Raced, WayRace, fidelity_way, race_ways, reason
from ..search.ways import ways_of
from ..work.count import Work
from ..work.devices import describe, find_device, fitting_batch, log_device, use_device
from ..work.progress import Reporter
from ..work.ray_team import open_team
from ..work.threads import settle_threads
from ..work.workers import Team
from .finished import parts_of
from .merging import MergeFront, choose_merge
from .options import ExportOptions


@dataclass
class Study:
    """One encoder and one quantizer with the choice that was found, and its corners.

    Attributes:
        published: the quantizer that was asked for.
        baseline, config: of the way that was chosen.
        features: corner -> embeddings `[n, E]` of the held-out images; `recipe` is the chosen way,
            and where that merges tokens, `unmerged` is the same without; `paper/` in front where
            every quantizer is as published. An export adds `deployed`.
        race: of the ways; None where the recipe was fixed.
        ways_work: block-forwards that this took, on top of the search's.
        norms: of the tokens at the sensitive layer, with the chosen way's RegCache and without.
        over_budget: a warning where `--keep-float auto` did not meet its budget.
        merge: of the chosen way; the search itself and all other corners merge nothing.
        front: of `--merge auto`.
        changed: warnings where the choice is that of a search of something else.
    """

    options: ExportOptions
    model: LoadedModel
    sets: ImageSets
    published: Baseline
    baseline: Baseline
    config: RegCacheConfig
    found: FoundChoice
    held_out: Embedder
    features: dict[str, Tensor]
    race: WayRace | None
    ways_work: int
    norms: TokenNorms
    over_budget: tuple[str, ...]
    began: float = field(repr=False)
    merge: Merge | None = None
    front: MergeFront | None = None
    changed: tuple[str, ...] = ()

    @property
    def made_of(self) -> dict[str, str]:
        """Hashes of the float weights and of the search images."""
        return {
            "weights_sha256": self.model.weights_sha256(),
            "search_data_sha256": self.sets.search.fingerprint(),
        }

    @property
    def recipe(self) -> str:
        """Name of the way that was chosen, or of the recipe that fixed it."""
        chosen = [each.way.name for each in self.raced if each.chosen]
        return chosen[0] if chosen else self.options.chosen_recipe

    @property
    def raced(self) -> list[Raced]:
        """The ways that were tried; none where the recipe was fixed."""
        return self.race.raced if self.race else []

    def calibrate(self) -> Calibration:
        """The choice's quantizers, on the whole encoder."""
        return calibrate_corner(
            self.baseline,
            self.model.encoder.merging(self.merge),
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
            *self.changed,
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
            n_eval=self.sets.judged,
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
            search_cost=found.cost.to_json()
            | {"ways_block_forwards": self.ways_work}
            | describe(self.model.encoder.device),
            not_tried=found.result.not_tried,
            recipe=self.recipe,
            ways=tuple(each.to_json() for each in self.raced),
            untried_ways=tuple(way.name for way in self.race.untried) if self.race else (),
            token_norms=self.norms.to_json(),
            reason=reason(self.race, found.objective.name) if self.race else "",
            fidelity={n: s.fidelity for n, s in scores.items() if not n.startswith("paper/")},
            fidelity_way=fidelity_way(self.raced) if self.race else None,
            trials=found.result.trials,
            merge=self._merge_json(),
            merge_front=tuple(p.to_json() for p in self.front.points) if self.front else (),
            merge_reason=self.front.reason if self.front else "",
            **more,
        )

    def _merge_json(self) -> dict[str, Any] | None:
        if self.merge is None:
            return None
        schedule = self.front.chosen.schedule if self.front else self.options.merge
        return {"schedule": schedule, "compat": self.merge.compat, **self.merge.to_json()}


@torch.no_grad()
def run_study(
    options: ExportOptions,
    reporter: Reporter,
    parts: Path | None = None,
    model: LoadedModel | None = None,
    team: Team | None = None,
) -> Study:
    """Decide, and embed the held-out images in every corner.

    A killed run goes on where it stopped: finished parts are in the folder `parts` of the run
    folder, or in the one that is given, which several runs may share. A `model` that is given takes
    the place of the one that the options name. Where there is a team, it does most of the work; see
    `team_of`.

    Raises:
        RegCacheError: with the exit code of its kind; finished parts stay.
    """
    study = decide_study(options, reporter, parts, model, team)
    held_out, found, features = study.held_out, study.found, study.features
    published, best = study.published, found.result.best
    chosen, corners = (study.baseline, study.config, found.register), corner_configs(best)
    held_out.prepare(
        [
            Embedding(),
            *(Embedding(published, corner, found.register) for corner in corners.values()),
            Embedding(*chosen, study.merge),
        ]
    )
    features["fp32"] = held_out.float_features
    for name, corner in corners.items():
        features[name] = held_out.features(name, published, corner, found.register)
    features["recipe"] = held_out.features("recipe", *chosen, study.merge)
    if study.merge is not None:
        features["unmerged"] = held_out.features("unmerged", *chosen)
    if published.differences and published.form == "deploy":
        paper = make_baseline(published.name, published.bits, "paper", study.options.seed)
        for name in ("baseline", "regcache"):
            features[f"paper/{name}"] = held_out.features(
                f"{name}, published form", paper, corner_configs(best)[name], found.register
            )
    return study


@torch.no_grad()
def decide_study(
    options: ExportOptions,
    reporter: Reporter,
    parts: Path | None = None,
    model: LoadedModel | None = None,
    team: Team | None = None,
) -> Study:
    """Search and race on the search images; no held-out image has been looked at.

    As `run_study`, with no features yet.
    """
    began = time.monotonic()
    settle_threads(options.threads)
    device = use_device(options.device)
    if model is None:
        with reporter.stage(f"loading {options.model}"):
            model = load_model(
                options.model,
                options.pretrained,
                options.image_size,
                options.templates,
                options.classifier,
            )
    check_choice(options, model)
    model, options = model.to(device), _fitted(options, model.encoder.spec, device)
    sets = load_image_sets(
        options, model, reporter, parts or parts_of(options.output_dir), options.objective
    )
    encoder, published = model.encoder, chosen_baseline(options, options.seed)
    recipe = options.chosen_recipe
    settings = replace(options, two_counts=False) if recipe == PAPER else options
    ranked = options.keep_float == AUTO
    found = find_choice(settings, published, encoder, sets, reporter, ranked, team)
    kept = sets.cache.counting(Work())

    def embedder(title: str, images: Images) -> Embedder:
        tokens = sets.calibration_tokens
        size = options.batch_size
        return Embedder(title, encoder, images, tokens, kept, size, reporter, team)

    searched, held_out = (
        embedder("search images", sets.search),
        embedder("held-out images", sets.evaluation),
    )
    over_budget: tuple[str, ...] = ()
    if options.keep_float == AUTO:
        over_budget = choose_float(published, searched, sets, found, options.budget)
    before = sets.cache.work.block_forwards
    raced_on, objective = searched, found.objective
    if isinstance(objective, InstanceTop1):  # whole sets are asked: the form that judges can be
        both = with_copies(sets.search, options.seed)
        raced_on, objective = embedder("search images and copies", both), objective.symmetric()
    baseline, config, race = _choose_way(options, published, found, sets, raced_on, objective)
    merge, front = None, None
    if options.merge == AUTO:
        chosen = (baseline, config)
        front = choose_merge(options, model, sets, published, chosen, found, searched, reporter)
        merge, config = front.chosen.merge, front.chosen.config
    elif options.merge_options is not None:
        merge = fitting_merge(options.merge_options, encoder.spec, config)
    ways_work = sets.cache.work.block_forwards - before
    layer, size = found.sensitivity.layer, options.batch_size
    with reporter.stage("token norms before and after"):
        norms = measure_norms(encoder, sets, layer, config, found.register, kept, size)
    return Study(
        options,
        model,
        sets,
        published,
        baseline,
        config,
        found,
        held_out,
        {},
        race,
        ways_work,
        norms,
        over_budget,
        began,
        merge,
        front,
    )


def team_of(
    options: ExportOptions, parts: Path | None = None
) -> AbstractContextManager[Team | None]:
    """The workers that the options ask for, for `run_study` with the same `parts`.

    Raises:
        ConfigError: as `open_team`.
    """
    device, folder = find_device(options.device), parts or parts_of(options.output_dir)
    return open_team(options.workers, device, options.threads, folder)


def _choose_way(
    options: ExportOptions,
    published: Baseline,
    found: FoundChoice,
    sets: ImageSets,
    searched: Embedder,
    objective: Objective,
) -> tuple[Baseline, RegCacheConfig, WayRace | None]:
    """Quantizer and numbers of the recipe, and the ways that were raced for it."""
    recipe, best = options.chosen_recipe, found.result.best
    if recipe in (PAPER, REGCACHE):
        return published, best, None
    ways = ways_of(published, best, found.sensitivity.layer, searched.encoder.spec)
    if recipe == AUTO:
        work = sets.cache.work
        budget = int(MAX_SHARE * found.cost.block_forwards)
        race = race_ways(ways, searched, found.register, objective, work, options.seed, budget)
        chosen = next(each.way for each in race.raced if each.chosen)
        return chosen.baseline, chosen.config, race
    named = next((way for way in ways if way.name == recipe), None)
    if named is None:
        raise ConfigError(f"--recipe {recipe}: {published.name} has no such way here")
    return named.baseline, named.config, None


def _fitted(options: ExportOptions, spec: EncoderSpec, device: torch.device) -> ExportOptions:
    """The options with a batch that the device has memory for; says which device that is."""
    size = fitting_batch(device, options.batch_size, spec.num_tokens, spec.mlp_width)
    log_device(device, size)
    return options if size == options.batch_size else replace(options, batch_size=size)


def check_choice(options: ExportOptions, model: LoadedModel) -> None:
    """Refuse numbers that this encoder cannot have, before any image is read.

    Raises:
        ConfigError: a block or a count is out of range, a linear is not there, or a schedule of
            merging does not fit.
        DataError: the file of latencies cannot be used.
    """
    spec = model.encoder.spec
    RegCacheConfig(
        prefix_block=options.prefix_block or 0,
        prefix_count=options.prefix_count or 0,
        delete_block=0,
        delete_count=options.delete_count or 0,
        range_delete_count=max(options.delete_count or 0, options.range_delete_count or 0),
    ).check(spec)
    if options.merge_options is not None:
        options.merge_options.of(spec, _fixed_deletion(options))
    if options.latency is not None:
        read_latency(options.latency)
    named = dict[str, str]()
    if options.keep_float != AUTO:
        named |= dict.fromkeys(sorted(layer_names(options.keep_float)), "--keep-float")
    if options.sensitive_layer is not None:
        option = "--sensitive-layer"
        named[layer_name(option, options.sensitive_layer)] = option
    for name in named.keys() - set(spec.linears()):
        raise ConfigError(f"{named[name]} {name}: this encoder has blocks 0..{spec.depth - 1}")


def _fixed_deletion(options: ExportOptions) -> RegCacheConfig | None:
    """The deletion that the user fixed, count and block; None where the search has a say."""
    if not options.delete_count or options.sensitive_layer is None:
        return None
    block = int(layer_name("--sensitive-layer", options.sensitive_layer).split(".")[1])
    absent = max(options.delete_count, options.range_delete_count or 0)
    return RegCacheConfig(0, 0, block, absent)
