"""Evaluation: the same levels for all players, numbers that do not depend on batches or threads, videos."""

import io
import json
import re
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

from commands import run_command
from hrm_agent import Agent
from hrm_agent.agents.agent import AgentOverrides
from hrm_agent.environments.make import make_vector_env
from hrm_agent.evaluate import evaluate
from hrm_agent.evaluation.cost import measure_cost
from hrm_agent.evaluation.episodes import (
    SPLIT_OFFSETS,
    PolicyActor,
    RandomActor,
    ReplanActor,
    Step,
    first_seed,
    run_episodes,
    run_in_threads,
)
from hrm_agent.evaluation.level_sets import LevelSet
from hrm_agent.evaluation.report import (
    Levels,
    evaluate_policy,
    format_report,
    list_levels,
    play_references,
    summarize,
    to_json,
)
from hrm_agent.evaluation.video import END_FRAMES, encode_gif, record_episodes
from hrm_agent.parallel.threads import Threads
from hrm_agent.policies.distributions import Categorical
from hrm_agent.policies.encoders import EncoderConfig, Observation
from hrm_agent.policies.policy import Decision
from hrm_agent.watch import watch
from hrm_envs.config import SPLITS
from hrm_envs.planners import ReplanPolicy
from played import BUSY, CORE, MAZE, TIMINGS, assert_same, make_policy, save_agent

DEFAULTS = {"p_change": 0.05, "goal_process": "static", "p_goal": 0.0, "max_episode_steps": 60}


class Replanning(torch.nn.Module):
    """A policy whose most probable action is the BFS re-planner's; it carries nothing."""

    device = torch.device("cpu")
    distribution = Categorical(gym.spaces.Discrete(4))

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def initial_state(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        return ()

    def step(self, obs: Observation, state: Any, episode_start: torch.Tensor) -> Decision:
        assert isinstance(obs, torch.Tensor)
        moves = torch.from_numpy(ReplanPolicy().act(obs.numpy()))
        logits = torch.nn.functional.one_hot(moves, 4) * self.weight
        return Decision(logits, logits.sum(-1), (), torch.full_like(moves, 2))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["random", "replan", "greedy", "sampled"])
def test_numbers_do_not_depend_on_batch_or_threads(kind: str) -> None:
    policy = make_policy(segments=4, stop="policy_kl", stop_threshold=0.003)
    make = {
        "random": RandomActor,
        "replan": ReplanActor,
        "greedy": lambda: PolicyActor(policy),
        "sampled": lambda: PolicyActor(policy, deterministic=False),
    }[kind]
    whole = run_episodes(make(), MAZE, BUSY, 20, seed=5)
    assert whole.totals is not None
    assert whole.totals.decisions_by_change.sum() > 20
    assert (whole.segments is None) == (kind in ("random", "replan"))
    if whole.segments is not None:
        assert whole.steps.sum() < whole.segments.sum() < 4 * whole.steps.sum()
    assert_same(whole, run_episodes(make(), MAZE, BUSY, 20, seed=5, batch=7))
    assert_same(whole, run_in_threads(make, MAZE, BUSY, 20, seed=5, threads=Threads(3)))
    tail = run_episodes(make(), MAZE, BUSY, 5, seed=20)
    np.testing.assert_array_equal(tail.steps, whole.steps[15:])


def test_what_is_counted_is_what_happened() -> None:
    seen: list[Step] = []
    played = run_episodes(RandomActor(), MAZE, BUSY, 30, batch=16, on_step=seen.append)
    for row, seed in enumerate(played.seeds):
        mine = [(s, int(np.flatnonzero(s.seeds == seed)[0])) for s in seen if seed in s.seeds]
        assert len(mine) == played.steps[row]
        assert [bool(s.ended[i]) for s, i in mine] == [False] * (len(mine) - 1) + [True]
        rewards = [float(s.rewards[i]) for s, i in mine]
        assert sum(rewards) == pytest.approx(played.returns[row])
        assert played.success[row] == (rewards[-1] > 0)


def test_splits_hold_different_levels() -> None:
    first = {}
    for split in SPLITS[1:]:
        seen: list[Step] = []
        played = run_episodes(RandomActor(), MAZE, {"split": "train"}, 8, split=split, on_step=seen.append)
        assert played.split == split
        first[split] = seen[0].obs
    for one, other in combinations(SPLITS[1:], 2):
        assert not (first[one] == first[other]).all(axis=(1, 2)).any()


@pytest.mark.parametrize("options", [{}, BUSY, {"view": 2}, {"layout": "braid", "door_process": "periodic"}])
def test_no_actor_beats_the_clairvoyant_bound(options: dict[str, Any]) -> None:
    for actor in (ReplanActor(), RandomActor()):
        played = run_episodes(actor, MAZE, options, 200)
        assert played.clairvoyant is not None
        assert (played.clairvoyant[played.success] >= 0).all()
        assert (played.steps[played.success] >= played.clairvoyant[played.success]).all()


def test_a_policy_that_plays_the_replanners_moves_gets_its_numbers() -> None:
    replanned = summarize(run_episodes(ReplanActor(), MAZE, BUSY, 100, split="validation"))
    copied = evaluate_policy(Replanning(), MAZE, BUSY, 100, oracle=True)  # type: ignore[arg-type]
    counted = ("segments_per_decision", "segments_by_change")
    assert {name: v for name, v in copied.items() if name not in counted} == {
        name: v for name, v in replanned.items() if name not in counted
    }
    assert [replanned[name] for name in counted] == [None, None]
    assert copied["segments_per_decision"] == 2
    assert set(copied["segments_by_change"].values()) == {2}
    # It plans on the whole current map: it never regrets an action on that map.
    assert set(replanned["regret_by_change"].values()) == {0}
    assert min(replanned["decisions_by_change"].values()) > 50
    assert replanned["success"] > 0.7


def test_evaluating_touches_no_random_stream_and_no_weight() -> None:
    policy = make_policy()
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    streams = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr] # noqa: NPY002
    result = evaluate_policy(policy, MAZE, {}, 10, deterministic=False)
    assert torch.equal(streams[0], torch.get_rng_state())
    np.testing.assert_array_equal(streams[1], np.random.get_state()[1])  # type: ignore[index] # noqa: NPY002
    assert all(torch.equal(weights[name], value) for name, value in policy.state_dict().items())
    assert all(p.grad is None for p in policy.parameters())
    assert result["regret_by_change"] is None
    assert result["spl"] is not None


def test_foreign_environments_have_no_split_and_no_bound() -> None:
    policy = make_policy("CartPole-v1", core="gru", core_options={}, readout="mean")
    played = run_episodes(PolicyActor(policy), "CartPole-v1", {}, 3)
    assert played.split is None
    assert played.clairvoyant is None
    assert summarize(played)["spl"] is None
    assert played.returns.tolist() == played.steps.tolist()


def test_ideas_are_tried_out_on_levels_of_their_own(run: str) -> None:
    played = {split: evaluate(run, 20, split=split, baselines=False) for split in ("development", "test")}
    assert [report["split"] for report in played.values()] == list(played)
    assert played["development"]["levels"] != played["test"]["levels"]


def test_foreign_environments_have_a_range_of_seeds_for_every_split() -> None:
    """Of ten million levels each, all of which the generators of numpy and of the old games take."""
    ranges = [range(first_seed(set(), split, 0), first_seed(set(), split, 10**7)) for split in SPLITS]
    assert all(one[-1] < other[0] for one, other in pairwise(ranges))
    assert ranges[-1][-1] < 2**31
    assert SPLIT_OFFSETS == {"validation": 2**28, "development": 2**29, "test": 2**29 + 2**27}  # runs rest on them


@pytest.mark.parametrize("mixing", ["conv", "attention"])
def test_multiply_adds_equal_a_count_by_hand(mixing: str) -> None:
    width, inner, cells = 8, 16, 81
    space = make_vector_env(MAZE, 1).single_observation_space
    counted = {}
    for segments in (1, 3):
        core = {**CORE, "mixing": mixing, "num_heads": 2}
        policy = make_policy(core_options=core, segments=segments)
        counted[segments] = measure_cost(policy, space, 4)
    channels = cells * (width * 2 * inner + inner * width)
    attention = cells * 4 * width * width + 2 * cells * cells * width
    block = channels + (cells * 9 * width if mixing == "conv" else attention)
    heads = width * (4 + 1)
    for segments, cost in counted.items():
        # One update of z_L and one of z_H in a segment.
        assert cost["macs_per_decision"] == segments * 2 * block + heads
        assert cost["ms_per_decision"] > 0


def test_multiply_adds_of_a_policy_that_stops_by_itself_are_those_of_what_it_used() -> None:
    space = make_vector_env(MAZE, 1).single_observation_space
    fixed = {k: measure_cost(make_policy(segments=k), space, 1)["macs_per_decision"] for k in (1, 3, 8)}
    adaptive = make_policy(segments=8, stop="latent_change", stop_threshold=1e9)  # stops after the first
    before = torch.get_rng_state()
    counted = {used: measure_cost(adaptive, space, 1, used)["macs_per_decision"] for used in (1, 2, 3, None)}
    assert torch.equal(before, torch.get_rng_state())
    assert (counted[1], counted[3], counted[None]) == (fixed[1], fixed[3], fixed[8])
    assert counted[2] == (fixed[1] + fixed[3]) / 2


def test_change_locked_numbers_are_those_of_the_oracle() -> None:
    """The decisions of a random agent, gone through one by one in an environment that is stepped alone."""
    count, rows = 25, []
    actor = RandomActor()
    for seed in range(count):
        env = make_vector_env(MAZE, 1, {**BUSY, "split": "test", "oracle": True})
        obs, infos = env.reset(seed=seed)
        actor.reset(np.array([seed]))
        for step in range(1000):
            action = int(actor.act(obs)[0])
            before, optimal = int(infos["distance"][0]), bool(infos["optimal_actions"][0, action])
            kind = "material" if infos["material"][0] else "immaterial" if infos["changed"][0] else "unchanged"
            here = np.argwhere(obs[0] == 3)[0]
            beside = int(obs[0][tuple(here + [(-1, 0), (0, 1), (1, 0), (0, -1)][action])])
            regret = 0 if optimal else 1 if beside in (1, 2) else 2
            if before >= 0:
                rows.append((seed, step, kind, regret))
            obs, _, terminated, truncated, infos = env.step(np.array([action]))
            if terminated[0] or truncated[0]:
                break
    played = run_episodes(RandomActor(), MAZE, BUSY, count, batch=10)
    summary = summarize(played)
    for kind in ("unchanged", "immaterial", "material"):
        mine = [regret for _, step, k, regret in rows if k == kind and step > 0]
        assert summary["decisions_by_change"][kind] == len(mine) > 10
        assert summary["regret_by_change"][kind] == pytest.approx(np.mean(mine))
    levels = list_levels(played)
    assert levels["success"] == "".join(str(int(s)) for s in played.success)
    assert levels["steps"] == played.steps.tolist()
    for seed in range(count):
        mine = [regret for s, _, _, regret in rows if s == seed]
        expected = pytest.approx(np.mean(mine), abs=1e-4) if mine else None
        assert levels["regret"][seed] == expected


def test_a_json_is_what_was_said_on_few_lines() -> None:
    said = {"a": [1, 2.5, None], "b": {"c": ["x, [1\n]", "y"], "d": []}, "e": [[1, 2], [3]], "f": "[\n 1,\n 2\n]"}
    text = to_json({**said, "long": list(range(1000))}).decode()
    assert json.loads(text) == {**said, "long": list(range(1000))}
    assert text.count("\n") < 25


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_agent(tmp_path_factory.mktemp("agent"), BUSY)


def test_the_same_call_twice_gives_the_same_report(run: str, tmp_path: Path) -> None:
    first = evaluate(run, 30, out=str(tmp_path / "a.json"))
    second = evaluate(run, 30)
    assert json.loads((tmp_path / "a.json").read_text()) == first
    for report in (first, second):
        for name in TIMINGS:
            assert report.pop(name) > 0
    assert first == second
    assert first["env_options"] == BUSY
    assert first["split"] == "test"
    assert first["seeds"] == {"first": 0, "count": 30}
    assert first["clairvoyant"]["success"] >= first["bfs_replanner"]["success"]
    assert len(first["levels"]["success"]) == len(first["levels"]["steps"]) == len(first["levels"]["regret"]) == 30
    assert first["levels"]["success"].count("1") / 30 == first["success"]
    assert first["parameters"] == sum(p.numel() for p in Agent.load(run).policy.parameters())


def test_overrides_are_played_and_reported(run: str) -> None:
    whole = evaluate(run, 15)
    reset, longer, hasty, patient = (
        evaluate(run, 15, overrides=AgentOverrides(**changed))
        for changed in (
            {"carry": "reset"},
            {"segments": 4},
            {"segments": 4, "stop": "latent_change", "stop_threshold": 1e9},
            {"segments": 4, "stop": "latent_change", "stop_threshold": 0.0},
        )
    )
    assert (whole["carry"], reset["carry"]) == ("full", "reset")
    assert whole["episode_length"] != reset["episode_length"]
    assert longer["segments"] == longer["segments_per_decision"] == 4
    assert longer["macs_per_decision"] > 3.9 * whole["macs_per_decision"]
    assert whole["random"] == reset["random"] == longer["random"]
    first = evaluate(run, 15, overrides=AgentOverrides(first_segments=8))
    assert (first["segments"], first["first_segments"], whole["first_segments"]) == (1, 8, None)
    assert first["segments_per_decision"] == pytest.approx(1 + 7 / first["episode_length"])
    per_segment = (longer["macs_per_decision"] - whole["macs_per_decision"]) / 3
    more = per_segment * (first["segments_per_decision"] - 1)
    assert first["macs_per_decision"] == pytest.approx(whole["macs_per_decision"] + more, abs=1)
    assert (hasty["stop"], hasty["stop_threshold"], hasty["segments"]) == ("latent_change", 1e9, 4)
    assert hasty["segments_per_decision"] == 1
    assert set(hasty["segments_by_change"].values()) == {1}
    for name in ("success", "episode_length", "macs_per_decision", "levels"):
        assert hasty[name] == whole[name]
    for name in ("success", "episode_length", "macs_per_decision", "levels"):
        assert patient[name] == longer[name]


@pytest.mark.thorough
def test_an_agent_plays_mazes_of_other_sizes(run: str, tmp_path: Path) -> None:
    larger = evaluate(run, 20, env_options={"rows": 6, "cols": 5})
    assert larger["env_options"] == {**BUSY, "rows": 6, "cols": 5}
    assert larger["macs_per_decision"] > 1.5 * evaluate(run, 2)["macs_per_decision"]
    assert evaluate(run, 2, env="PaperMaze-v0")["env_options"] == {}
    path = watch(run, 1, str(tmp_path / "large.gif"), env_options={"rows": 6, "max_episode_steps": 3})
    assert path.stat().st_size > 0
    tied = save_agent(tmp_path / "tied", encoder=EncoderConfig(positions="learned"))
    with pytest.raises(ValueError, match=r"encoder\.positions belong to observations .*\(9, 9\)"):
        evaluate(tied, 2, env_options={"rows": 6})


def test_a_level_set_is_played_exactly(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few = LevelSet(MAZE, {"doors": 2}, "validation", first=3, count=25)
    monkeypatch.setattr("hrm_agent.evaluate.find_level_set", {"few": few}.__getitem__)
    report = evaluate(run, level_set="few")
    plain = evaluate(run, 25, env_options={**DEFAULTS, "doors": 2}, seed=3, split="validation")
    assert (report["level_set"], plain["level_set"]) == ("few", None)
    assert (report["seeds"], report["split"]) == ({"first": 3, "count": 25}, "validation")
    assert report["env_options"] == {"doors": 2}  # and nothing of what the agent was trained on
    assert report["levels"] == plain["levels"]
    with pytest.raises(ValueError, match=r"level_set=default says which levels are played; leave out episodes, env$"):
        evaluate(run, 30, env=MAZE, level_set="default")


def test_the_table_says_what_the_report_says(run: str) -> None:
    report = evaluate(run, 30)
    table = format_report(report)
    lines = {line.split("  ")[0]: line for line in table.splitlines()}
    for name, key in (("random", "random"), ("BFS re-planner", "bfs_replanner")):
        assert f"{report[key]['success']:.1%}" in lines[name]
        assert f"{report[key]['spl']:.3f}" in lines[name]
    assert f"{report['success']:.1%}" in lines["agent, greedy"]
    assert f"{report['sampled']['success']:.1%}" in lines["agent, sampled"]
    assert report["sampled"]["success"] == report["sampled"]["levels"]["success"].count("1") / 30
    assert max(map(len, table.splitlines())) <= 120
    measured = report["bfs_replanner"]["changes"]
    assert measured["pairs"] > 0
    assert lines["BFS re-planner"].split()[-3:] == [str(measured["pairs"]), "1.00", "0.00"]
    assert lines["random"].split()[-2:] == ["0.00", f"{report['random']['changes']['extra_steps']:.2f}"]
    assert {report[name]["changes"]["levels_played"] for name in ("sampled", "random")} == {30}
    assert report["changes"]["pairs"] == 0  # untrained: it followed no plan
    assert lines["agent, greedy"].split()[-3:] == ["0", "-", "-"]


def test_in_fog_a_second_replanner_remembers(run: str) -> None:
    report = evaluate(run, 60, env_options={"view": 2})
    without, remembering = report["bfs_replanner"]["success"], report["remembering_replanner"]["success"]
    played = run_episodes(ReplanActor(remembers=True), MAZE, {"view": 2}, 60)
    assert remembering == played.success.mean() > without + 0.1
    assert f"{remembering:.1%}" in next(
        x for x in format_report(report).splitlines() if x.startswith("... remembering")
    )
    clear = evaluate(run, 5)
    assert clear["remembering_replanner"] is None
    assert play_references(Levels("CueMaze-v0", {}, 5))["remembering_replanner"] is None
    assert "remembering" not in format_report(clear)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"episodes": 0}, "episodes=0"),
        ({"env": "CartPole-v1"}, "do not fit"),
        ({"env_options": {"rows": 0}}, "rows=0"),
        ({"overrides": AgentOverrides(stop="never")}, "stop='never'"),
        ({"overrides": AgentOverrides(stop_threshold="low")}, "stop_threshold='low': expected a number"),
        ({"env": "DynamicMase-v0"}, "did you mean DynamicMaze-v0"),
        ({"overrides": AgentOverrides(carry="fully")}, "carry='fully'"),
        ({"overrides": AgentOverrides(segments=0)}, "segments=0"),
        ({"overrides": AgentOverrides(first_segments=0)}, "first_segments=0: expected an integer from 1"),
        ({"run": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    run: str, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    others = dict(given)
    overrides = AgentOverrides.taken_from(others)
    for function, out in ((evaluate, "eval.json"), (watch, "watch.gif")):
        options = {"run": run, "episodes": 2, "out": str(tmp_path / out), "overrides": overrides, **others}
        with pytest.raises(ValueError, match=message) as error:
            function(**options)  # type: ignore[operator]
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
@pytest.mark.parametrize(("env_id", "options"), [(MAZE, {"view": 2}), ("CueMaze-v0", {})])
def test_a_film_shows_every_step(env_id: str, options: dict[str, Any]) -> None:
    policy = make_policy(env_id, options)
    played = run_episodes(PolicyActor(policy), env_id, options, 2, seed=4, split="validation")
    frames = record_episodes(policy, env_id, options, 2, seed=4, split="validation")
    assert len(frames) == played.steps.sum() + 2 * END_FRAMES
    assert {frame.shape for frame in frames} == {frames[0].shape}
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    gif = Image.open(io.BytesIO(encode_gif(frames, fps=10)))
    shown = 0
    for index in range(gif.n_frames):  # type: ignore[attr-defined]
        gif.seek(index)
        shown += gif.info["duration"]
    assert shown == 100 * len(frames)


def test_watch_says_what_it_records_and_how_far_it_is(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "w.gif"
    options = ["episodes=2", "env_options.max_episode_steps=5", f"out={out}"]
    run_command(monkeypatch, "watch", f"run={run}", *options)
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    one, two, last = printed.err.splitlines()
    assert (one, two) == tuple(f"recording episode {n} of 2: step 0 of 5" for n in (1, 2))
    assert re.fullmatch(r"encoding \d+ pictures", last)
    steps: list[tuple[str, str]] = []
    watch(run, episodes=1, out=str(out), env_options={"max_episode_steps": 5}, on_progress=lambda *a: steps.append(a))
    assert [progress for _, progress in steps[:-1]] == [f"step {n} of 5" for n in range(len(steps) - 1)]


def test_watch_writes_the_file_it_says(run: str, tmp_path: Path) -> None:
    path = watch(run, episodes=1, out=str(tmp_path / "w.gif"))
    with Image.open(path) as gif:
        assert gif.format == "GIF"
    with pytest.raises(ValueError, match=r"\.gif or \.mp4"):
        watch(run, out=str(tmp_path / "w.avi"))
