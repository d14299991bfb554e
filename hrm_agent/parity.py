"""`python -m hrm_agent.parity FILE...`: compare the cores with numbers computed by the authors' own code."""

from __future__ import annotations

import sys

from hrm_agent.benchmarks.parity import main

if __name__ == "__main__":
    sys.exit(main())
