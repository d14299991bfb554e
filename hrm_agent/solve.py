"""`python -m hrm_agent.solve model=RUN|FOLDER|FILE|NAME`: a puzzle model on held-out puzzles."""

from __future__ import annotations

import sys

from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.launch.cli import parse_agent_options, usage_errors
from hrm_agent.launch.solve import solve
from hrm_agent.names.installed import leave_out_working_folder
from hrm_agent.supervised.evaluation import format_report
from hrm_agent.training.waiting import Waiting

EXAMPLES = (
    "python -m hrm_agent.solve model=RUN",
    "python -m hrm_agent.solve model=RUN halt=true out=solved.json",
    "python -m hrm_agent.solve model=RUN samples=16 noise=0.1",
    "python -m hrm_agent.solve model=CHECKPOINT task=sudoku_extreme",
)


@outliving_the_terminal()
def main() -> None:
    usage = "python -m hrm_agent.solve model=RUN|FOLDER|FILE|NAME [KEY=VALUE] ..."
    leave_out_working_folder(sys.argv[1:])  # files name environments and cores
    with usage_errors():
        options = parse_agent_options(sys.argv[1:], solve, usage, EXAMPLES)
        with Waiting("") as line:
            report = solve(**options, on_progress=line.say)
    print(format_report(report))
    for name in ("out", "submission"):
        if options[name] is not None:
            print(f"wrote {options[name]}")


if __name__ == "__main__":
    main()
