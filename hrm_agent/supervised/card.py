"""The card of a puzzle model that ships: `README.md`, a function of what lies beside it.

What a model is stands in the metadata of its weights, how it was made and what it solves in `model.json`. The page is
never read back, only compared.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hrm_agent.agents.card import CARD_FILE, LIBRARY
from hrm_agent.files.writing import write_atomically
from hrm_agent.names.values import printable
from hrm_agent.supervised.files import INFO_FILE, ModelConfig, halting_rule_of, read_info, read_model_file
from hrm_agent.supervised.tasks.base import TaskSpec
from hrm_agent.training.model_folder import MODEL_FILE

SCORES = ("valid", "exact", "top_3", "top_5", "cells")
"""In the order of a card's table."""
MEANINGS = {
    "valid": "right by the rules",
    "exact": "as the label says",
    "top_3": "the label among the first three",
    "top_5": "the label among the first five",
    "cells": "labelled cells that are right",
}


def evaluation_facts(report: dict[str, Any]) -> dict[str, Any]:
    """The part of a report of `hrm_agent.launch.solve.solve` that a card shows; it goes to `info["evaluation"]`."""
    kept = ("split", "puzzles", "segments", "precision", "q_halt_accuracy", "hrm_agent_version")
    scores = [name for name in report if f"{name}_ci95" in report]
    return {
        **{name: report[name] for name in kept},
        **{key: report[key] for name in scores for key in (name, f"{name}_ci95")},
        "halted": {key: value for key, value in report["halted"].items() if key != "ms_per_puzzle"},
    }


def write_description(folder: Path, info: dict[str, Any]) -> None:
    """Write `model.json` and the card beside a model's weights.

    Raises:
        CheckpointError: there are no weights of a puzzle model.
    """
    text = json.dumps(info, indent=2) + "\n"
    _, config, spec = read_model_file(folder / MODEL_FILE)
    write_atomically(folder / INFO_FILE, text.encode())
    # From the written text, so that the same page can be made from it.
    write_atomically(folder / CARD_FILE, write_card(json.loads(text), config, spec).encode())


def card_of(folder: Path) -> str:
    """The card that the model in a folder should have."""
    _, config, spec = read_model_file(folder / MODEL_FILE)
    return write_card(read_info(folder), config, spec)


def write_card(info: dict[str, Any], config: ModelConfig, spec: TaskSpec) -> str:
    """The page, Markdown.

    Args:
        info: `model.json`. Shown are `id`, `task`, `task_options`, `steps`, `samples`, `seconds`, `clock`, `seed`,
            `parameters`, `command`, `commit`, `machine`, `license`, `halting_rule` and `evaluation`
            (`evaluation_facts`); whatever is missing is left out.
        config, spec: of the model's file.
    """
    name = printable(str(info.get("id") or f"{config.core} for {info.get('task') or 'puzzles'}"))
    options = ", ".join(f"{key}={value}" for key, value in config.core_options.items())
    of = f"{spec.grid[0]} x {spec.grid[1]}" if spec.grid else f"{spec.sequence_length} tokens"
    model = [
        ("task", _code(info.get("task"), info.get("task_options"))),
        ("puzzles", f"{of}, {spec.input_ids} ids of inputs and {spec.answer_ids} of answers"),
        ("core", f"{config.core} of width {config.hidden_size} ({options})"),
        ("segments", _count(info.get("max_segments"))),
        ("halts where", str(halting_rule_of(info))),
        ("parameters", _count(info.get("parameters"))),
    ]
    seconds = info.get("seconds")
    training = [
        ("command", f"`{info['command']}`" if info.get("command") else ""),
        ("seed", "" if info.get("seed") is None else str(info["seed"])),
        ("optimizer steps", _count(info.get("steps"))),
        ("puzzles, counted once a segment", _count(info.get("samples"))),
        ("seconds of training", "" if seconds is None else f"{seconds:g} ({info.get('clock', 'wall')})"),
        ("machine", str(info.get("machine") or "")),
        ("commit", str(info.get("commit") or "")),
        ("hrm-agent", str(info.get("hrm_agent_version") or "")),
    ]
    parts = [
        _front_matter(info, name),
        f"# {name}\n\nA puzzle model: a {config.core.upper()} core trained by deep supervision on "
        f"`{info.get('task')}`. Made with HRM-Agent (`hrm_agent`).",
        _section("The model", model),
        _section("Training", training),
        _evaluation(info.get("evaluation")),
        "## Use\n\n"
        f"```bash\npython -m hrm_agent.solve model={name if info.get('id') else 'FOLDER'}\n```\n\n"
        "Loading executes no code from the folder: the weights are safetensors, the rest is JSON.",
        "## Intended use and limits\n\nFor research and teaching. The numbers hold for puzzles of the task and options "
        "above; for others measure anew. An answer is not checked by the model: whether it is right, the task's rules "
        "say.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(info: dict[str, Any], name: str) -> str:
    """JSON scalars are valid YAML, so a model's metadata cannot break out of its line."""
    tags = ["recursive-reasoning", "puzzles", *(str(info[key]) for key in ("task", "core") if info.get(key))]
    lines = [f"library_name: {LIBRARY}", f"license: {json.dumps(info.get('license') or 'unknown')}", "tags:"]
    lines += [f"  - {json.dumps(tag)}" for tag in tags]
    return "\n".join(["---", *lines, f"model_name: {json.dumps(name)}", "---"])


def _evaluation(found: Any) -> str:
    if not isinstance(found, dict) or not isinstance(found.get("halted"), dict):
        return "## Evaluation\n\nNone is recorded with this model."
    halted, published = found["halted"], found["halted"].get("published")
    columns = [f"{found['segments']} segments", f"halting, {halted['segments']:.1f} on average"]
    columns += [f"by the published rule, {published['segments']:.1f}"] if published else []
    lines = [
        f"On {found['puzzles']:,} {found['split']} puzzles; 95% intervals.",
        "",
        f"| | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for score in SCORES:
        if score in found:
            cells = [_estimate(part, score) for part in (found, halted, published) if part]
            lines.append(f"| `{score}`: {MEANINGS[score]} | {' | '.join(cells)} |")
    return "## Evaluation\n\n" + "\n".join(lines)


def _estimate(scores: dict[str, Any], name: str) -> str:
    low, high = scores[f"{name}_ci95"]
    return f"{scores[name]:.3f} [{low:.3f}, {high:.3f}]"


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"| {name} | {printable(value).replace('|', chr(92) + '|')} |" for name, value in rows if value]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines])


def _code(name: Any, options: Any) -> str:
    return "" if not name else f"`{name}`" + (f" with `{json.dumps(options)}`" if options else "")


def _count(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else ""
