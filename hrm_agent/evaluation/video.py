"""Videos of episodes: the maze with the agent's trail, and beside it the policy's output."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hrm_agent.environments.checked import EnvironmentFailed, Guard, closing, episode_limit, failed
from hrm_agent.environments.make import check_env_id, make_env
from hrm_agent.evaluation.episodes import PolicyActor, first_seed, known_options, say_cut_off
from hrm_agent.evaluation.thinking import batch_of_one
from hrm_agent.parallel.stopping import CheckStop, never
from hrm_agent.policies.policy import Policy
from hrm_envs import Cell
from hrm_envs.rendering import render_grid

Frame = NDArray[np.uint8]

END_FRAMES = 6
"""Times that the last picture of an episode is shown."""
VIDEO_LIMIT = 1000
"""Steps after which the video of an episode ends where the environment names no time limit of its own."""

DRAWS = "a video needs an environment that accepts render_mode='rgb_array' and whose render() gives uint8 [h, w, 3]"
SCALE = 28  # pixels for each grid position
MARGIN = 14
PANEL_WIDTH = 190
PANEL_HEIGHT = 236  # the least height that holds all lines
MAX_BARS = 9
BACKGROUND, INK, FAINT = (250, 249, 246), (40, 46, 60), (142, 148, 160)
BAR, TRACK = (214, 40, 118), (232, 229, 221)
GREEN, RED = (24, 138, 84), (196, 54, 44)


class Caption(NamedTuple):
    """What a picture says of its moment. `outcome`: None before the episode's end."""

    title: str
    episode: str
    step: str
    note: str
    outcome: bool | None


class View(Protocol):
    """Plays an episode and draws every moment of it."""

    def reset(self, level: int) -> None:
        """The next observation begins an episode of the level with this number."""

    def act(self, obs: Any) -> Any:
        """The action on an observation, as the environment takes it."""

    def draw(self, env: gym.Env, obs: Any, caption: Caption) -> Frame:
        """Called once for every observation: after `act`, or at the episode's end without it."""


class ActionView:
    """The maze with the agent's trail, or the environment's picture; beside it the probability of every action."""

    def __init__(self, policy: Policy) -> None:
        self._actor = PolicyActor(policy)
        self._trail: list[int] = []
        self._action: Any = None

    def reset(self, level: int) -> None:
        self._actor.reset(np.array([level]))
        self._trail = []

    def act(self, obs: Any) -> Any:
        self._action = self._actor.act(batch_of_one(obs))[0]
        return self._action

    def draw(self, env: gym.Env, obs: Any, caption: Caption) -> Frame:
        self._trail += positions(env, obs)
        probabilities, action = self._actor.probabilities, None
        shown = None if probabilities is None or caption.outcome is not None else probabilities[0]
        if shown is not None:
            action = int(self._action) - first_action(env)
        return _compose(picture_of(env, obs, self._trail, shown), caption, shown, action)


def record_episodes(
    policy: Policy,
    env_id: str,
    env_options: dict[str, Any],
    episodes: int = 3,
    seed: int = 0,
    split: str = "validation",
    check_stop: CheckStop = never,
    view: View | None = None,
    moved: Callable[[int, str], Any] | None = None,
) -> list[Frame]:
    """Pictures of greedy episodes: one for each decision, and `END_FRAMES` of how each episode ended.

    A maze is drawn from its observation, so a fogged one shows what the agent sees; other environments draw
    themselves (`rgb_array`).

    Args:
        policy: plays the most probable action.
        env_id, env_options: the environment.
        episodes: the first episode of each of the levels `seed ... seed + episodes - 1`.
        split: `train`, `validation`, `development` or `test`; the levels are those that `run_episodes` plays.
        check_stop: called before every step.
        view: plays and draws in place of `ActionView`.
        moved: called before every step with the episode's number, from 1, and with what the picture says of the step.

    Returns:
        uint8 `[h, w, 3]` each, all of one size.

    Raises:
        ValueError: fewer than one episode, or an environment that cannot be made or drawn.
        EnvironmentFailed: it raised another exception.
        Stopped: by `check_stop`.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes}: expected 1 or more")
    check_env_id(env_id)
    options = {name: value for name, value in env_options.items() if name not in ("oracle", "render_mode")}
    known = known_options(env_id, options)
    if "split" in known:
        options["split"] = split
    with _drawing(env_id):
        try:
            made = make_env(env_id, {**options, "render_mode": "rgb_array"})
        except ValueError as error:  # which without `render_mode` it was not
            raise ValueError(f"{error}; {DRAWS}") from error
        env = Guard(made, env_id)
    frames: list[Frame] = []
    first = first_seed(known, split, seed)
    with closing(env):
        for i in range(episodes):
            drawing = None if moved is None else partial(moved, i + 1)
            episode = f"episode {i + 1} of {episodes}, greedy"
            frames += _record_episode(view or ActionView(policy), env, env_id, first + i, episode, check_stop, drawing)
    return _same_size(frames)


def _record_episode(
    view: View,
    env: gym.Env,
    title: str,
    seed: int,
    episode: str,
    check_stop: CheckStop,
    moved: Callable[[str], Any] | None,
) -> list[Frame]:
    view.reset(seed)
    obs, _ = env.reset(seed=seed)
    limit = getattr(env.unwrapped, "level_limit", None)
    if limit is None and env.spec is not None:
        limit = env.spec.max_episode_steps
    threshold = None if env.spec is None else env.spec.reward_threshold
    clairvoyant = getattr(env.unwrapped, "clairvoyant", None)
    bound = "" if clairvoyant is None else _say_bound(clairvoyant(), limit)
    frames: list[Frame] = []
    step, total, ended, success = 0, 0.0, False, False
    longest = episode_limit(env, VIDEO_LIMIT)

    def draw(outcome: bool | None) -> None:
        count = f"step {step} of {limit}" if limit is not None else f"step {step}"
        if moved is not None:
            moved(count)
        note = f"return {total:.2f}" if clairvoyant is None else bound
        frames.append(view.draw(env, obs, Caption(title, episode, count, note, outcome)))

    while not ended:
        check_stop()
        action = view.act(obs)
        draw(None)
        obs, reward, terminated, truncated, info = env.step(action)
        step, total, ended = step + 1, total + float(reward), terminated or truncated
        if step == longest and not ended:
            say_cut_off(title, longest, "a video")
            ended = True
        success = bool(info.get("is_success", total > 0 if threshold is None else total >= threshold))
    draw(success)
    return frames + frames[-1:] * (END_FRAMES - 1)


def _say_bound(arrival: int, limit: int | None) -> str:
    in_time = arrival >= 0 and (limit is None or arrival <= limit)
    return f"earliest possible: {arrival} steps" if in_time else "unreachable in time"


def is_maze(env: gym.Env) -> bool:
    space = env.observation_space
    in_cells = isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 2
    return in_cells and int(space.high.max()) == max(Cell)  # type: ignore[attr-defined]


def positions(env: gym.Env, obs: Any) -> list[int]:
    return np.flatnonzero(obs == Cell.AGENT).tolist() if is_maze(env) else []


def first_action(env: gym.Env) -> int:
    """The number of the first of a finite number of actions."""
    return int(env.action_space.start) if isinstance(env.action_space, gym.spaces.Discrete) else 0


@contextmanager
def _drawing(env_id: str) -> Iterator[None]:
    """Where an environment takes no `render_mode`, has no `render`, or lacks the library for it: a ValueError.

    Raises:
        EnvironmentFailed: another exception in its `render`.
    """
    try:
        yield
    except (TypeError, NotImplementedError, ImportError, gym.error.Error) as error:
        raise ValueError(f"env={env_id}: draws no picture ({' '.join(str(error).split())}); {DRAWS}") from error
    except (ValueError, OSError, MemoryError, EnvironmentFailed):
        raise
    except Exception as error:
        raise failed(env_id, "failed in render", error) from error


def picture_of(env: gym.Env, obs: Any, trail: list[int], probabilities: NDArray | None) -> Frame:
    if is_maze(env):
        return render_grid(obs, trail=trail, scale=SCALE, action_probabilities=probabilities)
    env_id = env.spec.id if env.spec else str(env)
    with _drawing(env_id):
        picture: Any = env.render()
    if not isinstance(picture, np.ndarray) or picture.ndim != 3:
        raise ValueError(f"env={env_id}: render() gave no picture; {DRAWS}")
    return picture[..., :3].astype(np.uint8)


def _compose(picture: Frame, caption: Caption, probabilities: NDArray | None, action: int | None) -> Frame:
    """The picture with a panel of text and bars to its right."""
    height = max(picture.shape[0], PANEL_HEIGHT) + 2 * MARGIN
    image = Image.new("RGB", (picture.shape[1] + 2 * MARGIN + PANEL_WIDTH, height), BACKGROUND)
    image.paste(Image.fromarray(picture), (MARGIN, (height - picture.shape[0]) // 2))
    draw = ImageDraw.Draw(image)
    left, top = picture.shape[1] + 2 * MARGIN, MARGIN
    normal, large = font_of(13), font_of(19)
    draw.text((left, top), caption.title, FAINT, normal)
    draw.text((left, top + 20), caption.step, INK, large)
    draw.text((left, top + 46), caption.episode, FAINT, normal)
    if caption.outcome is not None:
        draw_outcome(draw, left, top + 84, caption.outcome)
    elif probabilities is not None:
        draw_bars(draw, left, top + 76, probabilities, action)
    draw.text((left, height - MARGIN - 18), caption.note, FAINT, normal)
    return np.asarray(image)


@cache
def font_of(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font in pixels; reading it takes longer than writing with it."""
    return ImageFont.load_default(size)


def draw_outcome(draw: ImageDraw.ImageDraw, left: int, top: int, outcome: bool) -> None:
    text, colour = ("arrived", GREEN) if outcome else ("not arrived", RED)
    draw.text((left, top), text, colour, font_of(19))


def draw_bars(
    draw: ImageDraw.ImageDraw,
    left: int,
    top: int,
    probabilities: NDArray,
    action: int | None,
    width: int = PANEL_WIDTH - 14,
) -> None:
    """A line of 24 pixels for each of the first `MAX_BARS` actions, `width` pixels wide; `action` stands out."""
    names = "NESW" if len(probabilities) == 4 else [str(i) for i in range(len(probabilities))]
    font, track = font_of(13), width - 64
    for i, probability in enumerate(probabilities[:MAX_BARS]):
        y, chosen = top + 24 * i, i == action
        draw.text((left, y), names[i], INK if chosen else FAINT, font)
        draw.rounded_rectangle((left + 20, y + 3, left + 20 + track, y + 13), 4, TRACK)
        if probability > 0.02:
            end = left + 20 + max(8.0, track * float(probability))
            draw.rounded_rectangle((left + 20, y + 3, end, y + 13), 4, BAR)
        draw.text((left + 28 + track, y), f"{probability:.0%}", INK if chosen else FAINT, font)


def _same_size(frames: list[Frame]) -> list[Frame]:
    """Frames padded to the largest of them, and to even sizes, which video codecs ask for."""
    height = max(frame.shape[0] for frame in frames)
    width = max(frame.shape[1] for frame in frames)
    height, width = height + height % 2, width + width % 2
    padded = []
    for frame in frames:
        if frame.shape[:2] == (height, width):
            padded.append(frame)
            continue
        whole = np.empty((height, width, 3), np.uint8)
        whole[:] = BACKGROUND
        whole[: frame.shape[0], : frame.shape[1]] = frame
        padded.append(whole)
    return padded


def encode_gif(frames: list[Frame], fps: float = 8) -> bytes:
    """A GIF that repeats for ever, from uint8 `[h, w, 3]` frames of one size; delays are whole 1/100 s.

    Raises:
        ValueError: no frame, or a rate that is not positive.
    """
    _check_frames(frames, fps)
    # One palette for all frames: none flickers, and what stays the same is not stored again.
    few = np.concatenate(frames[:: max(1, len(frames) // 8)])
    palette = Image.fromarray(few).quantize(255)
    pictures = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    delay = max(2, round(100 / fps)) * 10
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=delay, loop=0)
    return file.getvalue()


def encode_mp4(frames: list[Frame], fps: float = 8) -> bytes:
    """An H.264 video, by ffmpeg.

    Raises:
        ValueError: imageio with ffmpeg (extra `mp4`) is not installed, no frame, or a rate not positive.
    """
    _check_frames(frames, fps)
    check_mp4()
    imageio = import_module("imageio.v2")  # an extra: its types may not be there

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        imageio.mimwrite(path, frames, fps=fps, macro_block_size=2, quality=8)
        return path.read_bytes()


def check_mp4() -> None:
    """Raises: ValueError where MP4 cannot be written."""
    if any(find_spec(name) is None for name in ("imageio", "imageio_ffmpeg")):
        raise ValueError("MP4 needs ffmpeg: pip install 'hrm-agent[mp4]', or give a name that ends in .gif")


def _check_frames(frames: list[Frame], fps: float) -> None:
    if not frames:
        raise ValueError("no frames: expected one or more pictures")
    if fps <= 0:
        raise ValueError(f"fps={fps}: expected more than 0 frames a second")
