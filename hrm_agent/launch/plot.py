"""Learning curves of runs by group, and a table of what they achieved in the end (`python -m hrm_agent.plot`)."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hrm_agent.evaluation.statistics import Estimate, mean_interval
from hrm_agent.files.writing import check_output, write_output
from hrm_agent.launch.cli import UsageError, existing_folder
from hrm_agent.launch.groups import SUCCESS, Points, RunGroup, group_runs, mean_curve, on_same_levels, show, success_of
from hrm_agent.launch.run_records import Evaluated, RunRecord, find_runs, read_curves, read_evaluation, read_run
from hrm_agent.names.nearest import did_you_mean
from hrm_agent.names.values import check_fields, printable

SUFFIXES = (".png", ".svg", ".pdf")
MEASURED = ("success", "return")
"""Metrics that are measured on test levels at the end of a run."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PlotOptions:
    """Learning curves of runs by group, with 95% intervals over seeds, and a table of what they achieved."""

    group: str | None = None  # settings that tell groups apart, carry or carry,algo.gamma; None: all that differ
    metric: str = "success"  # success, return or spl; or the name of a number in metrics.jsonl, loss/entropy
    out: str = "curves.png"  # a .png, .svg or .pdf file, written whole or not at all

    def __post_init__(self) -> None:
        check_fields(self)


class Panel(NamedTuple):
    """Curves of one number: its title, and for each run the frames and values."""

    title: str
    curves: list[Points]


def plot(runs: Sequence[str], options: PlotOptions) -> list[Row]:
    """Draw the curves of runs, and say what they achieved.

    Args:
        runs: folders of runs of `hrm_agent.train`, or with such runs at any depth; those that have logged nothing yet
            are left out.

    Returns:
        A row for each group: its label, its seeds, and the metric of greedy and of sampled actions with intervals: on
        test levels where all runs have been measured on some, else at the end of the curves.

    Raises:
        ValueError: no run there, runs of different environments, a metric or a setting that they lack, or another kind
            of file to write; nothing is written then.
    """
    check_output(options.out)
    if Path(options.out).suffix not in SUFFIXES:
        raise UsageError(f"out={options.out}: expected a name that ends in {', '.join(SUFFIXES)}")
    found = read_runs(runs)
    curves = {run.folder: read_curves(run.folder) for run in found}
    begun = [run for run in found if curves[run.folder]]
    for run in found:
        if run not in begun:
            print(f"left out, nothing logged yet: {printable(str(run.folder))}", file=sys.stderr)
    if not begun:
        raise UsageError(f"{', '.join(map(str, runs))}: nothing logged yet in {len(found)} runs")
    groups = group_runs(begun, None if options.group is None else _names(options.group))
    ordered = [run for group in groups for run in group.runs]
    panels = choose_panels(options.metric, ordered, [curves[run.folder] for run in ordered])
    rows = summarize(groups, options.metric, panels)
    environment = ordered[0].settings.get("env.id")
    write_output(options.out, draw(groups, panels, options.metric, str(environment), Path(options.out).suffix[1:]))
    return rows


def read_runs(folders: Sequence[str]) -> list[RunRecord]:
    """The runs in some folders, each once.

    Raises:
        UsageError: no run in one of them, a damaged one, or runs of different environments.
    """
    if not folders:
        raise UsageError("of which runs? Give their folders, or one with runs below it")
    paths: dict[Path, None] = {}
    for given in folders:
        below = find_runs(existing_folder(given, "run"))
        if not below:
            raise UsageError(f"{given}: no run of hrm_agent.train in it")
        paths |= dict.fromkeys(path.resolve() for path in below)
    runs = [read_run(path) for path in paths]
    environments = list(dict.fromkeys(str(run.settings.get("env.id")) for run in runs))
    if len(environments) > 1:
        raise UsageError(f"runs of different environments, {', '.join(environments)}; expected runs of one")
    return runs


def _names(group: str) -> list[str]:
    return [name.strip() for name in group.strip("[]").split(",") if name.strip()]


def choose_panels(
    metric: str, runs: Sequence[RunRecord], curves: Sequence[dict[str, list[tuple[float, float]]]]
) -> list[Panel]:
    """What is drawn: greedy actions on validation levels, and sampled ones in training; or one number by its full name.

    Raises:
        UsageError: a run has no such number.
    """
    if "/" in metric:
        return [Panel(metric, _of_all(metric, runs, curves))]
    full = f"validation/{metric}"
    quick = f"validation_quick/{metric}"
    few = max((len(each.get(full, ())) for each in curves), default=0) < 2
    if few and all(len(each.get(quick, ())) > 1 for each in curves):
        full = quick
    levels = "the first validation levels" if full == quick else "validation levels"
    panels = [Panel(f"greedy, {levels}", _of_all(full, runs, curves))]
    if all(f"train/{metric}" in each for each in curves):
        panels.append(Panel("sampled, in training", _of_all(f"train/{metric}", runs, curves)))
    return panels


def _of_all(
    name: str, runs: Sequence[RunRecord], curves: Sequence[dict[str, list[tuple[float, float]]]]
) -> list[Points]:
    for run, own in zip(runs, curves, strict=True):
        if name not in own:
            metric = name.removeprefix("validation/")
            offered = [n.removeprefix("validation/") for n in own if metric == name or n.startswith("validation/")]
            raise UsageError(f"metric={metric}: not logged by {run.folder}{did_you_mean(metric, offered)}")
    return [own[name] for own in curves]


def summarize(groups: Sequence[RunGroup], metric: str, panels: Sequence[Panel]) -> list[Row]:
    """A row for each group; see `plot`."""
    evaluated = [read_evaluation(run.folder) for group in groups for run in group.runs]
    known = [each for each in evaluated if each is not None]
    on_test = metric in MEASURED and len(known) == len(evaluated)
    rows, begin = [], 0
    for group in groups:
        end = begin + len(group.runs)
        row: Row = {"group": group.label, "seeds": group.seeds}
        if on_test:
            row |= {f"{metric}, {way}, test levels": show(value) for way, value in _measured(known[begin:end], metric)}
        else:
            for panel in panels:
                last = [curve[-1][1] for curve in panel.curves[begin:end]]
                row[f"last {metric}, {panel.title}"] = show(_over_seeds(last, metric))
        rows.append(row)
        begin = end
    return rows


def _measured(runs: Sequence[Evaluated], metric: str) -> list[tuple[str, Estimate | None]]:
    """Greedy and sampled, of the runs of a group."""
    sampled = [each.sampled for each in runs if each.sampled is not None]
    found: list[tuple[str, Estimate | None]] = []
    for way, played in (("greedy", list(runs)), ("sampled", sampled)):
        if not played or len(played) < len(runs):
            found.append((way, None))
        elif metric == "success":
            found.append((way, success_of(played, on_same_levels(runs))))
        else:
            values = [each.return_ for each in played if each.return_ is not None]
            found.append((way, mean_interval(values) if values else None))
    return found


def _over_seeds(values: list[float], metric: str) -> Estimate:
    """One seed has no interval."""
    bounded = metric.rpartition("/")[2] in ("success", "spl") and len(values) > 1
    return mean_interval(values, SUCCESS) if bounded else mean_interval(values)


def draw(groups: Sequence[RunGroup], panels: Sequence[Panel], metric: str, title: str, kind: str) -> bytes:
    """A figure: the mean of each group, its interval over seeds, and thin lines for the seeds."""
    from matplotlib.figure import Figure  # which nothing else here needs
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(1 + 5 * len(panels), 4), layout="constrained")
    figure.suptitle(title.replace("$", r"\$"))
    share = metric.rpartition("/")[2] in ("success", "spl")
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        begin = 0
        for number, group in enumerate(groups):
            curves = panel.curves[begin : begin + len(group.runs)]
            begin += len(group.runs)
            style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number // 10 % 4]}
            if len(curves) > 1:
                for curve in curves:
                    ax.plot(*zip(*curve, strict=True), alpha=0.25, lw=0.7, **style)
            frames, values = mean_curve(curves, SUCCESS if share else (-float("inf"), float("inf")))
            label = f"{group.label} ({len(curves)})".replace("$", r"\$")
            ax.plot(frames, values[:, 0], lw=1.8, marker="." if len(frames) < 30 else None, label=label, **style)
            if len(curves) > 1 and len(frames) == 1:
                ax.errorbar(frames, values[:, 0], abs(values[:, 1:].T - values[:, 0]), capsize=4, **style)
            elif len(curves) > 1:
                ax.fill_between(frames, values[:, 1], values[:, 2], color=style["color"], alpha=0.18, lw=0)
        ax.set(xlabel="frames", ylabel=metric, title=panel.title)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        if share:
            ax.set_ylim(0, 1.02)
        ax.grid(alpha=0.25)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), fontsize="small")
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=120)
    return file.getvalue()
