"""The signals that end a run in order, with a checkpoint."""

from __future__ import annotations

import signal


def stop_signals() -> list[signal.Signals]:
    """Ctrl-C (SIGINT), SIGTERM, and SIGHUP, which a terminal that is closed sends.

    A SIGHUP that is ignored stays ignored: that is what `nohup` does for a command.
    """
    hang_up = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) not in (signal.SIG_IGN, None) else []
    return [signal.SIGINT, signal.SIGTERM, *hang_up]
