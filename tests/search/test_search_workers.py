"""Others answer what a search asks: the same questions, the same result, to the last bit."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import planted_vit
import pytest
import torch

from regcache_deploy.encoders.regcache import RegCacheConfig
from regcache_deploy.errors import DataError
from regcache_deploy.evaluation.image_sets import load_image_sets
from regcache_deploy.quantization.baselines import make_baseline
from regcache_deploy.run.options import ExportOptions
from regcache_deploy.search.evaluator import Evaluator
from regcache_deploy.search.find import FoundChoice, find_choice
from regcache_deploy.search.problem import SearchProblem
from regcache_deploy.search.question import Ask
from regcache_deploy.search.result import SearchResult
from regcache_deploy.search.settings import SearchSettings
from regcache_deploy.search.space import SearchSpace
from regcache_deploy.search.stopping import Floor
from regcache_deploy.search.strategies import search
from regcache_deploy.work.progress import Reporter
from tests.pickled_team import PickledTeam
from tests.search.search_helpers import Fixed, encoder_and_images, problem_for

QUIET = Reporter(quiet=True)
SPACE = SearchSpace((0, 1), 1, prefix=(0, 1, 4), delete=(0, 2), ranges=(0, 2))


def in_full(found: SearchResult, problem: SearchProblem) -> list[Any]:
    """All that a search says."""
    trials = [
        (t.stage, t.config, t.images, t.score.per_image.tolist(), t.score.margin.tolist(), t.work)
        for t in found.trials
    ]
    decision = [found.best, found.p_value, found.undecided, found.not_tried]
    states = problem.evaluator.budget.used, problem.spill.used
    return [*decision, trials, problem.work.block_forwards, states]


@pytest.mark.parametrize("strategy", ["default", "pruned", "confirmed", "exhaustive"])
def test_a_search_with_workers_is_the_search_without(strategy: str) -> None:
    encoder, images = encoder_and_images(24)
    settings, results = SearchSettings(strategy=strategy), []
    for team in (None, PickledTeam(3)):
        told: list[int] = []
        problem = problem_for(encoder, images, blocks=SPACE.blocks, team=team)
        found = search(problem, SPACE, settings, budget=6_000, advance=told.append)
        results.append([*in_full(found, problem), sum(told)])
        if team is not None:
            assert team.asked >= len(found.trials)
            assert team.largest < 20_000  # choice, register, rows: no weights, no images
    assert results[0] == results[1]


def test_the_budget_stops_the_same_questions_in_a_round() -> None:
    """A round is asked for as a whole, and what it takes is known before it is answered."""
    encoder, images = encoder_and_images(24)
    for budget in (300, 600):
        results = []
        for team in (None, PickledTeam(4)):
            problem = problem_for(encoder, images, blocks=SPACE.blocks, team=team)
            results.append(in_full(search(problem, SPACE, budget=budget), problem))
        assert results[0] == results[1]
        assert results[0][2], "the budget has to cut"


@pytest.mark.parametrize(("count", "calibration", "parts"), [(1, 2, 3), (3, 2, 0), (4, 1, 3)])
def test_the_last_question_of_a_round_is_asked_of_all(
    count: int, calibration: int, parts: int
) -> None:
    """Scores, order and counted work are those of one process."""
    encoder, images = encoder_and_images(24)
    rows = torch.tensor([5, 3, 17, 8, 9, 16, 11, 0, 2, 13])
    asks = [Ask(RegCacheConfig(1, tau, 1, 2), rows, calibration) for tau in range(1, count + 1)]
    team = PickledTeam(3)
    shared = problem_for(encoder, images, team=team)
    found, plain = shared.evaluate_many(asks), problem_for(encoder, images).evaluate_many(asks)
    assert team.asked == count - bool(parts) + parts
    for one, other in zip(found, plain, strict=True):
        assert (one.work, one.score.value) == (other.work, other.score.value)
        for name in ("per_image", "cosine", "margin"):
            assert torch.equal(getattr(one.score, name), getattr(other.score, name))


def test_many_images_are_always_with_the_same_worker() -> None:
    """So that no hidden state is computed by two."""
    encoder, images = encoder_and_images(70)
    team = PickledTeam(3)
    problem = problem_for(encoder, images, team=team)
    problem.evaluate_many([Ask(RegCacheConfig(1, tau, 1, 2), calibration=1) for tau in range(1, 7)])
    assert team.asked == 18
    for number, opened in enumerate(team._opened):
        assert isinstance(opened, Evaluator)
        rows = opened._search_states._granted[1]
        assert rows == {row for row in range(64) if row // 4 % 3 == number}


def test_a_stop_rule_sees_all_images() -> None:
    encoder, images = encoder_and_images(24)
    team = PickledTeam(3)
    asked = Ask(RegCacheConfig(1, 1, 1, 2), stop=Floor(0.0))
    found = problem_for(encoder, images, team=team).evaluate_many([asked])
    assert team.asked == 1
    assert found[0].work == problem_for(encoder, images).evaluate_many([asked])[0].work


def test_what_workers_answered_is_kept_by_who_asked(tmp_path: Path) -> None:
    encoder, images = encoder_and_images()
    first = problem_for(encoder, images, folder=tmp_path, team=PickledTeam())
    asks = [Ask(RegCacheConfig(1, tau, 1, 2)) for tau in (1, 2, 3)]
    answers = first.evaluate_many(asks)
    team = PickledTeam()
    again = problem_for(encoder, images, folder=tmp_path, team=team)
    repeated = again.evaluate_many([*asks, Ask(RegCacheConfig(1, 5, 1, 2))])
    assert team.asked == 2  # the new one, in two parts
    assert [a.score.value for a in repeated[:3]] == [a.score.value for a in answers]
    assert again.work.resumed == sum(first.price(ask.config, first.size) for ask in asks)


def test_a_guess_that_is_not_asked_costs_nothing(tmp_path: Path) -> None:
    encoder, images = encoder_and_images()
    problem = problem_for(encoder, images, folder=tmp_path, team=PickledTeam(2))
    before = problem.work.block_forwards
    asks = [Ask(RegCacheConfig(1, tau, 1, 2)) for tau in (1, 2, 3)]
    problem.look_ahead(asks)
    assert isinstance(problem.team, PickledTeam)
    assert problem.team.asked == 2
    assert (problem.work.block_forwards, list(tmp_path.iterdir())) == (before, [])
    plain = problem_for(encoder, images)
    assert problem.evaluate(asks[1].config).value == plain.evaluate(asks[1].config).value
    assert problem.team.asked == 2
    assert problem.work.block_forwards == plain.work.block_forwards


@pytest.mark.parametrize("team", [None, PickledTeam()])
def test_progress_is_what_was_answered_and_not_what_was_booked(team: PickledTeam | None) -> None:
    encoder, images = encoder_and_images()
    problem, seen = problem_for(encoder, images, team=team), list[int]()
    asks = [Ask(RegCacheConfig(1, tau, 1, 2)) for tau in (1, 2, 3)]
    problem.evaluate_many(asks, lambda n: seen.append(problem.answered))
    price = problem.price(asks[0].config, problem.size)
    assert [after - before for before, after in pairwise(seen)] == [price, price]
    assert seen[-1] == problem.work.block_forwards


def test_hidden_states_of_workers_go_to_disk_and_leave_nothing(tmp_path: Path) -> None:
    encoder, images = encoder_and_images()
    plain = problem_for(encoder, images)
    few = problem_for(encoder, images, memory=10_000, team=PickledTeam(2, scratch=tmp_path))
    asks = [Ask(RegCacheConfig(1, tau, 1, 2)) for tau in (1, 2, 3, 4)]
    found, expected = few.evaluate_many(asks), plain.evaluate_many(asks)
    assert [a.score.value for a in found] == [a.score.value for a in expected]
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_worker_is_that_of_the_search() -> None:
    encoder, images = encoder_and_images()
    problem = problem_for(encoder, images, team=PickledTeam())
    tokens = problem.setup.tokens(encoder, problem.all_rows)
    object.__setattr__(problem.setup, "tokens", Fixed(tokens * torch.nan))
    with pytest.raises(DataError, match="NaN or infinite features"):
        problem.evaluate(RegCacheConfig(1, 2, 1, 1))


@pytest.mark.parametrize("more", [{}, {"objective": "instances"}, {"candidates": "best"}])
def test_a_whole_search_is_the_same_with_workers(more: dict[str, Any]) -> None:
    """Sensitivity and register included; by labels of their own kind it ends in a contest."""
    model = planted_vit.load(planted_vit.small(layers=8, sink_block=4), 0)
    options = ExportOptions(
        baseline="naive", search_images=48, calibration_images=8, limit=2, batch_size=24, **more
    )

    def run(team: PickledTeam | None) -> FoundChoice:
        sets = load_image_sets(options, model, QUIET, objective=options.objective)
        baseline = make_baseline("naive")
        return find_choice(options, baseline, model.encoder, sets, QUIET, team=team)

    def said(found: FoundChoice) -> list[Any]:
        cost = found.cost.to_json() | {"seconds": 0, "peak_memory_bytes": 0}
        trials = [
            (t.stage, t.config, t.score.per_image.tolist(), t.work) for t in found.result.trials
        ]
        layers = {n: s.per_image.tolist() for n, s in found.sensitivity.layers.items()}
        return [cost, trials, layers, found.result.best, found.result.p_value, found.recall]

    team = PickledTeam(2)
    alone, together = run(None), run(team)
    assert said(alone) == said(together)
    assert team.asked >= len(alone.result.trials)
