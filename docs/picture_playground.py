"""`python docs/picture_playground.py`: the pictures of `play.md`, `docs/images/play*.png`.

Needs the extra `test` and a browser, Debian's `chromium` for example.
"""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import hrm_agent
from hrm_agent.environments.make import make_vector_env
from hrm_agent.playground.game import Game
from hrm_agent.playground.server import HOST, build_server, listen, make_token
from hrm_agent.playground.world import MazeWorld, make_world

IMAGES = Path(__file__).parent / "images"
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True}


def game_of(agent_id: str, level: int, **env_options: Any) -> Game:
    agent = hrm_agent.make(agent_id)
    env_id, options = agent.environment(env_options=env_options)
    env = make_vector_env(env_id, 1, options)
    agent = agent.fit(env.single_observation_space)
    env.close()
    game = Game(agent, partial(make_world, env_id, options, "test", 0), agent.load_probe(), agent_id)
    game.begin(level)
    return game


@contextmanager
def opened(browser: Browser, game: Game, **context: Any) -> Iterator[Page]:
    """The page of a session, served by a thread."""
    with listen(0) as socket:
        token = make_token()
        server = build_server(game, socket, token)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        page = browser.new_page(**context)
        try:
            page.goto(f"http://{HOST}:{socket.getsockname()[1]}/?token={token}")
            page.wait_for_selector("article.seat")
            yield page
        finally:
            page.close()
            server.should_exit = True
            thread.join()


def asked(page: Page, act: Callable[[], Any]) -> None:
    """Do something that the server answers, and wait until that is drawn."""
    with page.expect_response("**/api"):
        act()
    page.wait_for_timeout(300)


def set_segments(page: Page, count: int, seat: str = "agent") -> None:
    slider = page.locator(f"[data-seat={seat}] .segments input")
    script = "(e, k) => { e.value = k; e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); }"
    asked(page, lambda: slider.evaluate(script, count))


def click(page: Page, world: MazeWorld, position: int) -> None:
    """0.6 of the outer wall is not drawn."""
    box = page.locator("[data-seat=agent] canvas").bounding_box()
    assert box is not None
    row, column = divmod(position, world.width)
    x = box["x"] + box["width"] * (column - 0.1) / (world.width - 1.2)
    y = box["y"] + box["height"] * (row - 0.1) / (world.height - 1.2)
    asked(page, lambda: page.mouse.click(x, y))
    page.mouse.move(1, 1)


def keep(page: Page, name: str, **options: Any) -> None:
    picture = Image.open(io.BytesIO(page.screenshot(**options))).convert("RGB")
    picture.save(IMAGES / f"{name}.png", optimize=True)


def one_agent(browser: Browser) -> None:
    """What a probe reads, after a person has closed a door on the way."""
    game = game_of("DynamicMaze-TRM-v0", 5)
    with opened(browser, game, **DESKTOP) as page:
        set_segments(page, 6)
        page.click("[data-heat=distance]")
        page.check("#path")
        for _ in range(3):
            asked(page, lambda: page.keyboard.press(" "))
        world = game.seats["agent"].world
        assert isinstance(world, MazeWorld)
        click(page, world, next(place for place in world.path()[2:-1] if place in world.edges))
        keep(page, "play")


def three_seats(browser: Browser) -> None:
    """With and without what was carried, and a person."""
    with opened(browser, game_of("DynamicMaze-TRM-v0", 11), **DESKTOP) as page:
        set_segments(page, 6)
        asked(page, lambda: page.check("#compare"))
        asked(page, lambda: page.check("#you"))
        for key in (" ", " ", " ", "ArrowLeft", "ArrowLeft"):
            asked(page, partial(page.keyboard.press, key))
        keep(page, "play_compare", full_page=True)


def phone(browser: Browser) -> None:
    with opened(browser, game_of("DynamicMazeFog-TRM-v0", 33), **PHONE) as page:
        set_segments(page, 8)
        asked(page, lambda: page.keyboard.press(" "))
        asked(page, lambda: page.keyboard.press(" "))
        page.evaluate("scrollTo(0, document.querySelector('article').offsetTop - 12)")
        page.wait_for_timeout(200)
        keep(page, "play_phone")


if __name__ == "__main__":
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for draw in (one_agent, three_seats, phone):
            draw(chromium)
        chromium.close()
