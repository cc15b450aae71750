"""Run directories: their names, their manifest, and whether a run may go on in one.

<base_dir>/<game>/<agent>-<head>-<preset>[-<torso, own gin files, bindings>]/seed<seed>/
    config.gin  operative_config.gin  manifest.json  metrics.jsonl  events.out.tfevents.*  checkpoints/  replay/
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax

from agents import launch
from agents.configuration import config
from agents.environments import protocol
from agents.errors import ConfigError
from replay.files import DamagedError, read_json, write_durably

# Settings that may differ from one start to the next of the same run.
MAY_CHANGE = {
    "Experiment.total_steps",
    "Experiment.log_every_steps",
    "Experiment.diagnose_every_steps",
    "Experiment.checkpoint_every_steps",
    "Experiment.eval_every_steps",
    "Experiment.eval_episodes",
    "Learner.num_devices",
    "Dataset.paths",  # the same data may lie elsewhere; its digest must be the same
}
MANIFEST, LOCK = "manifest.json", ".lock"
ENVIRONMENT = (  # variables that change bits
    "XLA_FLAGS",
    "GLIBC_TUNABLES",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_ENABLE_X64",
    "NVIDIA_TF32_OVERRIDE",
)
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "gymnasium",
    "ale-py",
    "gin-config",
    "tensorstore",
    "safetensors",
)


def title(files) -> str:
    """Agent, head, preset and further gin files in one word; `files` are without base.gin."""
    return "-".join(Path(file).stem for file in files if config.folder(file) != "environments")


def name(experiment, files, bindings) -> Path:
    """Names the run directory below `base_dir`.

    Args:
      experiment: the built experiment.
      files: gin files, without base.gin; their stems make the middle part, but for the environment's.
      bindings: the user's own gin bindings, e.g. 'Learner.batch_size = 64', which becomes 'batch_size=64'.
    """
    own = [_probe(Path(experiment.torso_from))] if experiment.torso_from else []
    for binding in bindings:
        parameter, _, value = binding.partition("=")
        parameter = parameter.strip().rpartition(".")[2]
        own.append(f"{parameter}={re.sub(r'[^A-Za-z0-9.+-]+', '_', value).strip('_')}")
    middle = "-".join([title(files), *own])
    if len(middle) > 120:
        middle = f"{middle[:111]}-{hashlib.sha256(middle.encode()).hexdigest()[:8]}"
    return Path(experiment.environment.name, middle, f"seed{experiment.seed}")


def _probe(source: Path) -> str:
    """Says whose torso it is: the run's name and, if it is not its newest one, the checkpoint."""
    is_checkpoint = source.parent.name == "checkpoints"
    run_dir = source.parents[1] if is_checkpoint else source
    title = run_dir.parent.name if re.fullmatch(r"seed\d+", run_dir.name) else run_dir.name
    return f"probe={re.sub(r'[^A-Za-z0-9._=+-]+', '_', title)}" + (f"-{source.name}" if is_checkpoint else "")


def read_manifest(run_dir: Path) -> dict | None:
    """Reads the manifest; None if there is no run in `run_dir`.

    Raises:
      ConfigError: if `run_dir` holds something else.
    """
    path = run_dir / MANIFEST
    if path.exists():
        try:
            manifest = read_json(path)
            starts = [dict(start) for start in (manifest, *manifest.get("resumed", []))]
            for start in starts:
                start |= {name: dict(start.get(name) or {}) for name in ("versions", "environment")}
            settings = {str(name): str(value) for name, value in dict(manifest["settings"]).items()}
            checked = {**starts[0], "settings": settings, "num_envs": int(manifest["num_envs"])}
            if manifest.get("dataset") is not None:
                data = dict(manifest["dataset"])
                score = data.get("behaviour_return")
                checked["dataset"] = data | {"behaviour_return": None if score is None else float(score)}
            if manifest.get("torso") is not None:
                torso = dict(manifest["torso"])
                checked["torso"] = torso | {name: str(torso[name]) for name in ("checkpoint", "state_sha256")}
            return checked | ({"resumed": starts[1:]} if starts[1:] else {})
        except (DamagedError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise ConfigError(f"{path} is damaged ({error!r}). Choose another --run_dir.") from error
    # What `create` had written when it was interrupted does not count.
    names = ("config.gin", "operative_config.gin", MANIFEST)
    unfinished = {LOCK, *names, *(f"{name}.partial" for name in names)}
    if run_dir.exists() and not (run_dir.is_dir() and {path.name for path in run_dir.iterdir()} <= unfinished):
        raise ConfigError(f"{run_dir} exists but holds no run (no manifest.json). Choose another --run_dir.")
    return None


def fixed(settings: dict[str, str]) -> dict[str, str]:
    """The settings that a run keeps for life."""
    return {name: value for name, value in settings.items() if name not in MAY_CHANGE}


def refuse_other_settings(run_dir: Path, old: dict[str, str], settings: dict[str, str]) -> None:
    """Raises ConfigError, naming the differences, if a run with other settings, `old`, is in `run_dir`."""
    different = [
        f"{key} = {settings.get(key, '(unset)')}, but the run there has {old.get(key, '(unset)')}"
        for key in sorted((old.keys() | settings.keys()) - MAY_CHANGE)
        if old.get(key) != settings.get(key)
    ]
    if different:
        raise ConfigError(
            f"{run_dir} holds a run with other settings: {'; '.join(different)}. "
            "Go on with its settings, or train these in another directory: --run_dir DIR."
        )


def create(run_dir: Path, trainer, cfg: config.Config, title: str) -> None:
    """Creates a run directory; the manifest, written last, makes it one."""
    x = trainer.experiment
    manifest = {
        **_provenance(),
        "protocol": protocol(x.environment),
        "title": title,
        "seed": x.seed,
        "num_envs": x.num_envs,
        "parameters": trainer.num_parameters,
        "replay_bytes": trainer.replay_bytes,
        **({"dataset": trainer.data.description()} if x.dataset else {}),
        **({"torso": trainer.torso_origin} if trainer.torso_origin else {}),
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    _write(run_dir, manifest, cfg)


def resume(run_dir: Path, manifest: dict, agent_steps: int, cfg: config.Config) -> None:
    """Adds to the manifest that, and by what, the run is continued at `agent_steps`."""
    resumed = [*manifest.get("resumed", []), {"agent_steps": agent_steps, **_provenance()}]
    _write(run_dir, {**manifest, "resumed": resumed}, cfg)


def _write(run_dir: Path, manifest: dict, cfg: config.Config) -> None:
    write_durably(run_dir / "config.gin", cfg.text.encode())
    write_durably(run_dir / "operative_config.gin", cfg.operative_text.encode())
    write_durably(run_dir / MANIFEST, (json.dumps({**manifest, "settings": cfg.settings}, indent=2) + "\n").encode())


@contextlib.contextmanager
def lock(run_dir: Path):
    """Holds a run directory, which it creates, against other processes.

    The system drops the lock when the process ends, however it does; what is in the file is for the message only.

    Raises:
      ConfigError: if another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    check_files(run_dir)
    with (run_dir / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigError(f"Another process writes to {run_dir}: {file.read()}.") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def check_files(run_dir: Path) -> None:
    """Refuses links in a run directory, by which one from elsewhere could have files overwritten or removed.

    Raises:
      ConfigError: for a link, or for a name of this project's that is not a file, or not a directory, as it is.
    """
    directories = ("checkpoints", "replay")
    inside = [path for name in directories if (run_dir / name).is_dir() for path in (run_dir / name).iterdir()]
    for path in [*run_dir.iterdir(), *inside]:
        if path.is_symlink():
            raise ConfigError(f"{path} is a link; nothing is trained in a directory that holds one.")
    for path in run_dir.iterdir():
        is_file = path.name in (LOCK, MANIFEST, "config.gin", "operative_config.gin", "metrics.jsonl")
        if (is_file or path.name.startswith("events.out.tfevents.")) and not path.is_file():
            raise ConfigError(f"{path} is not a file. Choose another --run_dir.")
        if path.name in directories and not path.is_dir():
            raise ConfigError(f"{path} is not a directory. Choose another --run_dir.")


def differences(manifest: dict) -> list[str]:
    """What is not as it was when the run was last started, and may change bits."""
    before = [manifest, *manifest.get("resumed", [])][-1]
    now = _provenance()
    flat = lambda started: {
        **{name: started.get(name) for name in ("git_commit", "host", "device", "cores", "python")},
        **started.get("versions", {}),
        **started.get("environment", {}),
    }
    old, new = flat(before), flat(now)
    return [f"{name} {old.get(name)} -> {new.get(name)}" for name in new if old.get(name) != new.get(name)]


def _provenance() -> dict:
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "host": socket.gethostname(),
        "device": device(),
        "cores": launch.cores(),
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        "python": sys.version.split()[0],
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "git_commit": _git_commit(),
    }


def device() -> str:
    """Names the device the learner runs on."""
    device = jax.devices()[0]
    return f"{device.platform.upper()} ({device.device_kind})"


def unused_gpu() -> bool:
    """Whether this machine has a GPU while JAX runs on its CPU."""
    return jax.default_backend() == "cpu" and (
        shutil.which("nvidia-smi") is not None or any(os.path.exists(path) for path in ("/dev/nvidia0", "/dev/kfd"))
    )


def _git_commit() -> str | None:
    """The commit of the source, '+' appended if there are changes; None outside a checkout."""
    git = lambda *args: subprocess.run(
        ["git", "-C", str(config.ROOT), *args], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
