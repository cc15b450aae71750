"""The grid of a sweep, written in gin: agents x heads x games x seeds x values of bindings.

from __gin__ import dynamic_registration
from sweeping import grid

grid.Sweep.grids = [@paper/grid.Grid(), @control/grid.Grid()]
grid.Grid.games = 'atari_5'                                 # holds for all grids
paper/grid.Grid.heads = ['mse', 'hl_gauss']
control/grid.Grid.heads = ['mse']
control/grid.Grid.bindings = ['adam.learning_rate = 2.5e-4', 'adam.eps = 3.125e-4']
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import gin

from agents.configuration import config
from agents.configuration.checks import check_statements, check_types, current_bindings, explain, refuse_unused
from agents.configuration.trust import check_environment, check_names
from agents.environments import ROMS, task_name
from agents.errors import ConfigError, did_you_mean, plain

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = ROOT / "configs/sweeps"
MOST_RUNS = 100_000  # of a grid


class Cell(NamedTuple):
    """One run of a grid."""

    seed: int
    task: str  # the flag of its game or environment
    flags: tuple[str, ...]  # all others of scripts/train.py, {game} for the game's name
    num_envs: int  # games stepped in parallel, if the preset leaves it to the machine

    @property
    def argv(self) -> list[str]:
        """The command line."""
        game = task_name(self.task.partition("=")[2])
        return [*(flag.replace("{game}", game) for flag in self.flags), self.task, f"--seed={self.seed}"]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Runs of `scripts/train.py`: all combinations of agents, heads, games, seeds and values of axes.

    Args:
      games: Atari games, or the name of a file of configs/sweeps/games.
      envs: ids of Gymnasium environments instead, e.g. 'MinAtar/Breakout-v1'.
      agents: files of configs.
      heads: files of configs/heads; None: the agent's own.
      seeds: a number K for seeds 0 to K - 1, or a list.
      preset: file of configs/presets; None: the default of `train.py`.
      torso: file of configs/torsos; None: the agent's.
      steps: length in agent steps; None: the preset's.
      updates: length of offline runs instead.
      dataset: paths of the data sets of offline runs; {game} in them stands for the name of the game.
      num_envs: games stepped in parallel where the preset leaves that to the machine, so that all runs have the same.
      gin_files: gin files of one's own.
      bindings: gin bindings of all runs.
      axes: values of bindings, e.g. {'HLGauss.sigma_ratio': [0.5, 0.75]}.

    Raises:
      ConfigError: if there is nothing to run, or a value of the wrong type.
    """

    games: str | list | tuple = ()
    envs: list | tuple = ()
    agents: list | tuple = ("dqn",)
    heads: list | tuple | None = None
    seeds: int | list | tuple = 1
    preset: str | None = None
    torso: str | None = None
    steps: int | None = None
    updates: int | None = None
    dataset: list | tuple = ()
    num_envs: int = 16
    gin_files: list | tuple = ()
    bindings: list | tuple = ()
    axes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if bool(self.games) == bool(self.envs):
            raise ConfigError("grid.Grid needs games or envs, one of them: e.g. games = 'atari_5' or ['Pong'].")
        for name in ("games", "envs", "agents", "dataset", "gin_files", "bindings"):
            if not isinstance(getattr(self, name), (list, tuple)) and not (name == "games" and self.games):
                raise ConfigError(f"grid.Grid.{name} takes a list; got {getattr(self, name)!r}.")
        kinds = dict.fromkeys(("games", "envs", "agents", "heads", "dataset", "gin_files", "bindings"), str) | {
            "seeds": int
        }
        for name, kind in kinds.items():
            values = getattr(self, name)
            if isinstance(values, (list, tuple)) and not all(type(value) is kind for value in values):
                raise ConfigError(f"grid.Grid.{name} is {values!r}; it takes values of the type {kind.__name__}.")
        for axis, values in self.axes.items():
            if not isinstance(values, (list, tuple)) or not values:
                raise ConfigError(f"grid.Grid.axes: {axis!r} needs a list of values; got {values!r}.")
            if not all(isinstance(value, (bool, int, float, str, tuple, dict, type(None))) for value in values):
                raise ConfigError(
                    f"grid.Grid.axes: {axis!r} takes plain values; got {values!r}. Bind others in a grid for each."
                )
        if not (self.agents and self._heads and self._seeds):
            raise ConfigError("The grid is empty: agents, heads and seeds must not be.")
        if isinstance(self.seeds, int) and not 0 < self.seeds <= MOST_RUNS:
            raise ConfigError(f"grid.Grid.seeds is a number from 1 to {MOST_RUNS:,}, or a list; got {self.seeds}.")
        if not all(0 <= seed < 2**32 for seed in self._seeds):
            raise ConfigError(f"grid.Grid.seeds lie between 0 and 2^32 - 1; got {self.seeds}.")
        games = named_games(self.games) if isinstance(self.games, str) else self.envs or self.games
        sizes = (self.agents, self._heads, self._seeds, games, *self.axes.values())
        if math.prod(map(len, sizes)) > MOST_RUNS:
            raise ConfigError(f"The grid has more than {MOST_RUNS:,} runs: {' x '.join(str(len(s)) for s in sizes)}.")
        if self.num_envs < 1:
            raise ConfigError(f"grid.Grid.num_envs must be positive; got {self.num_envs}.")

    @property
    def _heads(self):
        return [None] if self.heads is None else self.heads

    @property
    def _seeds(self):
        return range(self.seeds) if isinstance(self.seeds, int) else self.seeds

    def cells(self) -> list[Cell]:
        """Its runs."""
        games = named_games(self.games) if isinstance(self.games, str) else self.games
        tasks = [f"--game={game}" for game in games] or [f"--env={env}" for env in self.envs]
        fixed = {"preset": self.preset, "torso": self.torso, "steps": self.steps, "updates": self.updates}
        fixed = [f"--{name}={value}" for name, value in fixed.items() if value is not None]
        axes = [[f"--gin_bindings={name} = {value!r}" for value in values] for name, values in self.axes.items()]
        own = [f"--gin_files={file}" for file in self.gin_files]
        own += [f"--gin_bindings={binding}" for binding in self.bindings]
        arms = itertools.product(self.agents, self._heads, itertools.product(*axes))
        cells = []
        for (agent, head, values), task, seed in itertools.product(arms, tasks, self._seeds):
            named = [f"--agent={agent}"] + ([f"--head={head}"] if head is not None else [])
            data = ["--dataset", *self.dataset] if self.dataset else []
            cells.append(Cell(seed, task, (*data, *named, *fixed, *own, *values), self.num_envs))
        return cells


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Several grids."""

    grids: list | tuple

    def __post_init__(self):
        grids = self.grids if isinstance(self.grids, (list, tuple)) else []
        if not grids or not all(isinstance(grid, Grid) for grid in grids):
            raise ConfigError("grid.Sweep.grids takes grids: e.g. [@grid.Grid()], or [@a/grid.Grid(), @b/grid.Grid()].")

    def cells(self) -> list[Cell]:
        """All runs, by seed and then by game: what is to be compared trains side by side, seed after seed."""
        cells = [cell for grid in self.grids for cell in grid.cells()]
        tasks = {task: place for place, task in enumerate(dict.fromkeys(cell.task for cell in cells))}
        return sorted(cells, key=lambda cell: (cell.seed, tasks[cell.task]))

    def replace(self, **changes) -> Sweep:
        """The same sweep with other values in all of its grids.

        Raises:
          ConfigError: if games are given for grids of other environments, or a length of another kind.
        """
        for name, other in (("steps", "updates"), ("updates", "steps")):
            if name in changes and any(getattr(grid, other) is not None for grid in self.grids):
                raise ConfigError(f"--{name}: the runs of this sweep are counted in {other}: use --{other}.")
        if "games" in changes and any(grid.envs for grid in self.grids):
            raise ConfigError(
                "--games names Atari games, but the sweep has grid.Grid.envs: change that list in its file."
            )
        return Sweep([dataclasses.replace(grid, **changes) for grid in self.grids])


def named_games(name: str) -> list[str]:
    """Reads a set of games from configs/sweeps/games: names between spaces, '#' before remarks.

    Raises:
      ConfigError: if there is none of this name.
    """
    names = sorted(path.stem for path in (SWEEPS / "games").glob("*.txt"))
    if name not in names:
        raise ConfigError(
            f"Unknown set of games {name!r}.{did_you_mean(name, [*names, *ROMS])} Sets: {', '.join(names)}; or a list "
            "of games."
        )
    lines = (SWEEPS / "games" / f"{name}.txt").read_text().splitlines()
    return " ".join(line.partition("#")[0] for line in lines).split()


def read(file, allow_import=()) -> Sweep:
    """Reads a sweep from a gin file, and leaves gin's state empty.

    Args:
      file: path, from the working directory or else from the project's.
      allow_import: packages that it may name, for environments of one's own.

    Raises:
      ConfigError: for a file that is not there, and anything in it that would not take effect as written.
    """
    path = next((path for path in (Path(file), ROOT / file) if path.is_file()), None)
    if path is None:
        shipped = ", ".join(str(path.relative_to(ROOT)) for path in sorted(SWEEPS.glob("*.gin")))
        raise ConfigError(f"There is no sweep {str(file)!r}. Shipped: {shipped}.")
    text, source, allow_import = config.read(path), str(file), (*allow_import, "sweeping.grid")
    gin.clear_config()
    try:
        check_statements(source, text, allow_import)
        gin.parse_config(text)
        check_names(source, current_bindings(), allow_import)
        gin.finalize()
        sources = dict.fromkeys(current_bindings(), source)
        check_types(sources)
        if not any(key.selector.endswith("grid.Sweep") for key in sources):
            raise ConfigError(f"{source} describes no sweep: it has no grid.Sweep.grids = [@grid.Grid()].")
        sweep = gin.get_configurable(Sweep)()
        refuse_unused(sources, set())
        for environment in itertools.chain.from_iterable(grid.envs for grid in sweep.grids):
            check_environment(environment, allow_import)
    except config.MISTAKES as error:  # gin adds to the messages of ours, too
        message = plain(error)
        raise ConfigError(message if isinstance(error, ConfigError) else f"{source}: {explain(message)}") from error
    finally:
        gin.clear_config()
    return sweep
