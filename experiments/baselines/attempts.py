"""The table of the attempts at recurrent PPO of sb3-contrib, from `recurrent.json`."""

from __future__ import annotations

from experiments.engine.records import Record
from experiments.engine.statistics import Estimate
from experiments.engine.tables import estimate, number, table

SHOWN = ("learning_rate", "anneal", "num_envs", "n_steps", "batch_size", "n_epochs", "critic", "ent_coef", "vf_coef")
"""Settings in the table; what stands before the LSTMs has a column of its own."""


def attempts_table(records: list[Record]) -> str:
    """One row an attempt and seed, in the order of the file."""
    return table([attempt_row(record) for record in records])


def attempt_row(record: Record) -> dict[str, str]:
    settings = record["settings"]
    drawn = record.get("sampled_ci95")
    return {
        "attempt": record["arm"],
        "seed": str(record["seed"]),
        "before the LSTM": features_of(settings),
        "other settings": ", ".join(f"{name}={settings[name]}" for name in SHOWN if name in settings),
        "frames": f"{record['frames']:,}" + " (stopped)" * record["stopped"],
        "processor time": f"{record['seconds']:,.0f} s",
        "sampled in training, at the end": number(record["curve"][-1][2] if record["curve"] else None),
        "validation, greedy": number(record["validation_success"]),
        "validation, sampled": number(record.get("validation_sampled_success")),
        "test, greedy": estimate(record["success_ci95"] and Estimate(record["success"], *record["success_ci95"])),
        "test, sampled": estimate(drawn and Estimate(record["sampled_success"], *drawn)),
    }


def features_of(settings: Record) -> str:
    if layers := settings.get("mlp_layers"):
        return f"{layers} hidden layer{'s' * (layers > 1)} of {settings['features']}"
    if channels := settings.get("channels"):
        return f"{settings.get('conv_layers', 2)} convolutions of {channels}, one layer of {settings['features']}"
    return "nothing"
