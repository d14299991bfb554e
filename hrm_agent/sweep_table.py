"""`python -m hrm_agent.sweep_table folder=FOLDER`: the runs below a folder in one table, the best first."""

from __future__ import annotations

import sys

from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.launch.cli import parse_options, usage_errors
from hrm_agent.launch.sweep_table import print_table, sweep_table

EXAMPLES = (
    "python -m hrm_agent.sweep_table folder=runs",
    "python -m hrm_agent.sweep_table folder=runs out=table.csv",
    "python -m hrm_agent.sweep_table folder=runs sort=validation_return",
)


@outliving_the_terminal()
def main() -> None:
    usage = "python -m hrm_agent.sweep_table folder=FOLDER [KEY=VALUE] ..."
    with usage_errors():
        options = parse_options(sys.argv[1:], sweep_table, usage, EXAMPLES)
        rows = sweep_table(**options)
    print_table(rows)
    if options["out"] is not None:
        print(f"wrote {options['out']}")


if __name__ == "__main__":
    main()
