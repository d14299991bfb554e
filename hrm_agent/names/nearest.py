"""Which of the names that there are was meant: one that is spelled similarly, or called so elsewhere."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

SIMILAR = 0.6
"""The least similarity (`difflib`, 0 to 1) at which a name is offered."""
PART = 3
"""The least letters of a name that is offered because it is a part of the one given, or that one of it."""
ALIASES = {
    "lr": ("learning_rate",),
    "discount": ("gamma",),
    "lambda": ("gae_lambda",),
    "lam": ("gae_lambda",),
    "batch_size": ("minibatch_windows", "batch_sequences"),
    "minibatch_size": ("minibatch_windows", "batch_sequences"),
    "buffer_size": ("capacity",),
    "clip": ("clip_range",),
    "clip_coef": ("clip_range",),
    "ent_coef": ("entropy_coef",),
    "vf_coef": ("value_coef",),
    "grad_clip": ("max_grad_norm",),
    "n_steps": ("rollout_steps", "n_step", "collect_steps"),
    "num_steps": ("rollout_steps", "n_step", "collect_steps"),
    "n_envs": ("num_envs",),
    "n_epochs": ("epochs",),
    "update_epochs": ("epochs",),
    "steps": ("total_steps",),
    "timesteps": ("total_steps",),
    "n_timesteps": ("total_steps",),
    "total_timesteps": ("total_steps",),
    "eval_freq": ("eval_every",),
    "eval_interval": ("eval_every",),
    "n_eval_episodes": ("eval_episodes", "episodes"),
    "log_interval": ("log_every",),
    "save_freq": ("checkpoint_every",),
    "save_every": ("checkpoint_every",),
    "env_id": ("env",),
    "model": ("core", "run"),
    "network": ("core",),
    "policy": ("core",),
    "width": ("hidden_size",),
    "dim": ("hidden_size",),
    "num_threads": ("threads",),
    "workers": ("threads",),
    "num_workers": ("threads",),
    "k": ("segments",),
    "pretrained": ("init_from",),
    "log_dir": ("hydra.run.dir",),
    "logdir": ("hydra.run.dir",),
    "output_dir": ("hydra.run.dir", "out"),
    "save_dir": ("hydra.run.dir", "out"),
    "output": ("out", "hydra.run.dir"),
}
"""What settings are called in other libraries, and the last part of the name here, the most likely first."""


def did_you_mean(given: Any, known: Iterable[str], shown: int = 12) -> str:
    """`; did you mean X? Known: X, Y, ...`, for the end of a message.

    Where no name is near, the list alone, `. Known: X, Y, ...`; empty where nothing is known or listed.

    Args:
        given: the name that is none of them.
        shown: how many are listed; 0: no list.
    """
    known = list(known)
    near = nearest(str(given), known)
    listed = f" Known: {', '.join(known[:shown])}{', ...' * (len(known) > shown)}" if shown and known else ""
    return f"; did you mean {near}?{listed}" if near else listed and f".{listed}"


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The name that is meant; None where none is near.

    Of `algo.learning_rate` and `ALE/Pong-v5` the last part counts, without a version, and letters alone.
    """
    known = list(known)
    for alias in ALIASES.get(_last(given).lower(), ()):
        called_so = [name for name in known if alias in (name, _last(name))]
        if called_so:
            return min(called_so, key=len)
    best = max(known, default="", key=lambda name: _similarity(given, name))
    return best if best and _similarity(given, best)[0] >= SIMILAR else None


def _similarity(given: str, name: str) -> tuple[float, float, int]:
    """That of what counts; then that of the whole, and the version, for names whose last parts are alike."""
    one, other = _letters(given), _letters(name)
    version = re.search(r"-v(\d+)$", name)
    rest = _ratio(given.lower(), name.lower()), int(version[1]) if version else 0
    if min(len(one), len(other)) >= PART and (one in other or other in one):
        return max(_ratio(one, other), SIMILAR), *rest
    return _ratio(one, other), *rest


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _last(name: str) -> str:
    return re.split(r"[./:]", name)[-1] or name


def _letters(name: str) -> str:
    return re.sub(r"-v\d+$|[\W_]", "", _last(name).lower())
