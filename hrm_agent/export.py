"""`python -m hrm_agent.export agent=ID|run=RUN out=agent.onnx`: one decision of an agent as an ONNX graph."""

from __future__ import annotations

import sys

from hrm_agent.agents.onnx import export
from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.launch.cli import parse_agent_options, usage_errors
from hrm_agent.names.installed import leave_out_working_folder

EXAMPLES = (
    "python -m hrm_agent.export agent=DynamicMaze-TRM-v0",
    "python -m hrm_agent.export run=RUN out=agent.onnx",
    "python -m hrm_agent.export run=RUN stop=fixed segments=2",
)


@outliving_the_terminal()
def main() -> None:
    usage = "python -m hrm_agent.export run=RUN|agent=ID [KEY=VALUE] ..."
    leave_out_working_folder(sys.argv[1:])  # files name environments and cores
    with usage_errors():
        options = parse_agent_options(sys.argv[1:], export, usage, EXAMPLES)
        made = export(**options)
    print(f"inputs  {', '.join(made['inputs'])}\noutputs {', '.join(made['outputs'])}")
    print(
        f"wrote {options['out']}: opset {made['opset']}, {made['bytes']:,} bytes, "
        f"within {made['largest_difference']:.1e} of torch"
    )


if __name__ == "__main__":
    main()
