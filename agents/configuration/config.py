"""Gin configuration that cannot lie: what a file or flag says either takes effect, or is an error before anything runs.

gin alone accepts bindings that nothing reads, macros nobody uses and a name bound twice. Here files compose in the
order given, later ones winning; overrides across files are reported, everything else that would be silent is refused.
Classes are named in the gin files themselves (`from __gin__ import dynamic_registration`); no Python code is decorated.
"""

from __future__ import annotations

import re
import tokenize
from functools import cache
from pathlib import Path
from typing import NamedTuple

import gin
import gin.config as gin_state  # its bindings have no public accessors

from agents.configuration.checks import (
    COMMAND_LINE,
    Key,
    check_learning_rates,
    check_statements,
    check_types,
    current_bindings,
    explain,
    is_prefix,
    refuse_unused,
    settings,
)
from agents.configuration.trust import check_environment, check_names
from agents.errors import ConfigError, did_you_mean, plain
from agents.experiment import Experiment

# What gin raises at a text that is wrong somewhere.
MISTAKES = (ValueError, TypeError, SyntaxError, NameError, AttributeError, ImportError, RuntimeError, LookupError)
MISTAKES += (tokenize.TokenError,)
ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
BASE = str(CONFIGS / "base.gin")


class Config(NamedTuple):
    """What gin files and bindings describe."""

    experiment: Experiment
    overrides: list[str]  # one line for each value that a later source changed
    settings: dict[str, str]  # all values in use, defaults included: 'Class.parameter' -> its gin representation
    text: str  # the composed gin file
    operative_text: str  # all values in use as a gin file


def load(files, bindings=(), allow_import=()) -> Config:
    """Composes gin files and bindings and builds the experiment they describe.

    Args:
      files: paths, later ones win; relative ones are looked up from the working directory, then the project's.
      bindings: lines such as 'Learner.batch_size = 64', which win over all files.
      allow_import: packages that may be imported and named, besides this project's classes, optax and initializers.

    Raises:
      ConfigError: for anything that would not take effect as written, or may not be named.
    """
    gin.clear_config()
    _register(CONFIGS)
    sources: dict[Key, int] = {}  # which source each binding comes from
    replaced: dict[tuple[str, str], int] = {}  # parts that a source has replaced by others
    overrides: list[str] = []
    names = [*map(_shown, files), COMMAND_LINE]
    texts = [*(read(resolve(file)) for file in files), "\n".join(bindings)]
    for number, (name, text) in enumerate(zip(names, texts, strict=True)):
        before = current_bindings()
        gin_state._CONFIG.clear()  # so that a binding to the value it already had is seen
        check_statements(name, text, allow_import)
        _parse(name, text)
        new = current_bindings()
        check_names(name, new, allow_import)
        for key, value in new.items():
            if key in before and repr(before[key]) != repr(value):
                overrides.append(f"{key} = {value!r} ({name}) instead of {before[key]!r} ({names[sources[key]]})")
                replaced |= dict.fromkeys(_reachable(before[key], before), number)
            sources[key] = number
        for key, value in before.items():
            if key not in new:
                gin_state._CONFIG.setdefault(key[:2], {})[key.parameter] = value
    check_types({key: names[number] for key, number in sources.items()})
    experiment = _build()
    check_environment(getattr(experiment.environment, "id", ""), allow_import)
    # A part that a later file replaced takes its own bindings with it; shipped files are made for many combinations.
    lenient = {number for number, file in enumerate(files) if folder(file)}
    bound = current_bindings()
    obsolete = _of_parts(replaced, sources, lenient)
    # So does what only those bindings name: the initializer of a head's file, where the agent has its own.
    named = {part: 0 for key in obsolete for part in _reachable(bound[key], bound)}
    obsolete |= _of_parts(named, sources, lenient)
    refuse_unused({key: names[number] for key, number in sources.items()}, obsolete)
    check_learning_rates(current_bindings())
    return Config(experiment, overrides, settings(), gin.config_str(), gin.operative_config_str())


@cache
def _register(folder: Path) -> None:
    """Makes the classes of all shipped files known by name, so that flags can bind those that the run does not name."""
    for path in _training_files(folder):
        _parse(_shown(path), path.read_text())
    gin.clear_config()


def shipped(folder: str, name: str) -> str:
    """Path of the shipped gin file `name` in a folder of configs/, '.' for agents.

    Raises:
      ConfigError: if there is none.
    """
    allowed = names(folder)
    if name not in allowed:
        kind = "agent" if folder == "." else folder.removesuffix("s")
        raise ConfigError(f"Unknown {kind} {name!r}.{did_you_mean(name, allowed)} Allowed: {', '.join(allowed)}.")
    return str(CONFIGS / folder / f"{name}.gin")


def names(folder: str) -> list[str]:
    """Names of the gin files that are shipped in a folder of configs/, '.' for agents."""
    return sorted(path.stem for path in (CONFIGS / folder).glob("*.gin") if str(path) != BASE)


def folder(file: str) -> str | None:
    """The folder of configs/ that a gin file is shipped in, '.' for agents; None for a file of the user's."""
    path = resolve(file)
    return str(path.parent.relative_to(CONFIGS)) if path.is_relative_to(CONFIGS) else None


def resolve(file) -> Path:
    """Finds a gin file from the working directory, or else from the project's."""
    for path in (Path(file), ROOT / file):
        if path.is_file():
            return path.resolve()
    names = [_shown(path) for path in sorted(_training_files(CONFIGS))]
    raise ConfigError(
        f"There is no gin file {str(file)!r}.{did_you_mean(str(file), names)} Shipped: {', '.join(names)}."
    )


def read(path: Path) -> str:
    """Reads a gin file.

    Raises:
      ConfigError: if it is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error}") from error


def _training_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.gin") if path.parent.name != "sweeps"]


def _shown(file) -> str:
    path = Path(file)
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _parse(source: str, text: str) -> None:
    try:
        gin.parse_config(text)
    except MISTAKES as error:
        message = explain(str(error) or type(error).__name__)
        if match := re.search(r"\(line (\d+)\)", message):
            message = " ".join([message, *text.splitlines()[int(match[1]) - 1 :][:1]])
        raise ConfigError(f"{source}: {message}") from error


def _build() -> Experiment:
    try:
        gin.finalize()  # refuses references to unknown classes
        experiment = gin.get_configurable(Experiment)()
        # Built here too, so that its bindings are checked and recorded with the others.
        experiment.network(num_actions=1, num_logits=1)
        return experiment
    except TypeError as error:
        if match := re.search(r"missing \d+ required .*argument.*?: (.*)", str(error)):
            raise ConfigError(
                f"Values are missing: {match[0].partition(chr(10))[0]}. Name an agent and a head: "
                "--agent dqn --head hl_gauss, or their gin files."
            ) from error
        raise ConfigError(explain(plain(error))) from error
    except Exception as error:  # ours too, to which gin has added
        raise ConfigError(plain(error)) from error


def _of_parts(parts, sources, lenient) -> set[Key]:
    """Bindings of parts, each if it comes from an earlier source than the part's number, or from a lenient one."""
    return {
        key
        for key, number in sources.items()
        for (scope, selector), by in parts.items()
        if selector == key.selector and is_prefix(key.scope, scope) and (number < by or number in lenient)
    }


def _reachable(value, bindings) -> set[tuple[str, str]]:
    """(scope, selector) of all parts that a replaced value brought along, directly or through their own bindings."""
    found: set[tuple[str, str]] = set()
    queue = [value]
    while queue:
        for reference in gin_state.iterate_references(queue.pop()):
            part = ("/".join(reference.scopes), reference.configurable.selector)
            if part not in found:
                found.add(part)
                queue += [
                    value
                    for key, value in bindings.items()
                    if key.selector == part[1] and is_prefix(key.scope, part[0])
                ]
    return found
