"""In place of `python -m hrm_agent.train`, for what starts it: `python -m fake_training ... hydra.run.dir=FOLDER`.

A setting `fake=WORD` says what it does: `end`, `fail` (exit code 2), `wait` (until it is interrupted).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    given = dict(a.lstrip("+").split("=", 1) for a in sys.argv[1:])
    resumed = "resume" in given
    folder = Path(given["resume"] if resumed else given["hydra.run.dir"].strip("'"))
    folder.mkdir(parents=True, exist_ok=True)
    if not resumed:
        (folder / "run.json").write_text(json.dumps({"command": " ".join(sys.argv[1:])}))
    fake = "end" if resumed else given.get("fake", "end")
    print("begun", flush=True)
    (folder / "begun").touch()
    if fake == "fail":
        print("error: it cannot be", file=sys.stderr)
        sys.exit(2)
    if fake == "wait":
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            (folder / "checkpoint").touch()
            sys.exit(130)
    (folder / "ended").write_text("resumed" if resumed else "at once")


if __name__ == "__main__":
    main()
