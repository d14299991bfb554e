"""An agent's model card: the content of `agent.json` as a page for readers and the Hugging Face hub.

The page is `README.md` in the agent's folder, with the hub's YAML front matter
(https://huggingface.co/docs/hub/model-cards). It is a function of the description alone, so a page that differs has
been edited. It is never read back, only compared.
"""

from __future__ import annotations

import json
from typing import Any

from hrm_agent.names.values import printable

CARD_FILE = "README.md"
LIBRARY = "hrm-agent"
NEEDED = {"env", "env_options", "first_level", "levels", "success", "success_ci95"}
BASELINES = (("a random policy", "random"), ("BFS re-planner", "bfs_replanner"), ("clairvoyant bound", "clairvoyant"))
PROBED = {"env", "env_options", "split", "first_level", "levels", "train_levels", "r2", "random", "input", "input_3x3"}
SHOWN_SEGMENTS = (1, 2, 4, 8)
SAMPLED = ("this agent, actions drawn", "sampled")


def evaluation_facts(report: dict[str, Any]) -> dict[str, Any]:
    """The part of `hrm_agent.evaluate.evaluate`'s report that a card shows; put it into `info["evaluation"]`."""
    others = {key: report.get(key) for _, key in (*BASELINES, SAMPLED)}
    return {
        "env": report["env"],
        "env_options": report["env_options"],
        "split": report["split"],
        "first_level": report["seeds"]["first"],
        "levels": report["seeds"]["count"],
        "carry": report["carry"],
        "segments": report["segments"],
        **{name: report[name] for name in ("success", "success_ci95", "spl", "return", "macs_per_decision")},
        **{
            key: None if row is None else {name: row.get(name) for name in ("success", "success_ci95", "spl", "return")}
            for key, row in others.items()
        },
        "hrm_agent_version": report["hrm_agent_version"],
    }


def write_card(description: dict[str, Any]) -> str:
    """The page, Markdown.

    Args:
        description: of an agent, as in its `agent.json`. Of its `info` the card shows `env`, `env_options`, `algo`,
            `frames`, `seconds`, `seed`, `parameters`, `command`, `machine`, `license`, `id` (its registered name),
            `evaluation` (`evaluation_facts`) and `distance_probe` (`hrm_agent.evaluation.probes.fit_distance_probe`);
            whatever is missing is left out.
    """
    info = description["info"]
    env = printable(info.get("env") or "an unnamed environment")
    title = printable(info.get("id") or "") or f"{description['policy']['core'].upper()} agent for {env}"
    parts = [
        _front_matter(info),
        f"# {title}\n\nA recurrent policy for `{env}`: a {description['policy']['core'].upper()} core whose latent "
        f"{_carried(description['policy'])} between environment steps. Made with HRM-Agent (`hrm_agent`).",
        _section("The agent", _agent_rows(description)),
        _section("Training", _training_rows(info)),
        _evaluation(evaluation_of(info)),
        _probe(probe_of(info)),
        _use(info),
        _limits(description),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(info: dict[str, Any]) -> str:
    """JSON scalars are valid YAML, so an agent's metadata cannot break out of its line."""
    tags = ["reinforcement-learning", "deep-reinforcement-learning", "gymnasium", "recurrent-policy"]
    tags += [str(info[key]) for key in ("env", "algo", "core") if info.get(key)]
    lines = [f"library_name: {LIBRARY}", f"license: {json.dumps(info.get('license') or 'unknown')}"]
    lines += ["pipeline_tag: reinforcement-learning", "tags:", *(f"  - {json.dumps(tag)}" for tag in tags)]
    evaluation = evaluation_of(info)
    if evaluation:
        lines += [
            "model-index:",
            f"  - name: {json.dumps(str(info.get('id') or 'agent'))}",
            "    results:",
            "      - task: {type: reinforcement-learning, name: reinforcement-learning}",
            f"        dataset: {{type: {json.dumps(evaluation['env'])}, name: {json.dumps(evaluation['env'])}}}",
            "        metrics:",
            f"          - {{type: success_rate, name: greedy success, value: {evaluation['success']}}}",
        ]
    return "\n".join(["---", *lines, "---"])


def evaluation_of(info: dict[str, Any]) -> dict[str, Any] | None:
    """What `evaluation_facts` wrote; None for anything else under that key."""
    found = info.get("evaluation")
    return found if isinstance(found, dict) and found.keys() >= NEEDED else None


def _carried(policy: dict[str, Any]) -> str:
    if policy["carry"] == "reset":
        return "starts afresh and is not carried over"
    return f"is carried over (rule `{policy['carry']}`)"


def _agent_rows(description: dict[str, Any]) -> list[tuple[str, str]]:
    policy, info = description["policy"], description["info"]
    options = ", ".join(f"{name}={value}" for name, value in policy["core_options"].items())
    return [
        ("environment", _code(info.get("env"), info.get("env_options"))),
        ("observations", f"`{json.dumps(description['observation_space'])}`"),
        ("actions", f"`{json.dumps(description['action_space'])}`"),
        ("core", f"{policy['core']} of width {policy['hidden_size']} ({options})"),
        ("carry", policy["carry"]),
        ("segments of thought per step (K)", str(policy["segments"])),
        ("gradient between steps", policy["time_gradient"]),
        ("parameters", _count(info.get("parameters"))),
    ]


def _training_rows(info: dict[str, Any]) -> list[tuple[str, str]]:
    seconds = info.get("seconds")
    return [
        ("command", f"`{info['command']}`" if info.get("command") else ""),
        ("algorithm", info.get("algo") or ""),
        ("seed", "" if info.get("seed") is None else str(info["seed"])),
        ("frames", _count(info.get("frames"))),
        ("seconds of training", "" if seconds is None else f"{seconds:g}"),
        ("machine", info.get("machine") or ""),
        ("hrm-agent", info.get("hrm_agent_version") or ""),
    ]


def _evaluation(evaluation: dict[str, Any] | None) -> str:
    if not evaluation:
        return "## Evaluation\n\nNone is recorded with this agent."
    last = evaluation["first_level"] + evaluation["levels"] - 1
    named = evaluation.get("split", evaluation.get("band"))  # its former name
    split = f"{named} " if named else ""
    by_return = evaluation.get("spl") is None  # no shortest paths
    lines = [
        f"Greedy, on {evaluation['levels']:,} {split}levels (seeds {evaluation['first_level']} to {last}) of "
        f"{_code(evaluation['env'], evaluation['env_options'])}; 95% interval by Wilson's formula.",
        "",
        f"| | success | 95% interval | {'return' if by_return else 'SPL'} |",
        "|---|---|---|---|",
        _result("this agent", evaluation, by_return),
        *(_result(name, evaluation[key], by_return) for name, key in (SAMPLED, *BASELINES) if evaluation.get(key)),
    ]
    return "## Evaluation\n\n" + "\n".join(lines)


def probe_of(info: dict[str, Any]) -> dict[str, Any] | None:
    """What `fit_distance_probe` found; None for anything else under that key."""
    found = info.get("distance_probe")
    return found if isinstance(found, dict) and found.keys() >= PROBED else None


def _probe(facts: dict[str, Any] | None) -> str:
    if not facts:
        return ""
    last = facts["first_level"] + facts["levels"] - 1
    shown = [number for number in SHOWN_SEGMENTS if number <= len(facts["r2"])]
    rows = [("the latents of this agent", "r2"), ("those of the same network with random weights", "random")]
    lines = [
        "`probe.safetensors` holds a linear probe: from the latents of a token it reads log(1 + steps to the goal) of "
        f"its cell. Fitted on {facts['train_levels']:,} train levels; R² on {facts['levels']:,} {facts['split']} "
        f"levels (seeds {facts['first_level']} to {last}) of {_code(facts['env'], facts['env_options'])}, without the "
        "cells of the agent and of the goal:",
        "",
        f"| read from | {' | '.join(f'after segment {number}' for number in shown)} |",
        f"|---|{'---|' * len(shown)}",
        *(f"| {name} | {' | '.join(_r2(facts[key][number - 1]) for number in shown)} |" for name, key in rows),
        "",
        f"From the encoder's token alone, without the core: {_r2(facts['input'])}; with its eight neighbours: "
        f"{_r2(facts['input_3x3'])}.",
    ]
    return "## What its latents hold\n\n" + "\n".join(lines)


def _r2(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _result(name: str, row: dict[str, Any], by_return: bool) -> str:
    low, high = row["success_ci95"]
    last = row.get("return" if by_return else "spl")
    return f"| {name} | {row['success']:.3f} | {low:.3f} to {high:.3f} | {'' if last is None else f'{last:.3f}'} |"


def _use(info: dict[str, Any]) -> str:
    name = info.get("id")
    load = f'hrm_agent.make("{name}")' if name else 'hrm_agent.Agent.load("FOLDER")  # the folder of this page'
    which = f"agent={name}" if name else "run=FOLDER"
    return (
        "## Use\n\n"
        f"```python\nimport hrm_agent\n\nagent = {load}\n"
        "action, state = agent.predict(observation, state, episode_start)  # state=None begins an episode\n```\n\n"
        f"```bash\npython -m hrm_agent.evaluate {which}\npython -m hrm_agent.watch {which} out=watch.gif\n```\n\n"
        "Loading executes no code from the folder: the weights are safetensors, the rest is JSON."
    )


def _limits(description: dict[str, Any]) -> str:
    env = description["info"].get("env") or "its environment"
    return (
        "## Intended use and limits\n\n"
        f"For research and teaching, and as a starting point in `{env}`. The numbers above hold for the levels and "
        "options they name; under other options, sizes or environments measure anew (`python -m hrm_agent.shifts`). "
        "The agent acts on simulated observations of the spaces above only, and nothing else has been tried. Its "
        "memory is the state that `predict` returns: an agent that is not given it back plays another, weaker policy."
    )


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    known = [(name, value) for name, value in rows if value]
    if not known:
        return ""
    return f"## {title}\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {_cell(value)} |" for name, value in known)


def _cell(text: str) -> str:
    return printable(str(text)).replace("|", "\\|")


def _code(env: str | None, options: dict[str, Any] | None) -> str:
    if not env:
        return ""
    return f"`{env}`" + (f" with `{json.dumps(options)}`" if options else "")


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
