"""Searches for settings with Optuna (`python -m hrm_agent.search`): each trial is a run, in a process of its own.

Trials are kept in a storage that several processes may work on. A process holds the lock of a folder in `owners/` as
long as it lives: a trial that is said to run and whose owner has none is interrupted. It is marked as failed, and
another one with the same values resumes its run.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import shlex
import shutil
import sys
import uuid
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta

from hrm_agent.files.locking import FolderInUse, lock_folder
from hrm_agent.files.reading import read_text
from hrm_agent.files.writing import write_atomically
from hrm_agent.launch.cli import UsageError
from hrm_agent.launch.run_records import read_run
from hrm_agent.launch.search_space import Space
from hrm_agent.launch.side_by_side import RunFailed, train_in
from hrm_agent.names.values import Count, Seed, check_fields, printable, shown
from hrm_agent.training.loop import DIVERGED

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

STORAGE_FILE, LOCK_FILE, ID_FILE, TRIALS, OWNERS = "search.db", "search.lock", "search.id", "trials", "owners"
RUN = re.compile(r"\d{4,10}")
"""Name of a trial's folder."""
WORST = {"success": 0.0, "return": float("-inf")}
"""Of each objective, what a trial that diverged is given."""
INTERRUPTED = (130, -2, -15)
"""Exit codes of a run that was stopped by a signal."""
Trials = Annotated[int, Meta(ge=1, le=1_000_000)]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Search for settings on validation levels; those of hrm_agent.train may be given too, fixed or searched over."""

    space: str = "ppo"  # what is searched over: ppo, dqn, or a .yaml file
    trials: Trials = 24  # how many in all, those of earlier commands included
    jobs: Count = 1  # trials at once, in this process
    storage: str | None = None  # URL of a database, or a journal file for several machines; None: SQLite, in the folder
    name: str | None = None  # of the search, in its storage; None: environment and space
    out: str | None = None  # folder of the trials' runs; None: runs/searches/NAME
    sampler_seed: Seed = 0  # of what is drawn

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Plan:
    """A search.

    Attributes:
        folder: with the trials' runs.
        storage: a URL, or the path of a journal file.
        objective: `success` or `return`, of validation levels.
    """

    name: str
    folder: Path
    storage: str
    space: Space
    objective: str

    @property
    def description(self) -> str:
        """Equal for commands that continue the same search."""
        return json.dumps([self.space.params, self.space.settings, self.space.trial, self.objective], sort_keys=True)


def check_installed() -> None:
    """Raises: UsageError without Optuna."""
    if find_spec("optuna") is None:
        raise UsageError("search needs Optuna; pip install 'hrm-agent[sweep]'")


def plan_search(options: SearchOptions, space: Space, env: str, objective: str) -> Plan:
    """Where a search and its trials are.

    Args:
        env: of all trials, for the name.
    """
    from hrm_agent.launch.hydra_plugin import path_safe

    name = options.name or path_safe(f"{env}_{Path(options.space).stem}")
    if not path_safe(name):
        raise UsageError(f"name={name}: expected a name with letters or digits in it")
    folder = Path(options.out or f"runs/searches/{path_safe(name)}")
    return Plan(name, folder, options.storage or f"sqlite:///{folder / STORAGE_FILE}", space, objective)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One process of a search at a time; where the file system has no locks, all of them."""
    with open(folder / LOCK_FILE, "ab") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_study(plan: Plan, sampler_seed: int, owner: int) -> Study:
    """The search in its storage, which is made where there is none.

    Args:
        sampler_seed, owner: what is drawn differs between processes that work on one search.

    Raises:
        UsageError: the storage cannot be opened, or has another search of this name.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if "://" in plan.storage:
            patient = {"connect_args": {"timeout": 60}} if plan.storage.startswith("sqlite") else {}  # seconds
            storage: Any = optuna.storages.RDBStorage(plan.storage, engine_kwargs=patient)
        else:
            from optuna.storages.journal import JournalFileBackend, JournalStorage

            storage = JournalStorage(JournalFileBackend(plan.storage))
        study = optuna.create_study(storage=storage, study_name=plan.name, direction="maximize", load_if_exists=True)
    except Exception as error:  # of whichever library the storage needs
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"storage={plan.storage}: cannot be opened ({printable(reason)})") from None
    before = study.user_attrs.get("plan")
    if before not in (None, plan.description) or (before is None and study.trials):
        raise UsageError(f"name={plan.name}: another search of this name is in {plan.storage}; give another name=NAME")
    try:
        mark_folder(plan, study)
    except UsageError:
        if before is None:
            optuna.delete_study(study_name=plan.name, storage=storage)
        raise
    if before is None:
        study.set_user_attr("plan", plan.description)
    drawn = np.random.SeedSequence([sampler_seed, owner, len(study.trials)]).generate_state(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of Optuna 4
        study.sampler = optuna.samplers.TPESampler(seed=int(drawn[0]), constant_liar=True)
    return study


def mark_folder(plan: Plan, study: Study) -> None:
    """See that a search has one folder and a folder one search: trials are found by their numbers, whatever they train.

    Raises:
        UsageError: the folder has another search's trials, or the search has its trials elsewhere.
    """
    path, own = plan.folder / ID_FILE, study.user_attrs.get("id")
    found = read_text(path, 100) if os.path.lexists(path) else None
    has_trials = any((plan.folder / TRIALS).glob("*"))
    if own is None and (found is not None or (has_trials and not study.trials)):
        raise UsageError(f"{plan.folder}: holds the trials of another search; give another folder with out=FOLDER")
    if own is not None and found != own and (found is not None or study.trials):
        raise UsageError(
            f"{plan.folder}: search {plan.name} has its trials in another folder, which all its processes share; give "
            "that one with out=FOLDER, or another name=NAME"
        )
    if own is None:
        own = uuid.uuid4().hex
        study.set_user_attr("id", own)
    if found is None:
        write_atomically(path, own.encode())


class Search:
    """One process of a search.

    Args:
        plan: what is searched, and where.
        trials: how many there are in all.
        sampler_seed: of what is drawn.
    """

    def __init__(self, plan: Plan, trials: int, sampler_seed: int) -> None:
        self.plan, self.trials, self.sampler_seed = plan, trials, sampler_seed
        self.distributions = plan.space.distributions()
        self._held = ExitStack()

    def __enter__(self) -> Search:
        """Open the storage, and take a folder in `owners/` whose lock is held to the end."""
        folder, owners = self.plan.folder, self.plan.folder / OWNERS
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with exclusive(folder):
                self.owner = next(number for number in itertools.count() if not (owners / str(number)).exists())
                self.study = open_study(self.plan, self.sampler_seed, self.owner)
                (owners / str(self.owner)).mkdir(parents=True)
                self._held.enter_context(lock_folder(owners / str(self.owner), _warn))
        except UsageError:
            if is_new:
                shutil.rmtree(folder)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def work(self, number: int) -> None:
        """Perform trials until there are enough.

        Args:
            number: of several that do so at once.
        """
        while (trial := self.next_trial()) is not None:
            self.perform(trial)

    def next_trial(self) -> Trial | None:
        """A trial that no process performs yet, one that was interrupted before a new one; None: there are enough."""
        with exclusive(self.plan.folder):
            self.give_back_lost()
            if len(self.counted()) >= self.trials:
                return None
            trial = self.study.ask(self.distributions)
            trial.set_user_attr("owner", self.owner)
            if "run" not in trial.user_attrs:
                trial.set_user_attr("run", f"{trial.number:04d}")
            return trial

    def counted(self) -> list[FrozenTrial]:
        """Trials that are performed or over: not those that wait, and not those in whose place another one is."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        replaced = {trial.user_attrs.get("instead_of") for trial in trials}
        return [trial for trial in trials if trial.state != TrialState.WAITING and trial.number not in replaced]

    def perform(self, trial: Trial) -> None:
        """Train a trial's run, and say what came out."""
        from optuna.trial import TrialState

        place = self.place(trial.user_attrs["run"])
        try:
            train_in(place, self.plan.space.overrides(trial.params))
            value = read_run(place).results.get(f"validation_{self.plan.objective}")
            if value is None:
                raise RunFailed(1, "no result on validation levels")
        except KeyboardInterrupt:
            self.give_back(trial.number, trial.params, trial.user_attrs["run"])
            raise
        except RunFailed as error:
            if error.code in INTERRUPTED:
                self.give_back(trial.number, trial.params, trial.user_attrs["run"])
                return
            trial.set_user_attr("error", str(error))
            if DIVERGED in str(error):
                value = WORST[self.plan.objective]
            else:
                self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
                _say(f"trial {trial.number}: failed: {str(error).removeprefix('error: ')}")
                return
        except ValueError as error:  # its folder is damaged
            trial.set_user_attr("error", str(error))
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            _say(f"trial {trial.number}: failed: {printable(str(error))}")
            return
        self.study.tell(trial, value, skip_if_finished=True)  # another machine may have given it up for lost
        drawn = " ".join(f"{name}={value}" for name, value in trial.params.items())
        _say(f"trial {trial.number}: {self.plan.objective} {value:.3f} with {drawn}")

    def place(self, run: str) -> Path:
        """Folder of a trial's run.

        Raises:
            UsageError: the storage names another one.
        """
        if not RUN.fullmatch(run):
            raise UsageError(f"storage={self.plan.storage}: a trial's run is {shown(run)}; expected a number")
        return self.plan.folder / TRIALS / run

    def give_back_lost(self) -> None:
        """Let trials be performed again whose process has ended, however that was."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner, run = trial.user_attrs.get("owner"), trial.user_attrs.get("run")
            alive = isinstance(owner, int) and _is_held(self.plan.folder / OWNERS / str(owner))
            if not alive and not (run is not None and _is_held(self.place(run), missing=False)):
                self.give_back(trial.number, trial.params, run)

    def give_back(self, number: int, params: dict[str, Any], run: str | None) -> None:
        """Mark a trial as failed and put one with the same values in its place, which resumes its run."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        if not any(trial.user_attrs.get("instead_of") == number for trial in trials):
            self.study.enqueue_trial(params, {"instead_of": number, **({} if run is None else {"run": run})})
        self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)

    def best(self) -> str | None:
        """What is said of the best trial, its command included; None where none has succeeded."""
        try:
            trial = self.study.best_trial
        except ValueError:
            return None
        command = shlex.join(self.plan.space.best_overrides(trial.params))
        place, score = self.place(trial.user_attrs["run"]), f"{self.plan.objective} {trial.value:.3f}"
        return f"best: {place}, {score} on validation levels\npython -m hrm_agent.train {command}"


def _is_held(folder: Path, missing: bool = True) -> bool:
    """Whether a process holds the lock of a folder.

    Args:
        missing: the answer where there is no such folder, as on another machine.
    """
    try:
        with lock_folder(folder, _warn):
            return False
    except FolderInUse:
        return True
    except OSError:
        return missing


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _warn(line: str) -> None:
    _say(f"warning: {line}")
