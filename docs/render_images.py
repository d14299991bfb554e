"""`python docs/render_images.py`: a picture of every environment, `docs/images/ID.png`."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
from hooks import environment_ids
from numpy.typing import NDArray
from PIL import Image

IMAGES = Path(__file__).parent / "images"
SEED = 0


def picture(env_id: str) -> NDArray[np.uint8]:
    """What the environment shows of level 0 at its beginning, uint8 `[h, w, 3]`."""
    env = gymnasium.make(f"hrm_envs:{env_id}", render_mode="rgb_array")
    env.reset(seed=SEED)
    shown = np.asarray(env.render(), np.uint8)
    env.close()
    return shown


if __name__ == "__main__":
    for env_id in environment_ids():
        Image.fromarray(picture(env_id)).save(IMAGES / f"{env_id}.png", optimize=True)
