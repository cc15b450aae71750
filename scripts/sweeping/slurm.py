"""Runs of a sweep as SLURM jobs, submitted as arrays through submitit, which requeues those that are preempted."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from agents.errors import ConfigError
from sweeping.job import Training
from sweeping.plan import Run
from sweeping.progress import progress_of

HELP = (
    "of --launcher slurm, may be repeated: partition; time, in minutes; gpus; cpus; mem, e.g. 32GB; grace, the seconds "
    "before the end of the time in which a run saves; or any long option of sbatch, e.g. account=NAME, exclusive"
)
DEFAULTS = {"time": "1440", "cpus": "8", "grace": "300"}
NUMBERS = ("time", "gpus", "cpus", "grace")
ALIASES = {"cpus_per_task": "cpus", "gpus_per_node": "gpus"}
OURS = ("array", "signal", "output", "error", "requeue")  # options of sbatch that are chosen here
JOBS = "slurm_jobs.jsonl"  # in _sweep/: the job that each run was last submitted as
LARGEST_ARRAY = 1_000  # SLURM's default
FOREVER = 1_000_000  # times that a job may be requeued at the end of its time: a long run needs many


def options(settings: list[str]) -> dict[str, str | bool]:
    """Reads the values of `--slurm`; returns them with defaults, and True for an option without a value.

    Raises:
      ConfigError: for what is no option, numbers that are none, and a time that is over before much is done.
    """
    result = dict(DEFAULTS)
    for setting in settings:
        option, equals, value = setting.partition("=")
        key = option.replace("-", "_")
        key = ALIASES.get(key, key)
        if not key or (equals and not value):
            raise ConfigError(f"--slurm takes KEY=VALUE, e.g. partition=gpu, or KEY; got {setting!r}.")
        if key in NUMBERS and not (value.isdecimal() and int(value)):
            raise ConfigError(f"--slurm {option} takes a positive whole number; got {value!r}.")
        if key in OURS:
            raise ConfigError(f"--slurm {option}: this is chosen here, so that runs save, and go on.")
        result[key] = value if equals else True
    minutes, grace = int(result["time"]), int(result["grace"])
    if 60 * minutes < 2 * grace:
        raise ConfigError(
            f"--slurm time={minutes} is in minutes; a run saves grace={grace} seconds before that, so that it would "
            "hardly train. Raise time, or lower grace."
        )
    return result


def submit(todo: list[Run], folder: Path, jobs: int | None, options: dict[str, str]) -> list[str]:
    """Submits the runs that SLURM does not have yet; returns lines that say how all of them stand.

    Args:
      todo: runs that are not finished.
      folder: where submitit's files and the output of the jobs go; the nodes must see it.
      jobs: runs at a time; None: no limit of ours.
      options: see `options`.

    Raises:
      ConfigError: without submitit or SLURM, and for what SLURM refuses.
    """
    _submitit()  # without it and SLURM nothing is written
    _queue()
    record = folder.parent / JOBS
    folder.parent.mkdir(parents=True, exist_ok=True)
    with record.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another that submits comes first, and is seen then
        return _submit_new(todo, folder, jobs, options, _recorded(record), file)


def _submit_new(todo: list[Run], folder: Path, jobs: int | None, options: dict, known: dict, record) -> list[str]:
    """As `submit`, with the jobs `known` so far, and the file that new ones are added to."""
    states = _queue()
    queued = {run: known[_key(run)] for run in todo if known.get(_key(run)) in states}
    new = [run for run in todo if run not in queued]
    lines = []
    for run, job in queued.items():
        steps, _ = progress_of(run)
        lines.append(f"{states[job].lower():<10} {run.name}, job {job}, {steps:,} of {run.total:,}")
    if new:
        folder = (folder / "slurm").resolve()
        for run, job in _submit(new, folder, jobs, options):
            print(json.dumps({"run": _key(run), "job": job}), file=record, flush=True)
            lines.append(f"submitted  {run.name}, job {job}")
        lines.append(f"Output: {folder}/<job>_0_log.out")
    lines.append(f"{len(queued)} runs were queued or running, {len(new)} more are submitted.")
    return [*lines, "The same command tells how they stand, and submits those again that have failed."]


def _submit(runs: list[Run], folder: Path, jobs: int | None, options: dict[str, str]) -> Iterator[tuple[Run, str]]:
    """Submits arrays of at most `LARGEST_ARRAY` jobs; each gets its share of the runs at a time, at least one.

    Yields:
      each run with the id of its job, array by array.
    """
    submitit = _submitit()
    arrays = [runs[start : start + LARGEST_ARRAY] for start in range(0, len(runs), LARGEST_ARRAY)]
    at_a_time = {} if jobs is None else {"array_parallelism": max(1, jobs // len(arrays))}
    executor = submitit.SlurmExecutor(folder, max_num_timeout=FOREVER)
    executor.update_parameters(**_parameters(folder.parent.name, options), **at_a_time)
    for array in arrays:
        try:
            with executor.batch():
                submitted = [executor.submit(Training(run.command)) for run in array]
        except submitit.core.utils.FailedJobError as error:
            raise ConfigError(f"SLURM refuses the jobs: {error}") from error
        yield from zip(array, (job.job_id for job in submitted), strict=True)


def _submitit():
    """The package, which is an extra."""
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("--launcher slurm needs the extra: pip install -e '.[slurm]'") from error
    return submitit


def _parameters(name: str, options: dict[str, str]) -> dict:
    """The parameters of submitit's executor."""
    rest = dict(options)
    scripts = shlex.quote(str(Path(__file__).resolve().parents[1]))
    parameters = {
        "job_name": name,
        "time": int(rest.pop("time")),
        "cpus_per_task": int(rest["cpus"]),
        "srun_args": [f"--cpus-per-task={rest.pop('cpus')}"],  # which srun does not take over from the job
        "signal_delay_s": int(rest.pop("grace")),
        "stderr_to_stdout": True,
        "setup": [f"export PYTHONPATH={scripts}${{PYTHONPATH:+:$PYTHONPATH}}"],
    }
    if "gpus" in rest:
        parameters["gpus_per_node"] = int(rest.pop("gpus"))
    parameters |= {key: rest.pop(key) for key in ("partition", "mem") if key in rest}
    return parameters | {"additional_parameters": {"requeue": True, **rest}}


def _queue() -> dict[str, str]:
    """The states of the jobs that SLURM has of this user, by their ids."""
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i %T"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise ConfigError("--launcher slurm needs SLURM's commands (sbatch, squeue); there are none here.") from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"SLURM does not answer: {error.stderr.strip()}") from error
    return dict(line.split() for line in output.splitlines() if line.strip())


def _recorded(record: Path) -> dict[str, str]:
    """The job that each run was last submitted as."""
    known = {}
    for line in record.read_text().splitlines() if record.exists() else []:
        try:
            entry = json.loads(line)
            known[entry["run"]] = entry["job"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{record} has a damaged line: {line!r}. Remove it if no job of it is left.") from error
    return known


def _key(run: Run) -> str:
    return str(run.run_dir.resolve())
