"""`python -m hrm_agent.generate model=RUN|FOLDER|FILE [prompt=TEXT]`: a text model writes on, printed as it comes."""

from __future__ import annotations

import sys

from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.launch.cli import parse_agent_options, usage_errors
from hrm_agent.launch.generate import generate
from hrm_agent.names.installed import leave_out_working_folder

EXAMPLES = (
    'python -m hrm_agent.generate model=RUN prompt="In the beginning"',
    "python -m hrm_agent.generate model=RUN length=2000 temperature=0.5 seed=1",
)


def harmless(text: str) -> str:
    """A text as a terminal may get it: control characters but line breaks and tabs are written as escapes.

    A model's alphabet is read from its file, which may come from a stranger.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


@outliving_the_terminal()
def main() -> None:
    usage = "python -m hrm_agent.generate model=RUN|FOLDER|FILE [KEY=VALUE] ..."
    leave_out_working_folder(sys.argv[1:])  # files name cores
    with usage_errors():
        pieces = generate(**parse_agent_options(sys.argv[1:], generate, usage, EXAMPLES))
        for piece in pieces:
            print(harmless(piece), end="", flush=True)
    print()


if __name__ == "__main__":
    main()
