"""`ChessEndgame-v0`: its masks, its defence, its levels, and the agreement of vector and single environments."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hrm_envs import ChessEndgameEnv, ChessEndgameVectorEnv
from hrm_envs.config import SPLITS
from hrm_envs.endgames.batch import starting_positions
from hrm_envs.endgames.tables import BLACK, DRAW, NOBODY, endgame_table, moves_of, value_of

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
PIECE = st.sampled_from(["rook", "queen"])


def random_actions(rng: np.random.Generator, masks: np.ndarray, wild: float = 0.0) -> np.ndarray:
    """A random legal action of each row where there is one; with probability `wild` any."""
    chosen = (masks * rng.random(masks.shape)).argmax(1)
    return np.where(rng.random(len(masks)) < wild, rng.integers(masks.shape[1], size=len(masks)), chosen)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("piece", ["rook", "queen"])
def test_the_environment_checker_reports_nothing(piece: str) -> None:
    check_env(gymnasium.make("ChessEndgame-v0", piece=piece, render_mode="rgb_array").unwrapped)
    text = gymnasium.make("ChessEndgame-v0", piece=piece, render_mode="ansi")
    text.reset(seed=0)
    assert isinstance(text.render(), str)


def test_both_ways_to_make_agree() -> None:
    single = gymnasium.make("ChessEndgame-v0", piece="queen", max_episode_steps=7)
    vector = gymnasium.make_vec(
        "ChessEndgame-v0", num_envs=2, vectorization_mode="vector_entry_point", piece="queen", max_episode_steps=7
    )
    assert single.spec.max_episode_steps == vector.config.max_episode_steps == 7
    assert vector.single_observation_space == single.observation_space
    assert vector.single_action_space == single.action_space
    seen, infos = vector.reset(seed=3)
    assert seen in vector.observation_space
    alone, info = single.reset(seed=4)
    assert (alone["board"] == seen["board"][1]).all()
    assert (info["action_mask"] == infos["action_mask"][1]).all()
    forbidden = int(info["action_mask"].argmin())
    assert [single.step(forbidden)[3] for _ in range(7)] == [False] * 6 + [True]


@settings(max_examples=8, **RELAXED)
@given(piece=PIECE, seed=st.integers(0, 2**40), labels=st.booleans(), limit=st.integers(1, 30))
def test_environment_i_of_a_vector_is_a_single_one_seeded_s_plus_i(
    piece: str, seed: int, labels: bool, limit: int
) -> None:
    options: dict[str, Any] = {"piece": piece, "labels": labels, "max_episode_steps": limit}
    vector, singles = ChessEndgameVectorEnv(4, **options), [ChessEndgameEnv(**options) for _ in range(4)]
    seen, infos = vector.reset(seed=seed)
    rng = np.random.default_rng(seed)
    first = [single.reset(seed=seed + i) for i, single in enumerate(singles)]
    same(first, seen, infos)
    for _ in range(40):
        actions = random_actions(rng, infos["action_mask"], wild=0.2)
        seen, reward, terminated, truncated, infos = vector.step(actions)
        after = []
        for i, single in enumerate(singles):
            obs, r, term, trunc, info = single.step(actions[i])
            assert (np.float32(r), term, trunc) == (reward[i], terminated[i], truncated[i])
            success = info.pop("is_success")
            if term or trunc:
                assert infos["_final_obs"][i]
                assert all((infos["final_obs"][name][i] == part).all() for name, part in obs.items())
                assert (infos["final_info"]["action_mask"][i] == info["action_mask"]).all()
                assert infos["episode"]["success"][i] == success
                obs, info = single.reset()
            else:
                assert success is False
            after.append((obs, info))
        same(after, seen, infos)


def same(singles: list[tuple[dict, dict]], seen: dict[str, np.ndarray], infos: dict[str, Any]) -> None:
    for i, (obs, info) in enumerate(singles):
        assert set(obs) == set(seen) == {"action_mask", "board"}
        assert all((part == seen[name][i]).all() for name, part in obs.items())
        assert all((info[name] == infos[name][i]).all() for name in info)
        assert (info["action_mask"] == obs["action_mask"]).all()


@settings(max_examples=6, **RELAXED)
@given(piece=PIECE, seed=st.integers(0, 2**40))
def test_masks_hold_the_legal_moves_and_the_defence_answers_best(piece: str, seed: int) -> None:
    env = ChessEndgameVectorEnv(8, piece=piece)
    table, rng = env.batch.table, np.random.default_rng(seed)
    _, infos = env.reset(seed=seed)
    for _ in range(12):
        before = {name: array.copy() for name, array in env.batch.state._asdict().items()}
        for i in range(8):
            squares = [int(before[name][i]) for name in ("king", "enemy", "piece")]
            assert before["mask"][i].sum() == len(moves_of(table, 0, *squares)[0])
        actions = random_actions(rng, infos["action_mask"])
        _, _, terminated, _, infos = env.step(actions)
        for i in np.flatnonzero(~terminated):
            if env.batch.state.steps[i] == 0:
                continue  # truncated
            king, piece_at, enemy = (int(env.batch.state._asdict()[name][i]) for name in ("king", "piece", "enemy"))
            _, values = moves_of(table, BLACK, king, int(before["enemy"][i]), piece_at)
            assert DRAW not in values
            assert value_of(table, 0, king, enemy, piece_at) == values.max()


@pytest.mark.parametrize(("piece", "longest"), [("rook", 16), ("queen", 10)])
def test_optimal_moves_mate_in_the_time_that_the_bound_says(piece: str, longest: int) -> None:
    env = ChessEndgameVectorEnv(300, piece=piece, labels=True)
    _, infos = env.reset(seed=0)
    bound, lengths = env.clairvoyant(), np.zeros(300, int)
    rng = np.random.default_rng(0)
    for _ in range(longest):
        _, _, terminated, _, infos = env.step(random_actions(rng, infos["optimal_actions"]))
        new = terminated & (lengths == 0)
        if new.any():
            assert infos["episode"]["success"][new].all()
            lengths[new] = infos["episode"]["l"][new]
    assert (lengths == bound).all()
    assert longest - 2 <= bound.max() <= longest


def test_a_forbidden_move_changes_nothing_and_counts() -> None:
    env = ChessEndgameEnv()
    obs, info = env.reset(seed=5)
    forbidden = int(info["action_mask"].argmin())
    after, reward, terminated, truncated, _ = env.step(forbidden)
    assert all((after[name] == obs[name]).all() for name in obs)
    assert (reward, terminated, truncated, int(env.batch.state.steps[0])) == (-0.01, False, False, 1)


def test_a_piece_left_alone_is_taken_and_the_game_is_over() -> None:
    env = ChessEndgameEnv(piece="rook")
    for seed in range(3000):
        _, info = env.reset(seed=seed)
        state = env.batch.state
        for action in np.flatnonzero(info["action_mask"][8:]) + 8:
            saved = env.get_state()
            _, reward, terminated, _, _ = env.step(action)
            if state.piece[0] == NOBODY:
                assert (reward, terminated) == (-0.01, True)
                assert not env.observe()["action_mask"].any()
                assert (env.observe()["board"] != 0).sum() == 2
                env.set_state(env.get_state())
                return
            env.set_state(saved)
    raise AssertionError("no rook was lost")


def test_no_starting_position_nor_an_image_of_it_is_in_two_splits() -> None:
    table = endgame_table("KRK")
    classes = []
    for split in SPLITS:
        index = starting_positions("rook", split, 16).astype(np.int64)
        squares = np.stack([(index >> 12) & 63, (index >> 6) & 63, index & 63])
        images = [image[squares].astype(np.int64) for image in table.board.images]
        classes.append(set(np.min([(a * 64 + b) * 64 + c for a, b, c in images], 0).tolist()))
    assert sum(map(len, classes)) == len(set().union(*classes))
    assert len(classes[0]) > 10 * len(classes[1]) > 0


def test_nearer_starts() -> None:
    env = ChessEndgameVectorEnv(200, max_distance=2, split="test")
    env.reset(seed=0)
    assert set(env.clairvoyant().tolist()) == {1, 2}


@pytest.mark.parametrize("piece", ["rook", "queen"])
def test_a_saved_state_replays_identically(piece: str) -> None:
    env, other = ChessEndgameVectorEnv(8, piece=piece), ChessEndgameVectorEnv(8, piece=piece)
    rng = np.random.default_rng(3)
    _, infos = env.reset(seed=3)
    for _ in range(20):
        _, *_, infos = env.step(random_actions(rng, infos["action_mask"]))
    other.set_state(env.get_state())
    for _ in range(60):
        actions = random_actions(rng, infos["action_mask"])
        expected, found = env.step(actions), other.step(actions)
        assert all((expected[0][name] == found[0][name]).all() for name in expected[0])
        assert all((left == right).all() for left, right in zip(expected[1:4], found[1:4], strict=True))
        infos = expected[4]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("king", 64, "a square from 0 to 63"),
        ("enemy", -1, "a square from 0 to 63"),
        ("piece", -1, "a square from 0 to 63, or -1 once captured"),
        ("mask", 1, "what follows from the pieces' squares"),
        ("grid", 3, "what follows from the pieces' squares"),
        ("steps", 50, "0 to 49"),
    ],
)
def test_an_altered_state_is_refused(name: str, value: int, message: str) -> None:
    env = ChessEndgameVectorEnv(3)
    env.reset(seed=0)
    env.step(env.batch.state.mask.argmax(1))
    before = env.get_state()
    state = env.get_state()
    state[name][...] = value
    with pytest.raises(ValueError, match=message):
        env.set_state(state)
    assert all((before[key] == array).all() for key, array in env.get_state().items())


def test_a_drawn_or_lost_position_is_no_state_of_an_episode() -> None:
    env = ChessEndgameVectorEnv(2)
    env.reset(seed=0)
    state = env.get_state()
    state["enemy"][:] = state["king"]
    with pytest.raises(ValueError, match="makes the position won"):
        env.set_state(state)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"piece": "rok"}, "did you mean 'rook'"),
        ({"max_distance": 0}, "max_distance=0 is not an integer from 1"),
        ({"labels": 1}, "labels=1 is not a bool"),
        ({"split": "tests"}, "did you mean 'test'"),
        ({"pice": "rook"}, "did you mean 'piece'"),
    ],
)
def test_bad_parameters_are_one_line_that_helps(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        ChessEndgameVectorEnv(2, **parameters)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_actions() -> None:
    env, single = ChessEndgameVectorEnv(2), ChessEndgameEnv()
    with pytest.raises(ValueError, match="before reset"):
        env.step(np.zeros(2, int))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action 36 of environment 1 is not from 0 to 35"):
        env.step(np.array([0, 36]))
    with pytest.raises(gymnasium.error.ResetNeeded):
        single.step(0)
