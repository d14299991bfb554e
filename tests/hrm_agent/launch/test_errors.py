"""What ends a run is one line, which says how to go on from what was saved, or that nothing was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hrm_agent.environments.checked import EnvironmentFailed
from hrm_agent.launch.errors import run_errors
from hrm_agent.parallel.processes import ProcessLost
from hrm_agent.tensors.files import save_tensors


@pytest.mark.parametrize(
    ("error", "before"),
    [
        (KeyboardInterrupt(), ""),
        (ProcessLost("another process of this run has ended"), "earlier checkpoints are intact, "),
        (OSError(28, "No space left on device"), "earlier checkpoints are intact, "),
        (MemoryError(), "earlier checkpoints are intact: with more memory, "),
        (EnvironmentFailed("env=X: failed"), "the last checkpoint is {last}; "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_how_to_go_on_depends_on_what_was_saved(
    error: BaseException, before: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text("{}")
    again, last = (
        f"python -m hrm_agent.supervise resume={tmp_path}",
        tmp_path / "checkpoints" / "000000000004.safetensors",
    )
    for hint in (f"; nothing has been saved yet, begin it again with: {again}", f"; {before}resume with: {again}"):
        with pytest.raises(SystemExit), run_errors(tmp_path, "hrm_agent.supervise"):
            raise error
        assert hint.format(last=last) in capsys.readouterr().err.splitlines()[-1]
        save_tensors(last, {"weight": torch.zeros(1)}, {})
