"""Tables and figures of the carry x budget study, from its JSON files alone.

Success of an arm: mean over training seeds, with a 95% interval over seeds and levels
(`hrm_agent.evaluation.statistics.crossed_interval`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.engine.figures import panels, save
from experiments.engine.records import Record, load
from experiments.engine.statistics import Estimate, crossed_difference, crossed_interval, holm, mean_of
from experiments.engine.tables import average, estimate, number, seconds, table

RULES = ("reset", "full-detached", "full-bptt", "last_token-bptt", "gate-bptt", "output-bptt")
BUDGETS = (1, 2, 4)
CORES = ("trm-attention", "trm-mlp", "hrm-conv", "convlstm")
VARIANTS = ("trm-attention-learned-bptt", "trm-attention_local-bptt", "trm-attention_conv-bptt", "feedforward")
THINKERS = (
    "reset-K1", "reset-K4", "full-detached-K4", "full-bptt-K1", "full-bptt-K4", "gate-bptt-K1", "gate-bptt-K4",
    "feedforward",
)  # fmt: skip
PAIRS = (
    ("full-bptt-K1", "reset-K1"),
    ("full-bptt-K1", "full-detached-K1"),
    ("full-bptt-K4", "reset-K4"),
    ("full-bptt-K4", "full-detached-K4"),
    ("full-detached-K1", "reset-K1"),
    ("full-detached-K4", "reset-K4"),
    ("gate-bptt-K1", "full-bptt-K1"),
    ("gate-bptt-K4", "full-bptt-K4"),
    ("gate-bptt-K1", "reset-K1"),
    ("gate-bptt-K1", "reset-K4"),
    ("gate-bptt-K1", "gate-bptt-K4"),
    ("output-bptt-K1", "reset-K1"),
    ("output-bptt-K4", "reset-K4"),
    ("last_token-bptt-K1", "reset-K1"),
    ("last_token-bptt-K4", "reset-K4"),
    ("hrm-conv-bptt", "full-bptt-K1"),
)
PASSES = 1 + 3 * 2  # of the network for a frame of training: acting, and twice forward and backward (twice its cost)


class Study:
    """The JSON files of the folder."""

    def __init__(self, folder: Path) -> None:
        files = ("results", "curves", "lesions", "levels")
        self.results, self.curves, self.lesions, self.levels = (load(folder / f"{name}.json") for name in files)

    def runs(self, arm: str) -> list[Record]:
        return [r for r in self.results if r["agent"] == arm]

    def scores(self, arm: str) -> NDArray[np.float64]:
        """Success `[seeds, levels]`."""
        rows = [[int(c) for c in r["success"]] for r in self.levels if r["agent"] == arm]
        return np.array(rows, float)

    @cache  # noqa: B019
    def success(self, arm: str) -> Estimate | None:
        scores = self.scores(arm)
        return crossed_interval(scores) if scores.size else None

    def lesioned(self, arm: str, lesion: str) -> list[Record]:
        return [r for r in self.lesions if (r["agent"], r["lesion"]) == (arm, lesion)]

    def on_levels(self, arm: str, seeds: set[int], count: int) -> float | None:
        """Mean success of these seeds on the first `count` levels."""
        rows = [r["success"][:count] for r in self.levels if r["agent"] == arm and r["seed"] in seeds]
        return mean_of(row.count("1") / count for row in rows)


def tables(folder: Path) -> dict[str, str]:
    study = Study(folder)
    makers = {
        "rules": rules_table, "differences": differences_table, "changes": changes_table, "cores": cores_table,
        "lesions": lesions_table, "thinking": thinking_table, "adaptive": adaptive_table, "worlds": worlds_table,
    }  # fmt: skip
    return {name: table(make(study)) for name, make in makers.items()}


def rules_table(study: Study) -> list[dict[str, str]]:
    rows = []
    for rule in RULES:
        cells = {f"K = {k}": estimate(study.success(f"{rule}-K{k}")) for k in BUDGETS}
        rows.append({"carry rule and gradient": rule, **cells})
    return rows


def differences_table(study: Study) -> list[dict[str, str]]:
    scores = [(a, b, study.scores(a), study.scores(b)) for a, b in PAIRS]
    found = [(a, b, crossed_difference(x, y)) for a, b, x, y in scores if x.size and y.size]
    adjusted = holm([d.p_value for _, _, d in found])
    return [
        {
            "a": a,
            "b": b,
            "success of a - b [95%]": f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]",
            f"p, corrected for {len(found)} comparisons": f"{p:.3f}" if p >= 0.001 else "< 0.001",
        }
        for (a, b, d), p in zip(found, adjusted, strict=True)
    ]


def changes_table(study: Study) -> list[dict[str, str]]:
    rows = []
    for arm in [f"{rule}-K{k}" for rule in RULES for k in BUDGETS]:
        runs = study.runs(arm)
        if not runs:
            continue
        kinds = {
            f"first decision: {kind}": number(mean_of((r["regret_by_change"] or {}).get(kind) for r in runs))
            for kind in ("unchanged", "immaterial", "material")
        }
        rows.append(
            {
                "agent": arm,
                **kinds,
                "regret after a material change, mean over changes": average(runs, "regret_after_material_change", 2),
                "steps to re-plan, mean over changes": average(runs, "steps_to_replan", 2),
                "stale-plan rate, of changes": average(runs, "stale_plan_rate"),
                "SPL": average(runs, "spl"),
            }
        )
    return rows


def cores_table(study: Study) -> list[dict[str, str]]:
    arms = {"trm-conv": ("reset-K1", "full-detached-K1", "full-bptt-K1")}
    arms |= {core: (f"{core}-reset", f"{core}-detached", f"{core}-bptt") for core in CORES}
    arms |= {arm.removesuffix("-bptt"): ("", "", arm) for arm in VARIANTS if arm != "feedforward"}
    arms["feedforward (no state)"] = ("feedforward", "", "")
    rows = []
    for core, three in arms.items():
        runs = [r for arm in three for r in study.runs(arm)]
        if not runs:
            continue
        cells = [estimate(study.success(arm)) if arm else "" for arm in three]
        rows.append(
            {
                "core, K = 1": core,
                **dict(zip(("reset", "carried, detached", "carried, bptt"), cells, strict=True)),
                "seeds": str(len(study.runs(next(a for a in three if a)))),
                "multiply-adds a decision": f"{runs[0]['macs_per_decision']:,}",
                "parameters": f"{runs[0]['parameters']:,}",
                "training, median": seconds(runs),
            }
        )
    return rows


def lesions_table(study: Study) -> list[dict[str, str]]:
    rows = []
    for arm in [f"{rule}-K{k}" for rule in RULES[1:] for k in BUDGETS]:
        cut = study.lesioned(arm, "carry=reset")
        if cut:
            rows.append(
                {
                    "agent": arm,
                    "as trained": number(study.on_levels(arm, {r["seed"] for r in cut}, cut[0]["options"]["episodes"])),
                    "reset at every step when tested": average(cut, "success"),
                }
            )
    return rows


def thinking_table(study: Study) -> list[dict[str, str]]:
    rows = []
    for arm in THINKERS:
        cells = {}
        for k in (1, 2, 4, 8, 16):
            tried = study.lesioned(arm, f"segments={k}")
            success = mean_of(r["success"] for r in tried)
            regret = mean_of((r["regret_by_change"] or {}).get("unchanged") for r in tried)
            cells[f"K = {k}"] = "" if success is None else f"{success:.3f} ({number(regret, 2)})"
        if any(cells.values()):
            rows.append({"agent, success (regret a decision)": arm, **cells})
    return rows


def adaptive_table(study: Study) -> list[dict[str, str]]:
    rows = []
    for record in {(r["agent"], r["lesion"]) for r in study.lesions if r["options"].get("stop")}:
        tried = study.lesioned(*record)

        def segments(kind: str, tried: list[Record] = tried) -> str:
            return number(mean_of((r["segments_by_change"] or {}).get(kind) for r in tried), 2)

        rows.append(
            {
                "agent": record[0],
                "stop": record[1],
                "success": average(tried, "success"),
                "segments a decision": average(tried, "segments_per_decision", 2),
                **{kind: segments(kind) for kind in ("unchanged", "immaterial", "material")},
            }
        )
    return sorted(rows, key=lambda row: (row["agent"], row["stop"]))


def worlds_table(study: Study) -> list[dict[str, str]]:
    worlds = ("as trained", "p_change=0.0", "p_change=0.4", "goal jumps", "fog", "13x13")
    rows = []
    for arm in sorted({r["agent"] for r in study.lesions if r["lesion"] in worlds}):
        cells = {w: average(study.lesioned(arm, w), "success") for w in worlds}
        rows.append({"agent": arm, **cells})
    for name, key in (("BFS re-planner", "bfs_replanner"), ("clairvoyant bound", "clairvoyant")):
        rows.append(
            {"agent": name, **{w: average([r for r in study.lesions if r["lesion"] == w], key) for w in worlds}}
        )
    return rows


def figures(folder: Path) -> None:
    from experiments.carry_budget import latents

    study = Study(folder)
    for name, paint in {"curves": curves_figure, "compute": compute_figure, "thinking": thinking_figure}.items():
        save(paint(study), folder / f"{name}.png")
    latents.draw(load(folder / "latents.json"), folder)


def curves_figure(study: Study) -> Any:
    """Learning curves, one panel a rule: every seed, colours for K."""
    figure, axes = panels(2, 3, (10, 5.4), sharex=True, sharey=True)
    for panel, rule in zip(axes.flat, RULES, strict=True):
        for color, k in enumerate(BUDGETS):
            for n, curve in enumerate(c for c in study.curves if c["agent"] == f"{rule}-K{k}"):
                frames, success = zip(*curve["train_success"], strict=True)
                label = f"K = {k}" if n == 0 else None
                panel.plot(np.array(frames) / 1000, success, color=f"C{color}", alpha=0.7, lw=1.1, label=label)
        panel.set(title=rule, ylim=(0, 1.02))
        panel.grid(alpha=0.25)
        panel.legend(loc="upper left", fontsize=8)
    figure.supxlabel("thousand environment frames")
    figure.supylabel("success of sampled actions")
    return figure


def compute_figure(study: Study) -> Any:
    """Success against compute: of a decision at equal frames, and of training from the learning curves."""
    figure, (left, right) = panels(1, 2, (11, 4.4))
    for color, rule in enumerate(RULES):
        points = []
        for k in BUDGETS:
            arm = f"{rule}-K{k}"
            macs = mean_of(r["macs_per_decision"] for r in study.runs(arm))
            success = study.success(arm)
            if success is None or macs is None:
                continue
            points.append((macs, *success))
            curves = [np.array(c["train_success"]) for c in study.curves if c["agent"] == arm]
            shortest = min(len(c) for c in curves)
            mean = np.mean([c[:shortest] for c in curves], 0)
            style = {1: ":", 2: "--", 4: "-"}[k]
            right.plot(
                mean[:, 0] * macs * PASSES, mean[:, 1], style, color=f"C{color}", lw=1.4, label=f"{rule}, K = {k}"
            )
        if points:
            x, y, low, high = map(np.array, zip(*points, strict=True))
            left.errorbar(x, y, yerr=[y - low, high - y], color=f"C{color}", marker="o", capsize=3, label=rule)
    left.set(xscale="log", xlabel="multiply-adds a decision", ylabel="greedy success on test levels", ylim=(0, 1.02))
    left.set_title("equal frames (240,000)")
    right.set(
        xscale="log", xlabel="multiply-adds of training so far", ylabel="success of sampled actions", ylim=(0, 1.02)
    )
    right.set_title("equal compute: mean over seeds")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    left.legend(fontsize=8)
    right.legend(fontsize=6, ncol=2)
    return figure


def thinking_figure(study: Study) -> Any:
    """Success and regret as agents think for more segments than they were trained with, or fewer."""
    figure, both = panels(1, 2, (10, 4))
    budgets = (1, 2, 4, 8, 16)
    for color, arm in enumerate(THINKERS):
        tried = [study.lesioned(arm, f"segments={k}") for k in budgets]
        if not all(tried):
            continue
        success = [mean_of(r["success"] for r in rs) for rs in tried]
        regret = [mean_of((r["regret_by_change"] or {}).get("unchanged") for r in rs) for rs in tried]
        for panel, values in zip(both, (success, regret), strict=True):
            panel.plot(budgets, values, marker="o", ms=4, color=f"C{color}", label=arm)
    both[0].set(xscale="log", xlabel="segments a decision when tested", ylabel="success", ylim=(0, 1.02))
    both[1].set(xscale="log", xlabel="segments a decision when tested", ylabel="regret of a decision, in steps")
    for panel in both:
        panel.set_xticks(budgets, [str(k) for k in budgets])
        panel.grid(alpha=0.25)
    both[0].legend(fontsize=8)
    return figure
