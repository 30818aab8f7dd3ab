"""Starts the processes of a training on this machine, and says what became of them."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from densenet_deploy.environment import usable_cores
from densenet_deploy.errors import TrainingError
from densenet_deploy.training_state import saved_position

_PROGRAM = ("-m", "densenet_deploy.cli.app")
USAGE = 2  # exit code of a process that has said what was wrong


def launch(arguments: Sequence[str], processes: int, out: Path) -> int:
    """Runs a command line in several processes, as torchrun does, until all have ended.

    Args:
        arguments: Of the command line, from the command's name on.
        processes: How many.
        out: Where the training keeps its state.

    Returns:
        Exit code 0, or 2 where the processes themselves said what was wrong.

    Raises:
        TrainingError: A process was killed or broke; the others have been ended.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)(*_PROGRAM, *arguments)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise _ended(f"signal {int(error.sigval)} ended the processes", out) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == USAGE:
            return USAGE
        how = "was killed by signal" if failure.exitcode < 0 else "ended with exit code"
        raise _ended(
            f"process {rank} of {processes} {how} {abs(failure.exitcode)}, the others were ended",
            out,
        ) from None
    return 0


def _ended(what: str, out: Path) -> TrainingError:
    position = saved_position(out)
    then = f"it continues from {position}" if position else "nothing was saved yet"
    return TrainingError(what, remedy=f"run the same command again: {then}")
