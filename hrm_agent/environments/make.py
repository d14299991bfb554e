"""Vector environments for training and evaluation, from a Gymnasium id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

import hrm_envs
from hrm_agent.environments.action_masks import AUTO, IGNORE, MASK, SETTING, MaskError, has_mask, split_setting
from hrm_agent.environments.checked import Checked, Guard, closing, constructing
from hrm_agent.environments.mask_search import gives_masks
from hrm_agent.environments.objects import is_given
from hrm_agent.environments.sources import StoredId, check_stored, import_source, search_for, wrap_by_source
from hrm_agent.environments.workers import Chosen, WorkersVectorEnv, choose_workers
from hrm_agent.environments.wrappers import MaskInInfo, MaskInObservation, MaskInObservationVector, adapt, is_adapted
from hrm_agent.names.installed import import_typed
from hrm_agent.names.nearest import did_you_mean
from hrm_agent.names.values import printable
from hrm_envs.batch import Batch
from hrm_envs.limits import make_with_own_limit


def check_env_id(env_id: str) -> None:
    """Import the module that registers `env_id`, given by its prefix or a `MODULE:` before it, and check the id.

    Raises:
        ValueError: the id is not registered (the nearest is named), or its package is not installed; or a stored id
            (`hrm_agent.environments.sources.StoredId`) names a module.
    """
    hrm_envs.register_envs()
    if isinstance(env_id, StoredId):
        check_stored(env_id)
    module, _, name = env_id.rpartition(":")
    with search_for(env_id):
        if module:
            import_typed(module, f"env={env_id}")
        import_source(name)
    if name in gym.registry:
        return
    if is_given(name):
        raise ValueError(
            f"env={printable(env_id)}: was given as an object, in another program; to evaluate and watch, register it "
            "in a module and give env=MODULE:ID; to train on, hrm_agent.learn(env, folder=FOLDER, resume=True)"
        )
    hint = "" if module else "; an id that another package registers is given as MODULE:ID"
    raise ValueError(f"env={printable(env_id)}: no such environment{did_you_mean(name, gym.registry, 0)}{hint}")


def make_env(env_id: str, options: dict[str, Any] | None = None) -> gym.Env:
    """One environment in the wrappers that its observations need, as in training.

    `MODULE:ID` imports the module, which runs its code. An agent's `info["env"]` imports nothing, since its file may
    come from a stranger: where it names a module of another package than the known ones, import that first.

    Args:
        env_id: a Gymnasium id, or `MODULE:ID`.
        options: keyword arguments of the environment, and of `gymnasium.make` (`render_mode`). `action_masks=ignore`
            is none of them: masks of legal actions that the environment gives are then left where they are, and
            otherwise, with `auto`, put into the observation (`hrm_agent.environments.wrappers.MaskInObservation`).

    Raises:
        ValueError: an unknown id, an unknown option or one out of range, a missing library, observations without an
            encoding, masks that do not fit the actions, or an agent's id that names a module.
    """
    check_env_id(env_id)
    with _one_line(env_id), search_for(env_id):
        return _make(env_id, options)


def make_vector_env(env_id: str, num_envs: int, options: dict[str, Any] | None = None, workers: int = 0) -> VectorEnv:
    """A vector of `num_envs` environments in SAME_STEP autoreset mode.

    Environments with their own vector implementation in that mode use it; others are stepped one by one, in the
    wrappers that their observations need (`hrm_agent.environments.wrappers.adapt`).

    Args:
        env_id, num_envs: which and how many.
        options: keyword arguments of the environment, and `action_masks`, see `make_env`.
        workers: processes that those without a vector implementation are divided over; 0: none.

    Raises:
        ValueError: as `make_env`.
    """
    check_env_id(env_id)
    name = _without_module(env_id)
    own, masks = split_setting(options)
    with _one_line(env_id), search_for(env_id):
        if gym.spec(name).vector_entry_point is not None:
            env = gym.make_vec(name, num_envs=num_envs, vectorization_mode="vector_entry_point", **own)
            ready = _as_it_is(env, env_id, own, masks)
            if ready is not None:
                return ready
            env.close()
        make = [partial(_guarded, env_id, options, number) for number in range(num_envs)]
        vector = (
            WorkersVectorEnv(make, workers, env_id)
            if workers
            else SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP)
        )
        return Checked(vector, env_id, no_masks=masks)


def _as_it_is(env: VectorEnv, env_id: str, options: dict[str, Any], masks: bool) -> VectorEnv | None:
    """A vector environment that can be used without wrapping single ones; else None."""
    if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
        return None
    if not masks and has_mask(env.single_observation_space):
        return None  # its bits are numbers like others, which a wrapper makes of them
    if isinstance(getattr(env.unwrapped, "batch", None), Batch):
        return env if is_adapted(env.single_observation_space) else None
    with _naming(env_id):
        name = _without_module(env_id)
        if masks and (_has_entry(env.single_observation_space) or gives_masks(env, name, options)):
            env = MaskInObservationVector(env)
    return Checked(env, env_id, no_masks=masks) if is_adapted(env.single_observation_space) else None


def choose_env_workers(
    env_id: str, num_envs: int, options: dict[str, Any] | None = None, cores: int = 1
) -> Chosen | None:
    """How many processes a vector environment is best divided over: `workers.choose_workers`.

    None for one that has a vector implementation of its own.

    Raises:
        ValueError: as `make_env`.
        EnvironmentFailed: one of the steps that are measured.
    """
    env = make_vector_env(env_id, 1, options)
    with closing(env):
        stepped = env.unwrapped
        return choose_workers(stepped.envs[0], num_envs, cores) if isinstance(stepped, SyncVectorEnv) else None


def _guarded(env_id: str, options: dict[str, Any] | None, number: int) -> gym.Env:
    return Guard(gym.wrappers.RecordEpisodeStatistics(_make(env_id, options)), env_id, number)


def _make(env_id: str, options: dict[str, Any] | None) -> gym.Env:
    """One environment in its wrappers; the id has been checked."""
    name = _without_module(env_id)
    own, masks = split_setting(options)
    # Levels of several sizes have a time limit each, which Gymnasium's wrapper around the environment cannot have.
    make = make_with_own_limit if own.get("sizes") is not None and _is_ours(name) else gym.make
    env = wrap_by_source(make(name, **own), name)
    if not masks:
        return adapt(env)
    with _naming(env_id):
        if _has_entry(env.observation_space):
            return MaskInObservation(adapt(MaskInInfo(env)))
        if _is_ours(name):
            return adapt(env)
        return MaskInObservation(adapt(env)) if gives_masks(env, name, own) else adapt(env)


def _has_entry(space: gym.Space) -> bool:
    return isinstance(space, gym.spaces.Dict) and MASK in space.spaces


def _is_ours(name: str) -> bool:
    """Whether it is of `hrm_envs`, whose environments give masks in their observations, if they do."""
    return str(gym.spec(name).entry_point).startswith(("hrm_envs.", "hrm_envs:"))


@contextmanager
def _naming(env_id: str) -> Iterator[None]:
    """Turn what is wrong with an environment's masks into a line that names it. Raises: ValueError."""
    try:
        yield
    except MaskError as error:
        raise ValueError(f"env={env_id}: {error}; {SETTING}={IGNORE} in place of {AUTO} uses no masks") from None


def _without_module(env_id: str) -> str:
    """The id without `MODULE:`, for use once the module has been imported."""
    return env_id.rpartition(":")[2]


@contextmanager
def _one_line(env_id: str) -> Iterator[None]:
    """Convert the errors of making an environment (an unknown option, a missing library) to a one-line ValueError.

    Raises:
        EnvironmentFailed: another exception of its constructor.
    """
    try:
        with constructing(env_id):
            yield
    except (TypeError, ImportError, gym.error.Error) as error:
        raise ValueError(f"env={env_id}: {' '.join(str(error).split())}") from None


def make_labelled_vector_env(
    env_id: str, num_envs: int, options: dict[str, Any] | None = None, workers: int = 0
) -> VectorEnv:
    """`make_vector_env` of an environment that labels optimal actions, for imitation.

    The labels are `infos["optimal_actions"]`, bool `[N, A]`, from `reset` and from every `step`, for the observations
    returned with it; a row without any is not trained on. An environment that gives none is made with `oracle=True`,
    an option of the mazes and of the Towers of Hanoi of `hrm_envs`, or `labels=True`, one of its chess endgames.

    Raises:
        ValueError: see `make_vector_env`; or no such labels, or actions that are not Discrete.
    """
    options = dict(options or {})
    for name in (None, "oracle", "labels"):
        if name == "labels" and not _is_ours(_without_module(env_id)):
            break  # elsewhere it may mean anything
        given = {**options, name: True} if name else options
        try:
            probe = make_vector_env(env_id, 1, given)
        except ValueError:
            if name is None:
                raise
            continue  # it has no such option
        mask, actions = probe.reset()[1].get("optimal_actions"), probe.single_action_space
        probe.close()
        if mask is None:
            continue
        if not isinstance(actions, gym.spaces.Discrete):
            raise ValueError(f"env={env_id}: imitation (algo=bc, dagger) needs Discrete actions, not {actions}")
        mask = np.asarray(mask)
        if mask.dtype != np.bool_ or mask.shape != (1, actions.n):
            raise ValueError(
                f"env={env_id}: infos['optimal_actions'] is {mask.dtype}{list(mask.shape)} for one environment; "
                f"expected bool[1, {actions.n}]"
            )
        return make_vector_env(env_id, num_envs, given, workers)
    raise ValueError(
        f"env={env_id}: it does not label optimal actions; imitation (algo=bc, dagger) needs "
        "infos['optimal_actions'], bool [N, A], from reset and step; use algo=ppo or dqn"
    )


def is_compiled(env: VectorEnv) -> bool:
    """False where the first reset and step of one of our environments will compile it, which takes some seconds."""
    batch = getattr(env.unwrapped, "batch", None)
    return not isinstance(batch, Batch) or batch.is_compiled()


def compile_env(env: VectorEnv) -> None:
    """Compile one of our environments before its first reset; does nothing for others."""
    batch = getattr(env.unwrapped, "batch", None)
    if isinstance(batch, Batch):
        batch.compile()


def episode_statistics(infos: dict[str, Any]) -> tuple[dict[str, Any], NDArray[np.bool_]] | None:
    """Return (`r`) and length (`l`) of the episodes that ended, arrays `[N]` by name, and a mask of valid entries.

    Environments with their own vector implementation report in the step's infos, wrapped ones in the info of the
    episode's last step. The mask is bool `[N]`. None where no episode ended, or the environment has no statistics.
    """
    for source in (infos, infos.get("final_info", {})):
        if "_episode" in source:
            return source["episode"], source["_episode"]
    return None


def episode_success(env: VectorEnv, infos: dict[str, Any], returns: NDArray) -> NDArray[np.bool_]:
    """Which episodes were successes, bool `[N]`; valid for those that have just ended.

    Taken from the environment (`success` with its episode statistics, or `is_success` in its last info); else where the
    return `[N]` reaches the registered reward threshold; else where the return is above 0.
    """
    last = infos.get("final_info", {})
    for said in (infos.get("episode", {}), last.get("episode", {})):
        if "success" in said:
            return np.asarray(said["success"], bool)
    for key in ("is_success", "success"):
        if key in last:
            return np.asarray(last[key], bool)
    single = getattr(env, "envs", [env])[0]
    threshold = getattr(single.spec, "reward_threshold", None)
    return returns > 0 if threshold is None else returns >= threshold
