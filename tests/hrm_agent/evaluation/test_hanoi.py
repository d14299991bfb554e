"""The reference player of the Towers of Hanoi, and evaluations outside mazes."""

from __future__ import annotations

from hrm_agent.evaluation.episodes import known_options, run_episodes
from hrm_agent.evaluation.hanoi import HanoiReplanActor
from hrm_envs import HanoiVectorEnv


def test_the_replanner_solves_every_level_in_as_few_moves_as_it_takes() -> None:
    levels = HanoiVectorEnv(12, disks=3, split="test")
    levels.reset(seed=0)
    played = run_episodes(HanoiReplanActor(), "Hanoi-v0", {"disks": 3}, 12)
    assert played.success.all()
    assert played.steps.tolist() == levels.clairvoyant().tolist()
    assert played.split == "test"


def test_the_oracle_of_evaluations_is_that_of_mazes() -> None:
    """Regret is in moves of a maze."""
    assert known_options("Hanoi-v0", {}) == {"split"}
    assert known_options("CueMaze-v0", {}) == {"split", "oracle"}
