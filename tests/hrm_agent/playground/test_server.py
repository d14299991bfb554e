"""The server answers only who has the token, on this machine, from its own page; nothing that is asked ends it."""

from __future__ import annotations

import json
import logging
import re
import socket
from functools import partial
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

import hrm_agent.play as command
from forks import Forks
from games import tiny_game
from hrm_agent.agents.agent import AgentOverrides
from hrm_agent.agents.registry import make
from hrm_agent.environments.checked import EnvironmentFailed
from hrm_agent.evaluation.episodes import PolicyActor, run_episodes
from hrm_agent.launch.cli import parse_agent_options
from hrm_agent.playground import commands, server
from hrm_agent.playground.game import Game, show
from hrm_agent.playground.server import FILES, HEADERS, MOST_BYTES, PAGE, TOKEN_HEADER, build_app, listen, make_token

PORT, TOKEN = 8123, "a-token"
OWN = f"127.0.0.1:{PORT}"
GOOD = {TOKEN_HEADER: TOKEN, "content-type": "application/json"}
LOOK = b'{"do": "look"}'


@pytest.fixture(scope="module")
def game() -> Game:
    return tiny_game()


@pytest.fixture
def client(game: Game) -> TestClient:
    return TestClient(build_app(game, TOKEN, PORT), base_url=f"http://{OWN}", raise_server_exceptions=False)


def ask(client: TestClient, body: Any, **more: Any) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post("/api", content=content, headers={**GOOD, **more.pop("headers", {})}, **more)


def check_still_answers(client: TestClient) -> None:
    assert ask(client, LOOK).status_code == 200


def test_a_command_is_answered_with_the_state(client: TestClient) -> None:
    answer = ask(client, {"do": "level", "number": 4}).json()
    assert answer["level"] == 4
    assert "refused" not in answer
    answer = ask(client, {"do": "edge", "position": 0, "open": True})
    assert answer.status_code == 200
    assert "no edge" in answer.json()["refused"]
    assert answer.json()["level"] == 4


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({TOKEN_HEADER: ""}, 401),
        ({TOKEN_HEADER: TOKEN + "x"}, 401),
        ({TOKEN_HEADER: TOKEN[:-1]}, 401),
        ({TOKEN_HEADER: "\xe9"}, 401),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": f"https://{OWN}"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": f"evil.example:{PORT}"}, 403),
        ({"host": "127.0.0.1"}, 403),
        ({"host": f"127.0.0.1.evil.example:{PORT}"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_strangers_are_refused_with_a_line_of_json(client: TestClient, headers: dict[str, str], status: int) -> None:
    before = ask(client, LOOK).json()
    given = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = client.post("/api", content=b'{"do": "level", "number": 9}', headers={**GOOD, **given})
    assert answer.status_code == status
    assert "\n" not in answer.json()["error"]
    assert TOKEN not in answer.text
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert ask(client, LOOK).json() == before


def test_no_token_in_a_cookie_or_in_the_address_opens_the_api(client: TestClient) -> None:
    plain = {"content-type": "application/json"}
    client.cookies.set(TOKEN_HEADER, TOKEN)
    assert client.post(f"/api?token={TOKEN}", content=LOOK, headers=plain).status_code == 401
    assert "set-cookie" not in client.get("/", params={"token": TOKEN}).headers


@pytest.mark.parametrize("origin", [f"http://{OWN}", f"http://localhost:{PORT}"])
def test_the_page_itself_is_answered(client: TestClient, origin: str) -> None:
    assert ask(client, LOOK, headers={"origin": origin, "sec-fetch-site": "same-origin"}).status_code == 200
    assert ask(client, LOOK, headers={"host": f"localhost:{PORT}"}).status_code == 200


def test_on_port_80_a_browser_names_the_host_alone(game: Game) -> None:
    client = TestClient(build_app(game, TOKEN, 80), base_url="http://127.0.0.1", raise_server_exceptions=False)
    own = {"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}
    assert ask(client, LOOK, headers=own).status_code == 200
    assert ask(client, LOOK, headers={"origin": f"http://{OWN}"}).status_code == 403


def test_a_link_to_the_page_is_followed_and_a_frame_of_a_stranger_is_not(client: TestClient) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/", params={"token": TOKEN}, headers=link).status_code == 200
    assert client.get("/", headers=link).status_code == 401
    for dest in ("iframe", "script", "empty"):
        asked = {**link, "sec-fetch-dest": dest}
        assert client.get("/", params={"token": TOKEN}, headers=asked).status_code == 403
    assert ask(client, LOOK, headers=link).status_code == 403


def test_a_preflight_of_another_origin_allows_nothing(client: TestClient) -> None:
    asked = {"origin": "http://evil.example", "access-control-request-headers": TOKEN_HEADER}
    for headers in (asked, {}):
        answer = client.options("/api", headers=headers)
        assert answer.status_code in (403, 405)
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[" * 2000, 400),
        (b"\xff\xfe", 400),
        (b'"\\ud800"', 400),
        (b'{"do": "level", "number": ' + b"9" * 3000 + b"}", 400),
        (b'{"do": "level", "number": NaN}', 400),
        (b'{"do": "win"}', 400),
        (b'{"do": "settings", "seat": "agent", "carry": "\\u001b[2J"}', 200),
        (b" " * (MOST_BYTES + 1), 413),
        (b"x" * 1_000_000, 413),
    ],
)
def test_bodies_are_bounded_json(client: TestClient, body: bytes, status: int) -> None:
    answer = ask(client, body)
    assert answer.status_code == status
    line = answer.json()["error" if status != 200 else "refused"]
    assert line.isprintable()
    check_still_answers(client)


@pytest.mark.parametrize(
    "path", ["/nothing", "/../server.py", "/%2e%2e%2fserver.py", "/server.py", "/app.js/", "/api/x"]
)
def test_there_are_no_other_files(client: TestClient, path: str) -> None:
    answer = client.get(path, follow_redirects=False)
    assert answer.status_code in (307, 404)
    assert "import" not in answer.text
    check_still_answers(client)


def test_the_page_needs_the_token_and_comes_with_its_headers(client: TestClient) -> None:
    assert client.get("/").status_code == 401
    assert client.get("/", params={"token": "x"}).status_code == 401
    page = client.get("/", params={"token": TOKEN})
    assert page.status_code == 200
    for name, value in HEADERS.items():
        assert page.headers[name] == value
    assert client.get("/api", headers=GOOD).status_code == 404


def test_the_page_asks_for_nothing_from_outside(client: TestClient) -> None:
    """Every file it names is served, and no address of another host is in any."""
    assert {path.name for path in PAGE.iterdir()} == {*FILES, "index.html"}
    text = {name: (PAGE / name).read_text() for name in (*FILES, "index.html")}
    for name, content in text.items():
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'`]*", content))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name
        assert "innerHTML" not in content
        assert not re.search(r"\beval\(|style=\"|onclick=", content)
    for name in re.findall(r"(?:href|src)=\"([^\"]+)\"", text["index.html"]):
        assert client.get(f"/{name}").status_code == 200
    for name in FILES:
        if name.endswith(".js"):
            assert set(re.findall(r"from \"\./([^\"]+)\"", text[name])) <= set(FILES)


def test_what_no_one_expects_is_logged_and_the_server_answers_again(
    client: TestClient, game: Game, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(error: Exception, command: Any) -> None:
        raise error

    with caplog.at_level(logging.ERROR, server.__name__):
        monkeypatch.setattr(game, "do", partial(broken, KeyError("inside")))
        answer = ask(client, LOOK)
    assert answer.status_code == 500
    assert "inside" not in answer.text
    assert caplog.records[-1].exc_info is not None
    monkeypatch.setattr(game, "do", partial(broken, EnvironmentFailed("env=X-v0: environment 0 failed in step")))
    answer = ask(client, LOOK)
    assert answer.status_code == 500
    assert answer.json() == {"error": "env=X-v0: environment 0 failed in step"}
    monkeypatch.undo()
    check_still_answers(client)


def test_a_web_socket_is_not_answered(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect("/api"):
        pass
    assert closed.value.code == 1008
    check_still_answers(client)


def test_it_listens_on_loopback_alone_and_says_where_a_port_is_taken() -> None:
    with listen(0) as opened:
        host, port = opened.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(ValueError, match=f"port={port}: .*give another one, or 0"):
            listen(port)
    assert len({make_token() for _ in range(50)}) == 50
    assert len(make_token()) >= 32


def test_without_the_extra_one_line_names_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(server, "find_spec", lambda name: None if name == "uvicorn" else object())
    monkeypatch.setattr("sys.argv", ["play"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == ("error: the page needs Starlette and uvicorn: pip install 'hrm-agent[play]'\n")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("port=70000", "port=70000: expected an integer from 0 to 65,535"),
        ("agent=DynamicMaze-TRM-v9", "DynamicMaze-TRM-v9"),
        ("env=CartPole-v1", "do not fit"),
        ("carry=output", "weights of its own"),
        ("open=perhaps", "open='perhaps': expected true or false"),
    ],
)
def test_wrong_options_end_with_a_line_before_anything_listens(
    argument: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(command, "listen", lambda port: pytest.fail("it listens"))
    monkeypatch.setattr("sys.argv", ["play", argument])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_overrides_are_those_of_the_other_commands() -> None:
    options = parse_agent_options(["carry=reset", "segments=4", "env_options.rows=6"], command.play, "")
    assert (options["overrides"].carry, options["overrides"].segments) == ("reset", 4)
    assert options["env_options"] == {"rows": 6}
    assert (options["agent"], options["port"], options["open"]) == (None, 0, False)


def test_the_command_opens_the_page_and_finds_the_agents_probe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    addresses: list[str] = []
    served: list[Any] = []
    monkeypatch.setattr("webbrowser.open", addresses.append)
    monkeypatch.setattr(command, "serve", lambda game, opened, token: served.append(show(game)))
    command.play(open=True, overrides=AgentOverrides(segments=2), seed=3)
    assert f"open it: {addresses[0]}\n" in capsys.readouterr().out
    (shown,) = served
    assert shown["about"]["agent"] == command.DEFAULT_AGENT
    thought = shown["seats"][0]["thought"]
    assert len(thought["distance"]) == len(thought["probabilities"]) == 2


def test_what_an_agent_draws_on_the_page_is_what_it_draws_in_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    expected: list[int] = []

    def serve(game: Game, opened: socket.socket, token: str) -> None:
        game.do(commands.Settings("agent", sampled=True))
        while (seat := game.seats["agent"]).world.outcome is None:
            assert seat.thought is not None
            taken.append(seat.thought.action)
            game.do(commands.Step())

    monkeypatch.setattr(command, "serve", serve)
    command.play(seed=3)
    actor = PolicyActor(make(command.DEFAULT_AGENT).policy, deterministic=False)
    run_episodes(actor, "DynamicMaze-v0", {}, 1, 3, batch=1, on_step=lambda step: expected.append(int(step.actions[0])))
    assert taken == expected


SERVED = """
import json, os, re, signal, sys, threading, time, urllib.error, urllib.request
from hrm_agent import play
said = []
class Out:
    def write(self, text): said.append(text)
    def flush(self): pass
def visit():
    while not "".join(said).count("\\n"): time.sleep(0.02)
    address, token = re.search(r"(http://\\S+/)\\?token=(\\S+)", "".join(said)).groups()
    asked = {"x-token": token, "content-type": "application/json"}
    for headers in (asked, {**asked, "x-token": "x"}, {**asked, "host": "evil.example"}):
        request = urllib.request.Request(address + "api", b'{"do": "step"}', headers)
        try:
            with urllib.request.urlopen(request) as answer:
                print(answer.status, json.load(answer)["seats"][0]["steps"], answer.headers["server"], file=sys.stderr)
        except urllib.error.HTTPError as error:
            print(error.code, file=sys.stderr)
    os.kill(os.getpid(), signal.SIGINT)
sys.argv[1:] = ["env_options.p_change=0"]
sys.stdout, real = Out(), sys.stdout
threading.Thread(target=visit, daemon=True).start()
play.main()
print("".join(said), file=real)
"""


def test_the_command_serves_until_ctrl_c_and_ends_well(forks: Forks) -> None:
    (ended,) = forks.run([["-c", SERVED]], [{}])
    assert ended.stderr.splitlines() == ["200 1 None", "401", "403"]
    assert ended.returncode == 0
    assert re.fullmatch(r"open it: http://127\.0\.0\.1:\d+/\?token=[\w-]{32}\nCtrl-C ends it\n\n", ended.stdout)


def test_a_taken_port_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr("sys.argv", ["play", f"port={taken.getsockname()[1]}"])
        with pytest.raises(SystemExit) as ended:
            command.main()
    assert ended.value.code == 2
    assert "give another one, or 0 for any that is free" in capsys.readouterr().err
