"""The page in a real browser, `chromium` without a window: what a person does with it, and what strangers try."""

from __future__ import annotations

import http.server
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest

from games import tiny_agent, tiny_game
from hrm_agent.agents.registry import make
from hrm_agent.playground.game import Game
from hrm_agent.playground.server import HOST, build_server, listen
from hrm_agent.playground.world import MazeWorld, make_world

CHROMIUM = shutil.which("chromium")
TOKEN = "the-token-of-this-test"
KEYS = ("ArrowUp", "ArrowRight", "ArrowDown", "ArrowLeft", " ", "p", "r", "n", "Tab", "Enter", "Escape", "7", "q")

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The name of a stranger's host leads to this machine, as after DNS rebinding.
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP evil.example 127.0.0.1"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@contextmanager
def serving(game: Game) -> Iterator[str]:
    """Serve a session in a thread of its own; its address, without the token."""
    opened = listen(0)
    server = build_server(game, opened, TOKEN)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        yield f"http://{HOST}:{opened.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        opened.close()


def until(holds: Callable[[], bool]) -> None:
    """Playwright's own waiting evaluates texts in the page, which its policy forbids."""
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


class Opened:
    """A page of a session in the browser, and everything that went wrong with it."""

    def __init__(self, browser: Any, game: Game, address: str, **context: Any) -> None:
        self.game, self.problems = game, []
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context})
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.problems.append(f"page: {error}"))
        self.page.on("console", lambda message: self.problems.append(f"console: {message.type}: {message.text}"))
        self.page.on("requestfailed", lambda request: self.problems.append(f"request: {request.url}"))
        self.page.goto(f"{address}?token={TOKEN}")
        self.page.wait_for_selector("article.seat")

    @property
    def world(self) -> MazeWorld:
        world = self.game.seats["agent"].world
        assert isinstance(world, MazeWorld)
        return world

    def policies(self) -> list[list[float]]:
        """What the page shows of the first agent's policy, after every segment."""
        script = "groups => groups.map((group) => group.dataset.policy)"
        columns = self.page.locator("[data-seat=agent] .segment").evaluate_all(script)
        return [[float(p) for p in column.split()] for column in columns]

    def place(self, position: int, seat: str = "agent") -> tuple[float, float]:
        """Where on the screen a position of the map is; 0.6 of the outer wall is not drawn."""
        box = self.page.locator(f"[data-seat={seat}] canvas").bounding_box()
        row, column = divmod(position, self.world.width)
        across, down = (column + 0.5 - 0.6) / (self.world.width - 1.2), (row + 0.5 - 0.6) / (self.world.height - 1.2)
        return box["x"] + box["width"] * across, box["y"] + box["height"] * down

    def click(self, position: int) -> None:
        with self.page.expect_response("**/api"):
            self.page.mouse.click(*self.place(position))
        self.settle()

    def drag(self, start: int, end: int) -> None:
        self.page.mouse.move(*self.place(start))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(end), steps=4)
        with self.page.expect_response("**/api"):
            self.page.mouse.up()
        self.settle()

    def settle(self) -> None:
        """Until everything that was asked is answered and drawn."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 30)))")

    def set_segments(self, count: int, seat: str = "agent") -> None:
        slider = self.page.locator(f"[data-seat={seat}] .segments input")
        script = "(e, k) => { e.value = k; e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); }"
        slider.evaluate(script, count)
        until(lambda: len(self.policies()) == count)


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Opens a session in the browser; afterwards nothing may have gone wrong, in the page or in the server."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    pages: list[Opened] = []
    with contextmanagers() as enter:

        def open_page(game: Game, **context: Any) -> Opened:
            pages.append(Opened(browser, game, enter(serving(game)), **context))
            return pages[-1]

        yield open_page
        for page in pages:
            page.context.close()
    logging.getLogger().removeHandler(handler)
    assert [problem for page in pages for problem in page.problems] == []
    assert [record.getMessage() for record in records] == []


@contextmanager
def contextmanagers() -> Iterator[Callable[[Any], Any]]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield stack.enter_context


def shipped_game(level: int = 3) -> Game:
    game = Game(make("DynamicMaze-TRM-v0"), partial(make_world, "DynamicMaze-v0", {"p_change": 0.0}, "test", 0))
    game.begin(level)
    return game


def test_a_click_on_a_door_changes_the_policy_after_every_segment(opened: Callable[..., Opened]) -> None:
    page = opened(shipped_game())
    page.set_segments(4)
    before = page.policies()
    assert len(before) == 4
    edge = next(place for place in page.world.path()[1:-1] if place in page.world.edges)
    page.click(edge)
    assert not page.world.is_open(edge)
    after = page.policies()
    assert (np.abs(np.subtract(after, before)).max(1) > 1e-3).all()
    page.click(edge)
    assert page.world.is_open(edge)
    assert page.policies() == before


def test_goal_and_agent_are_dragged_and_two_agents_are_disturbed_alike(opened: Callable[..., Opened]) -> None:
    page = opened(shipped_game())
    page.page.check("#compare")
    page.page.wait_for_selector("[data-seat=other]")
    world = page.world
    goal = next(cell for cell in reversed(world.cells) if cell not in (world.goal, world.agent))
    page.drag(world.goal, goal)
    at = next(cell for cell in world.cells if cell not in (world.goal, world.agent))
    page.drag(world.agent, at)
    other = page.game.seats["other"].world
    assert isinstance(other, MazeWorld)
    assert (world.goal, world.agent) == (other.goal, other.agent) == (goal, at)
    page.drag(world.agent, world.goal)  # beside it, since it cannot be on it
    assert world.agent != world.goal
    assert world.agent != at


def test_a_level_is_stepped_played_and_played_by_a_person(opened: Callable[..., Opened]) -> None:
    page = opened(shipped_game(0))
    page.page.keyboard.press(" ")
    until(lambda: page.page.locator("[data-seat=agent] dd").first.inner_text().startswith("1 "))
    page.page.keyboard.press("ArrowDown")  # takes a seat, which begins the level anew, and moves
    page.page.wait_for_selector("[data-seat=you]")
    page.settle()
    assert {name: seat.world.steps for name, seat in page.game.seats.items()} == {"agent": 0, "you": 1}
    page.page.locator("#speed").fill("5")
    page.page.click("#play")
    page.page.wait_for_selector("#results tbody tr")
    page.page.wait_for_selector("[data-seat=agent] .outcome.arrived")
    assert page.page.locator("#level").input_value() == "0"  # a person is still playing
    page.page.uncheck("#you")
    until(lambda: int(page.page.locator("#level").input_value()) >= 2)
    page.page.click("#play")
    assert page.page.locator("#play").inner_text() == "Play"


def test_keys_after_a_click_and_keys_on_what_has_the_focus(opened: Callable[..., Opened]) -> None:
    page = opened(shipped_game(0))
    page.page.locator("#speed").click()
    page.page.click("#reset")
    page.page.keyboard.press(" ")  # a step, not another reset
    until(lambda: page.world.steps == 1)
    page.page.locator("#path").focus()
    page.page.keyboard.press(" ")
    page.settle()
    assert page.page.locator("#path").is_checked()
    assert page.world.steps == 1
    page.page.locator("#step").focus()
    page.page.keyboard.press("Enter")
    until(lambda: page.world.steps == 2)


def test_settings_and_views(opened: Callable[..., Opened]) -> None:
    page = opened(shipped_game())
    page.page.locator("[data-seat=agent] .carry").select_option("reset")
    until(lambda: "reset" in page.page.locator("[data-seat=agent] h2").inner_text())
    page.page.locator("[data-seat=agent] .sampled").select_option("sampled")
    page.set_segments(3)
    seat = page.game.seats["agent"]
    assert seat.agent.policy.config.segments == 3  # type: ignore[attr-defined]
    assert not seat.mind.deterministic  # type: ignore[attr-defined]
    pixels = "() => document.querySelector('[data-seat=agent] canvas').toDataURL()"
    pictures = {page.page.evaluate(pixels)}
    for do in ("[data-heat=none]", "#path", "[data-heat=change]"):
        page.page.click(do)
        page.settle()
        pictures.add(page.page.evaluate(pixels))
    page.page.locator("[data-seat=agent] .segment").first.click()
    page.settle()
    pictures.add(page.page.evaluate(pixels))
    assert len(pictures) == 5


@pytest.mark.parametrize(
    "options", [{}, {"view": 2}, {"goal_process": "walk", "p_goal": 0.3}], ids=["plain", "fog", "goal"]
)
def test_a_thousand_random_clicks_and_keys_go_without_an_error(
    options: dict[str, Any], opened: Callable[..., Opened]
) -> None:
    maze = {"rows": 3, "cols": 3, "max_episode_steps": 20, "p_change": 0.2, **options}
    page = opened(tiny_game(tiny_agent(env_options=maze, segments=2), maze))
    random = np.random.default_rng(len(options))
    for _ in range(1000 if not options else 300):
        kind = random.random()
        if kind < 0.3:
            page.page.keyboard.press(str(random.choice(KEYS)))
        elif kind < 0.6:
            board = (
                page.page.locator("canvas").nth(int(random.integers(len(page.game.seats)))).bounding_box(timeout=5000)
            )
            x, y = (board[a] + board[b] * random.random() for a, b in (("x", "width"), ("y", "height")))
            page.page.mouse.click(x, y)
        elif kind < 0.7:
            page.page.mouse.move(1280 * random.random(), 800 * random.random())
            page.page.mouse.down()
            page.page.mouse.move(1280 * random.random(), 800 * random.random())
            page.page.mouse.up()
        else:
            page.page.mouse.click(1280 * random.random(), 800 * random.random())
    page.page.keyboard.press("Escape")  # a list that is open
    with page.page.expect_response("**/api"):
        page.page.click("#reset")
    page.settle()
    assert page.page.locator("#notice.bad:visible").count() == 0


def test_it_is_drawn_within_the_screen_of_a_phone_and_touched(opened: Callable[..., Opened]) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    page = opened(shipped_game(), **phone)
    world, cdp = page.world, page.context.new_cdp_session(page.page)

    def touch(*places: tuple[float, float]) -> None:
        for number, (x, y) in enumerate(places):
            kind = "touchStart" if number == 0 else "touchMove"
            cdp.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        with page.page.expect_response("**/api"):
            cdp.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.settle()

    edge = next(place for place in world.path()[1:-1] if place in world.edges)
    touch(page.place(edge))
    assert not world.is_open(edge)
    goal = next(cell for cell in reversed(world.cells) if cell not in (world.goal, world.agent))
    scrolled = page.page.evaluate("scrollY")
    (x, y), end = page.place(world.goal), page.place(goal)
    touch((x, y), ((x + end[0]) / 2, (y + end[1]) / 2), end)
    assert world.goal == goal
    assert page.page.evaluate("scrollY") == scrolled
    page.page.check("#compare")
    page.page.check("#you")
    page.page.wait_for_selector("[data-seat=you] .pad button")
    for width in (390, 320):
        page.page.set_viewport_size({"width": width, "height": 844})
        page.settle()
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    page.page.locator("[data-seat=you] .pad button").first.tap()
    page.settle()
    assert page.game.seats["you"].world.steps == 1


STRANGER = """<!doctype html><script>
const at = "ADDRESS", said = [];
async function attempt(name, options) {
  try {
    const answer = await fetch(at + "api", { method: "POST", body: '{"do": "level", "number": 9}', ...options });
    said.push(name + " " + answer.type + " " + answer.status);
  } catch { said.push(name + " refused"); }
}
(async () => {
  await attempt("plain", {});
  await attempt("no-cors", { mode: "no-cors", credentials: "include" });
  await attempt("json", { headers: { "content-type": "application/json", "x-token": "TOKEN" } });
  await attempt("guess", { mode: "no-cors", headers: { "x-token": "TOKEN" } });
  const frame = document.createElement("iframe");
  frame.src = at + "?token=TOKEN";
  document.body.append(frame);
  await new Promise((done) => (frame.onload = done));
  said.push(frame.contentDocument === null ? "frame closed" : "frame open");
  const make = (name, values) => Object.assign(document.createElement(name), values);
  const form = make("form", { method: "POST", action: at + "api?token=TOKEN", enctype: "text/plain", target: "other" });
  form.append(make("input", { name: '{"do": "level", "number": 9, "x": "', value: '"}' }));
  const other = make("iframe", { name: "other" });
  document.body.append(form, other);
  form.submit();
  await new Promise((done) => setTimeout(done, 500));
  document.title = said.join("; ");
})();
</script><body></body>"""


def test_a_strangers_page_cannot_drive_it_even_where_it_knows_the_token(browser: Any) -> None:
    game = tiny_game()
    with serving(game) as address, stranger(STRANGER.replace("ADDRESS", address).replace("TOKEN", TOKEN)) as theirs:
        page = browser.new_page()
        page.goto(theirs)
        until(lambda: "frame" in page.title())
        assert page.title() == "plain refused; no-cors refused; json refused; guess refused; frame closed"
        assert game.level == 0
        rebound = browser.new_page()
        answer = rebound.goto(address.replace(HOST, "evil.example") + f"?token={TOKEN}")
        assert answer.status == 403
        asked = """async (token) => (await fetch("/api", { method: "POST", body: '{"do": "level", "number": 9}',
            headers: { "content-type": "application/json", "x-token": token } })).status"""
        assert rebound.evaluate(asked, TOKEN) == 403
        assert game.level == 0
        page.close()
        rebound.close()


@contextmanager
def stranger(text: str) -> Iterator[str]:
    """A page of another origin."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer((HOST, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
