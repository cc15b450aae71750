"""A run as a SLURM job. Imported there before training starts, so it imports next to nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess


class Training:
    """Trains one run in a job, and has the job requeued when it must end before the run.

    SLURM announces the end of a job's time by SIGUSR2, and preemption by SIGUSR2 or SIGTERM, as it is configured.
    submitit answers SIGUSR2 with `checkpoint` and a requeue, and ignores SIGTERM; this answers SIGTERM alike, unless
    the job has been cancelled.

    SLURM sends signals to all processes of a job, so the run gets SIGTERM, too, and would die of a second one before it
    has saved: it is told by SIGINT, which it takes as well. It must not know of SIGUSR2.

    Args:
      command: the command line; it saves on SIGINT and SIGTERM, and goes on from there when it is started again.
    """

    def __init__(self, command: list[str]):
        self.command = command
        self._child: subprocess.Popen | None = None
        self._must_end = self._told = False

    def __call__(self):
        """Trains until the run or the job ends.

        Raises:
          RuntimeError: if the run fails.
        """
        signal.signal(signal.SIGTERM, lambda number, frame: self._end())
        self._child = subprocess.Popen(self.command, preexec_fn=_ignore_requeue)
        if self._must_end:
            self._end()
        code = self._child.wait()
        if self._must_end:
            if state() == "RUNNING":  # preempted; a job that is cancelled, or requeued already, has another state
                signal.raise_signal(signal.SIGUSR2)
            raise SystemExit(128 + signal.SIGTERM)
        if code:
            raise RuntimeError(f"The run ended with exit code {code}; what it printed is above.")

    def checkpoint(self):
        """Has the run save, waits for it, and describes to submitit how the job goes on."""
        from submitit.helpers import DelayedSubmission

        self._end()
        if self._child is not None:
            # Popen.wait would wait for its own lock, which the wait that the signal has interrupted holds.
            with contextlib.suppress(ChildProcessError):  # has ended, and been waited for
                os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Training(self.command))

    def _end(self) -> None:
        self._must_end = True
        if self._child is not None and not self._told:
            self._told = True
            self._child.send_signal(signal.SIGINT)


def _ignore_requeue() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def state() -> str:
    """The state that SLURM has this job in, '' if it does not know it any more."""
    import submitit

    job = submitit.JobEnvironment().job_id  # with its number in the array: the variable of SLURM may mean all of that
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
