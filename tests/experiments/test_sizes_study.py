"""The study of sizes: commands that are accepted, sizes that training has not seen, and tables of its records."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from experiments.engine.pages import settings_of
from experiments.engine.records import save
from experiments.sizes import draw, run
from hrm_agent.launch.cli import compose_config, open_options
from hrm_agent.launch.settings import resolve

ARMS = run.Study(run.HERE).arms()


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_trains_on_small_mazes_alone(arm: str) -> None:
    study = run.Study(run.HERE)
    overrides = [*study.settings["base"], *ARMS[arm]]
    settings = resolve(compose_config(open_options(overrides), "train"))
    options = settings["env"]["options"]
    trained = options.get("sizes") or [2 * options["rows"] + 1]
    assert max(trained) == 13
    assert max(study.settings["played"]["sides"]) == 59
    assert settings["max_seconds"] > 0
    assert settings["algo"]["name"] == re.split("-", arm)[0]


def test_tables_have_every_size_and_what_could_not_be_played_is_blank(tmp_path: Path) -> None:
    sides = settings_of(run.HERE)["played"]["sides"]
    (tmp_path / "study.yaml").write_text((run.HERE / "study.yaml").read_text())

    def at(side: int) -> dict[str, Any]:
        if side == 59:
            return {"side": side, "success": None, "skipped": "too large"}
        cost = {"macs_per_decision": 1000 * side, "ms_per_decision": 1.0, "ms_per_decision_batched": 0.1}
        references = {"bfs_replanner": 1.0, "clairvoyant": 1.0}
        return {"side": side, "success": 0.5, **cost, **references, "sampled": {"success": 0.75}}

    own = {"agent": "ppo", "frames": 10, "seconds": 400.0, "segments": 1, "split": "test"}
    save(
        tmp_path / "results.json", [{**own, "seed": seed, "sizes": [at(side) for side in sides]} for seed in (0, 1000)]
    )
    played = [side for side in sides if side != 59]
    levels = [{"agent": "ppo", "seed": s, "side": side, "success": "01"} for s in (0, 1000) for side in played]
    save(tmp_path / "levels.json", levels)
    tables = draw.tables(tmp_path)
    head, _, agent, replanner, _ = tables["sizes success"].splitlines()
    assert head.count("x") == len(sides)
    assert agent.startswith("| ppo | 2 | 10 | **0.500** [")
    assert agent.count("(0.750)") == len(played)
    assert agent.endswith("|  |")
    assert replanner.count("1.000") == len(played)
    assert "| 31,000 |" in tables["sizes cost"]
    assert tables["sizes levels"] == "Levels: split `test`."
    draw.figures(tmp_path)
    assert (tmp_path / "sizes.png").read_bytes()[:4] == b"\x89PNG"
