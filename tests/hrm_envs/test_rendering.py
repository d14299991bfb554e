"""Frames show the grid, trails, doors and probabilities in the right places."""

import numpy as np
import pytest

from hrm_envs import Cell, MazeEnv, MazeVectorEnv, render_ansi, render_grid


def tile(image: np.ndarray, row: int, col: int, scale: int = 24) -> np.ndarray:
    return image[row * scale : (row + 1) * scale, col * scale : (col + 1) * scale].astype(int)


def corridor() -> np.ndarray:
    grid = np.full((3, 9), Cell.WALL, np.uint8)
    grid[1, 1:8] = [Cell.EMPTY, Cell.AGENT, Cell.EMPTY, Cell.DOOR, Cell.EMPTY, Cell.GOAL, Cell.UNKNOWN]
    return grid


def test_every_cell_id_looks_different() -> None:
    image = render_grid(corridor())
    assert image.shape == (72, 216, 3)
    assert image.dtype == np.uint8
    tiles = [tile(image, 1, col) for col in (1, 2, 4, 6, 7)] + [tile(image, 0, 0)]
    for i, one in enumerate(tiles):
        for other in tiles[:i]:
            assert np.abs(one - other).mean() > 8
    door = tile(image, 1, 4).mean((0, 1))
    assert door[0] > door[2] + 40


def test_trails_open_doors_and_arrows_are_drawn_in_place() -> None:
    grid = corridor()
    plain = render_grid(grid).astype(int)
    trail = render_grid(grid, trail=[9 + 1, 9 + 2]).astype(int)
    assert np.abs(tile(trail, 1, 1) - tile(plain, 1, 1)).mean() > 3
    assert (tile(trail, 1, 5) == tile(plain, 1, 5)).all()
    doors = render_grid(grid, doors=[9 + 3, 9 + 4]).astype(int)
    assert (tile(doors, 1, 3) != tile(plain, 1, 3)).any()
    assert (tile(doors, 1, 4) == tile(plain, 1, 4)).all()
    likely = render_grid(grid, action_probabilities=[0.0, 0.9, 0.0, 0.1]).astype(int)
    east, west = (np.abs(tile(likely, 1, col) - tile(plain, 1, col)).mean() for col in (3, 1))
    assert east > west + 3


def test_a_floor_in_colours_shows_where_there_is_floor_or_fog() -> None:
    grid = corridor()
    grid[1, 4] = Cell.UNKNOWN
    floor = np.full((*grid.shape, 3), 200, np.uint8)
    floor[1, 1] = (10, 20, 30)
    plain, drawn = render_grid(grid), render_grid(grid, floor=floor)
    assert tile(drawn, 1, 1)[12, 12].tolist() == [10, 20, 30]
    assert tile(drawn, 1, 4)[4, 4].tolist() == [200, 200, 200]
    assert (tile(drawn, 0, 2) == tile(plain, 0, 2)).all()  # a wall


def test_environments_render_their_observations() -> None:
    vector = MazeVectorEnv(2, render_mode="rgb_array", view=2, door_process="periodic")
    vector.reset(seed=0)
    vector.step([0, 1])
    frames = vector.render()
    assert frames is not None
    assert [frame.shape for frame in frames] == [(216, 216, 3)] * 2
    assert MazeVectorEnv(2).render() is None
    single = MazeEnv(render_mode="ansi")
    observation, _ = single.reset(seed=0)
    text = single.render()
    assert text == render_ansi(observation)
    assert text.count("◖◗") == text.count("◆") == 1
    assert text.count("╳╳") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": np.full((3, 3), 9)}, "Cell ids"),
        ({"grid": np.zeros(3)}, "shape"),
        ({"grid": corridor(), "scale": 1}, "scale=1"),
        ({"grid": corridor(), "floor": np.zeros((3, 3, 3), np.uint8)}, r"floor has shape \[3, 3, 3\], expected"),
        ({"grid": corridor(), "action_probabilities": [1.0]}, r"expected \[4\]"),
    ],
)
def test_bad_input(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_grid(**arguments)
