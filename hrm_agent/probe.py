"""`python -m hrm_agent.probe run=FOLDER`: fit the linear probe of an agent's latents and keep it beside its weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hrm_agent.agents.agent import Agent
from hrm_agent.agents.description import add_facts, find_agent_folder
from hrm_agent.agents.probe import PROBE_FILE, save_probe
from hrm_agent.evaluation.probes import fit_distance_probe
from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.launch.cli import parse_agent_options, usage_errors
from hrm_agent.names.installed import leave_out_working_folder
from hrm_agent.names.values import Depth, Episodes, Seed

EXAMPLES = ("python -m hrm_agent.probe run=RUN", "python -m hrm_agent.probe run=RUN which=last episodes=500 segments=4")


def probe(
    run: str,
    train_episodes: Episodes = 400,
    episodes: Episodes = 200,
    segments: Depth = 8,
    seed: Seed = 0,
    env: str | None = None,
    env_options: dict[str, Any] | None = None,
    best: bool = True,
) -> tuple[Path, dict[str, Any]]:
    """Fit a linear probe, which reads from the latents of a maze's cells how far the goal is, and write it.

    The agent's folder gets `probe.safetensors`, its `agent.json` and, unless it was edited, its card the figures.

    Args:
        run: folder of a training run or of an agent.
        train_episodes: levels of the train split that it is fitted on.
        episodes: levels of the validation split that it is tested on.
        segments: with a map each; at least as many as the agent uses.
        seed: number of the first level.
        env: another maze than the agent was trained on; only the size of its grid may differ.
        env_options: changed keyword arguments of the environment.
        best: of a run's agents, the best on validation levels rather than the last.

    Returns:
        The file written, and the figures (`evaluation.probes.fit_distance_probe`).

    Raises:
        ValueError: no agent there, an environment that is no maze or does not fit, or a core without a latent per
            token; nothing is written then.
    """
    folder = find_agent_folder(Path(run), best)
    agent = Agent.load(folder)
    env_id, options = agent.environment(env, env_options)
    agent = agent.fit_environment(env_id, options)
    made, facts = fit_distance_probe(agent.policy, env_id, options, train_episodes, episodes, segments, seed)
    save_probe(folder, made)
    add_facts(folder, distance_probe=facts)
    return folder / PROBE_FILE, facts


@outliving_the_terminal()
def main() -> None:
    usage = "python -m hrm_agent.probe run=FOLDER [KEY=VALUE] ..."
    leave_out_working_folder(sys.argv[1:])  # files name environments and cores
    with usage_errors():
        file, facts = probe(**parse_agent_options(sys.argv[1:], probe, usage, EXAMPLES))
    print(f"R² of log(1 + steps to the goal) on {facts['levels']:,} validation levels, after segment 1, 2, ...:")
    print(f"  latents         {_numbers(facts['r2'])}")
    print(f"  random weights  {_numbers(facts['random'])}")
    print(f"  encoder's token {_numbers([facts['input']])}, with its neighbours {_numbers([facts['input_3x3']])}")
    print(f"wrote {file}")


def _numbers(values: list[float | None]) -> str:
    return "  ".join("undefined" if value is None else f"{value:.3f}" for value in values)


if __name__ == "__main__":
    main()
