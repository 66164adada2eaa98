"""The confirmed grid: what it leaves is no better, and what is better it finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from regcache_deploy.cli.main import main
from regcache_deploy.errors import ConfigError
from regcache_deploy.search.settings import SearchSettings
from regcache_deploy.search.statistics import MIN_RELATIVE_GAIN
from regcache_deploy.search.stopping import LOOKS, Floor, NotBetter
from regcache_deploy.search.strategies import search
from tests.search.test_search import SPACE, Surface
from tests.search.test_search_parts import SMALL
from tests.search.test_search_pruned import made
from tests.search.test_search_pruned import run as run_planted

SIZE = 256


def test_every_look_falls_on_the_end_of_a_piece() -> None:
    rows = torch.arange(SIZE)
    rule = NotBetter(torch.zeros(SIZE), 0.0, 0.01)
    for batch_size in (1, 3, 5, 64):
        pieces = rule.pieces(rows, batch_size)
        ends = np.cumsum([len(piece) for piece in pieces])
        assert torch.equal(torch.cat(pieces), rows)
        assert set(LOOKS) <= set(ends.tolist())
    assert torch.equal(torch.cat(rule.pieces(rows[:20], 64)), rows[:20])
    assert torch.equal(torch.cat(Floor(0.5).pieces(rows, 3)), rows)


def outcomes(seed: int, better: float, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A leader, and a choice whose mean loss is smaller by the share `better`."""
    generator = np.random.default_rng(seed)
    leader = 1e-3 * generator.gamma(25.0, 0.04, SIZE)
    choice = leader * generator.gamma(1 / noise**2, noise**2, SIZE)
    choice *= (1 - better) * leader.mean() / choice.mean()
    return 1 - torch.from_numpy(leader), 1 - torch.from_numpy(choice)


def stopped(rule: NotBetter, choice: torch.Tensor) -> bool:
    return any(rule(choice[:look], SIZE) for look in LOOKS)


def test_a_better_choice_is_left_no_more_often_than_stated() -> None:
    left = 0
    for seed in range(400):
        leader, choice = outcomes(seed, better=0.0051, noise=0.05)
        left += stopped(NotBetter(leader, 0.005, error=0.1), choice)
    assert left / 400 <= 0.1


def test_a_worse_choice_is_left_and_a_much_worse_one_at_once() -> None:
    for seed in range(20):
        leader, worse = outcomes(seed, better=-0.03, noise=0.02)
        rule = NotBetter(leader, 0.005, error=1e-6)
        assert stopped(rule, worse)
        assert rule(outcomes(seed, better=-1.0, noise=0.02)[1][: LOOKS[0]], SIZE)


def test_seeing_everything_leaves_nothing_to_chance() -> None:
    leader, choice = outcomes(0, better=0.01, noise=0.05)
    assert NotBetter(leader, 0.005, 0.1).p_value(choice) == 1.0
    assert NotBetter(leader, 0.02, 0.1).p_value(choice) == 0.0


@pytest.mark.parametrize("budget", [0, None])
def test_the_optimum_is_found_also_after_a_poor_race(budget: int | None) -> None:
    surface, whole = Surface((1, 11, 3), seed=2), Surface((1, 11, 3), seed=2)
    found = search(surface, SPACE, SearchSettings(strategy="confirmed"), seed=2, budget=budget)
    grid = search(whole, SPACE, SearchSettings(strategy="exhaustive"))
    assert 1 - found.score.value <= (1 + MIN_RELATIVE_GAIN) * (1 - grid.score.value)
    assert {trial.config for trial in found.trials} == set(SPACE.grid())
    if budget is None:  # a poor leader shows of no choice that it is worse
        assert surface.work.block_forwards < whole.work.block_forwards / 2


def test_on_planted_sinks_it_decides_as_the_full_grid() -> None:
    whole = run_planted(made("cosine"), "exhaustive")
    problem = made("cosine")
    found = run_planted(problem, "confirmed")
    losses = {trial.config: 1 - trial.score.value for trial in whole.trials}
    assert losses[found.best] <= (1 + MIN_RELATIVE_GAIN) * min(losses.values())
    assert any(trial.images < problem.size for trial in found.trials)


def test_counted_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["search", *SMALL, "--output", str(tmp_path), "--strategy", "confirmed"])
    assert code == ConfigError.exit_code
    assert "--strategy pruned" in capsys.readouterr().err
