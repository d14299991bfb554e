"""`python -m hrm_agent.study FILE.yaml [jobs=N]`: compare ideas over training seeds (`hrm_agent.launch.study`)."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    from hrm_agent.launch import startup

    startup.begin("study", sys.argv[1:])  # now: what follows imports torch, which takes seconds

from hrm_agent.evaluate import evaluate
from hrm_agent.files.interrupts import INTERRUPTED
from hrm_agent.files.locking import lock_folder
from hrm_agent.files.streams import outliving_the_terminal
from hrm_agent.launch import startup
from hrm_agent.launch.cli import UsageError, check_jobs, fail, open_options, parse_options, say_error, usage_errors
from hrm_agent.launch.errors import terminated_like_interrupted
from hrm_agent.launch.side_by_side import side_by_side
from hrm_agent.launch.study import Study, StudyOptions, check_file, folder_of, read_spec
from hrm_agent.launch.sweep_table import print_table
from hrm_agent.parallel.threads import available_cores
from hrm_agent.train import check_run

EXAMPLES = (
    "python -m hrm_agent.study carry.yaml",
    "python -m hrm_agent.study carry.yaml jobs=2 out=runs/carry",
    "python -m hrm_agent.plot runs/carry/runs group=carry",
)


@outliving_the_terminal()
def main() -> None:
    usage = "python -m hrm_agent.study FILE.yaml [KEY=VALUE] ..."
    with usage_errors(), terminated_like_interrupted():
        given = [a for a in sys.argv[1:] if "=" not in a and not a.startswith("-")]
        others = [a for a in sys.argv[1:] if a not in given]
        options = StudyOptions(**parse_options(others, StudyOptions, usage, EXAMPLES))
        study = prepare(check_file(given), options)
        startup.over()
        study.folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(study.folder, lambda line: print(f"warning: {line}", file=sys.stderr)):
            study.check_unchanged()  # by another process, before this one had the lock
            study.begin()
            try:
                done = side_by_side(study.missing(), options.jobs, study.run)
            except KeyboardInterrupt:
                fail("interrupted; the same command continues", INTERRUPTED)
        rows = study.table()
        picture = study.draw()
    if rows:
        print_table(rows)
    print(f"wrote {study.folder}/results.json, levels.json{' and curves.png' * bool(picture)}")
    if not all(done):
        say_error(f"{done.count(False)} of {len(done)} runs failed; the same command tries them again")
        raise SystemExit(1)


def prepare(file: Path, options: StudyOptions) -> Study:
    """A study to be begun; everything that it will train is checked, and nothing is written.

    Raises:
        ValueError: what is wrong with the file, with a setting in it, or with the folder.
    """
    spec = read_spec(file)
    study = Study(spec, folder_of(file, options.out), options.jobs, available_cores(), evaluate)
    study.check_unchanged()
    for arm in spec.arms:
        try:
            check_jobs(open_options([*spec.overrides(arm), f"seed={spec.seeds[0]}"]), "train", check_run)
        except ValueError as error:
            raise UsageError(f"{file}: arm {arm}: {error}") from None
    return study


if __name__ == "__main__":
    main()
