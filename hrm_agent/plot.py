"""`python -m hrm_agent.plot RUN... [group=SETTING]`: learning curves of runs by group, and a table of results."""

from __future__ import annotations

import sys
from pathlib import Path

from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.launch.cli import parse_options, usage_errors
from hrm_agent.launch.plot import PlotOptions, plot
from hrm_agent.launch.sweep_table import print_table

EXAMPLES = (
    "python -m hrm_agent.plot runs/DATE/TIME_sweep group=carry",
    "python -m hrm_agent.plot RUN OTHER_RUN metric=return out=returns.png",
    "python -m hrm_agent.plot runs group=carry,algo.gamma metric=loss/entropy",
)


@outliving_the_terminal()
def main() -> None:
    usage = "python -m hrm_agent.plot RUN... [KEY=VALUE] ..."
    with usage_errors():
        is_folder = [("=" not in a and not a.startswith("-")) or Path(a).is_dir() for a in sys.argv[1:]]
        given = list(zip(sys.argv[1:], is_folder, strict=True))
        options = parse_options([a for a, folder in given if not folder], PlotOptions, usage, EXAMPLES)
        rows = plot([a for a, folder in given if folder], PlotOptions(**options))
    print_table(rows)
    print(f"wrote {options['out']}")


if __name__ == "__main__":
    main()
