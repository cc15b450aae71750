"""Gin configuration that cannot lie: what a file or flag says either takes effect, or is an error before anything runs.

gin alone accepts bindings that nothing reads, macros nobody uses and a name bound twice. Here files compose in the
order given, later ones winning; overrides across files are reported, everything else that would be silent is refused.
Classes are named in the gin files themselves (`from __gin__ import dynamic_registration`); no Python code is decorated.
"""

from __future__ import annotations

import difflib
import inspect
import re
from pathlib import Path
from typing import NamedTuple

import gin
import gin.config as gin_state  # its registry and its bindings have no public accessors
from gin import config_parser

from agents.experiment import Experiment

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
BASE = str(CONFIGS / "base.gin")
COMMAND_LINE = "command line"


class ConfigError(ValueError):
    """A mistake in a gin file or flag; the message says where, and what is allowed."""


class Key(NamedTuple):
    """Where gin keeps a binding. A macro M is the parameter 'value' of 'gin.macro' in the scope M."""

    scope: str
    selector: str
    parameter: str

    def __str__(self):
        if self.selector == "gin.macro":
            return self.scope
        scope = f"{self.scope}/" if self.scope else ""
        return f"{scope}{self.selector.rpartition('.')[2]}.{self.parameter}"


def load(files, bindings=()) -> tuple[Experiment, list[str]]:
    """Composes gin files and bindings and builds the experiment they describe.

    Args:
      files: paths, later ones win; relative ones are looked up from the working directory, then the project's.
      bindings: lines such as 'Learner.batch_size = 64', which win over all files.

    Returns:
      The experiment, and one line for each value that a later source changed.

    Raises:
      ConfigError: for anything that would not take effect as written.
    """
    gin.clear_config()
    sources: dict[Key, int] = {}  # which source each binding comes from
    replaced: dict[tuple[str, str], int] = {}  # parts that a source has replaced by others
    overrides: list[str] = []
    names = [*map(_shown, files), COMMAND_LINE]
    texts = [*(_path(file).read_text() for file in files), "\n".join(bindings)]
    for number, (name, text) in enumerate(zip(names, texts, strict=True)):
        before = _bindings()
        gin_state._CONFIG.clear()  # so that a binding to the value it already had is seen
        _check_statements(name, text)
        _parse(name, text)
        new = _bindings()
        for key, value in new.items():
            if key in before and repr(before[key]) != repr(value):
                overrides.append(f"{key} = {value!r} ({name}) instead of {before[key]!r} ({names[sources[key]]})")
                replaced |= dict.fromkeys(_reachable(before[key], before), number)
            sources[key] = number
        for key, value in before.items():
            if key not in new:
                gin_state._CONFIG.setdefault(key[:2], {})[key.parameter] = value
    experiment = _build()
    # A part that a later file replaced takes its own bindings with it; shipped files are made for many combinations.
    lenient = {number for number, file in enumerate(files) if folder(file)}
    obsolete = {
        key
        for key, number in sources.items()
        for (scope, selector), by in replaced.items()
        if selector == key.selector and _is_prefix(key.scope, scope) and (number < by or number in lenient)
    }
    _refuse_unused({key: names[number] for key, number in sources.items()}, obsolete)
    return experiment, overrides


def shipped(folder: str, name: str) -> str:
    """Path of the shipped gin file `name` in a folder of configs/, '.' for agents.

    Raises:
      ConfigError: if there is none.
    """
    names = sorted(path.stem for path in (CONFIGS / folder).glob("*.gin") if str(path) != BASE)
    if name not in names:
        kind = "agent" if folder == "." else folder.removesuffix("s")
        raise ConfigError(f"Unknown {kind} {name!r}.{_did_you_mean(name, names)} Allowed: {', '.join(names)}.")
    return str(CONFIGS / folder / f"{name}.gin")


def folder(file: str) -> str | None:
    """The folder of configs/ that a gin file is shipped in, '.' for agents; None for a file of the user's."""
    path = _path(file)
    return str(path.parent.relative_to(CONFIGS)) if path.is_relative_to(CONFIGS) else None


def _path(file) -> Path:
    """Finds a gin file from the working directory, or else from the project's."""
    for path in (Path(file), ROOT / file):
        if path.is_file():
            return path.resolve()
    names = [_shown(path) for path in sorted(CONFIGS.rglob("*.gin"))]
    raise ConfigError(
        f"There is no gin file {str(file)!r}.{_did_you_mean(str(file), names)} Shipped: {', '.join(names)}."
    )


def _shown(file) -> str:
    path = Path(file)
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def settings() -> dict[str, str]:
    """All values the built experiment uses, defaults included: 'Class.parameter' -> its gin representation."""
    return {
        str(Key(scope, selector, parameter)): repr(value)
        for (scope, selector), values in gin_state._OPERATIVE_CONFIG.items()
        for parameter, value in values.items()
        if not callable(value)
    }


def _bindings() -> dict[Key, object]:
    return {
        Key(scope, selector, parameter): value
        for (scope, selector), values in gin_state._CONFIG.items()
        for parameter, value in values.items()
    }


class _Anything(config_parser.ParserDelegate):
    """Parses references and macros without resolving them."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        return scoped_configurable_name

    def macro(self, macro_name):
        return macro_name


def _check_statements(source: str, text: str) -> None:
    """Refuses what gin would silently accept in one source."""
    seen: dict[tuple, int] = {}
    try:
        statements = list(config_parser.ConfigParser(text, _Anything()))
    except SyntaxError:
        return  # `_parse` reports it, with a hint
    for statement in statements:
        line = statement.location.line_num
        if isinstance(statement, config_parser.IncludeStatement):
            raise ConfigError(f"{source}, line {line}: include is not supported. Pass --gin_files once for each file.")
        if isinstance(statement, config_parser.BindingStatement):
            # Learner.x and learner.Learner.x are the same.
            key = (statement.scope, statement.selector.rpartition(".")[2], statement.arg_name)
            if key in seen:
                scope = f"{key[0]}/" if key[0] else ""
                name = scope + ".".join(filter(None, key[1:]))
                raise ConfigError(f"{source}: {name} is bound twice, in lines {seen[key]} and {line}. Remove one.")
            seen[key] = line


def _parse(source: str, text: str) -> None:
    try:
        gin.parse_config(text)
    except (ValueError, SyntaxError, NameError, AttributeError, ImportError, RuntimeError) as error:
        raise ConfigError(f"{source}: {_explain(str(error))}") from error


def _explain(message: str) -> str:
    """Adds what is allowed to gin's message."""
    classes = [selector.rpartition(".")[2] for selector, _ in gin_state._REGISTRY.items()]
    if match := re.search(r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", message):
        target = gin_state._REGISTRY.get_match(match[1]) or gin_state._REGISTRY.get_match(match[1].rpartition(".")[2])
        parameters = [name for name in inspect.signature(target.wrapped).parameters if name != "self"] if target else []
        return f"{message}\n{_did_you_mean(match[2], parameters)} Parameters: {', '.join(parameters)}."
    if match := re.search(r"No configurable matching '([\w./]+)'", message):
        return f"{message}\n{_did_you_mean(match[1], classes)} Classes in use: {', '.join(sorted(set(classes)))}."
    if match := re.search(r"malformed node or string|Failed to parse token '([^']*)'", message):
        return f"{message}\nA string needs quotes: 'text'; a class is written @module.Class, a macro %NAME."
    return message


def _did_you_mean(name: str, allowed) -> str:
    near = difflib.get_close_matches(name, list(allowed), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _build() -> Experiment:
    try:
        gin.finalize()  # refuses references to unknown classes
        experiment = gin.get_configurable(Experiment)()
        # Built here too, so that its bindings are checked and recorded with the others.
        experiment.network(num_actions=1, num_logits=1)
        return experiment
    except ConfigError:
        raise
    except TypeError as error:
        if match := re.search(r"missing \d+ required .*argument.*?: (.*)", str(error)):
            raise ConfigError(
                f"Values are missing: {match[0].partition(chr(10))[0]}. Name an agent and a head: "
                "--agent dqn --head hl_gauss, or their gin files."
            ) from error
        raise ConfigError(_explain(str(error))) from error
    except Exception as error:
        # Gin appends the chain of configurables to the message; the first line is ours.
        raise ConfigError(
            str(error).partition("\n  In call to configurable")[0].partition("\n  No values supplied")[0]
        ) from error


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
                    if key.selector == part[1] and _is_prefix(key.scope, part[0])
                ]
    return found


def _refuse_unused(sources: dict[Key, str], obsolete: set[Key]) -> None:
    """Refuses bindings that the built experiment did not read; forgets those that are obsolete."""
    bindings = _bindings()
    for key, source in sources.items():
        winners = _winners(key, bindings)
        if key in winners:
            continue
        if source != COMMAND_LINE and (winners or key in obsolete):
            del gin_state._CONFIG[key[:2]][key.parameter]
        elif winners:
            winner = winners.pop()
            raise ConfigError(f"{source}: {key} has no effect: {winner} = {bindings[winner]!r} wins. Bind that one.")
        else:
            used = sorted(settings())
            kind = "the macro" if key.selector == "gin.macro" else "the binding"
            raise ConfigError(
                f"{source}: {kind} {key} = {bindings[key]!r} is not used by this run.{_did_you_mean(str(key), used)}"
            )
    for part in [part for part, values in gin_state._CONFIG.items() if not values]:
        del gin_state._CONFIG[part]


def _winners(key: Key, bindings) -> set[Key]:
    """The bindings that took effect wherever `key` could have: one in a longer scope wins over it."""
    scopes = [
        scope
        for (scope, selector), values in gin_state._OPERATIVE_CONFIG.items()
        if selector == key.selector and key.parameter in values and _is_prefix(key.scope, scope)
    ]
    rivals = [other for other in bindings if other[1:] == key[1:]]
    return {
        max((other for other in rivals if _is_prefix(other.scope, scope)), key=lambda other: len(other.scope))
        for scope in scopes
    }


def _is_prefix(scope: str, of: str) -> bool:
    return scope == "" or of == scope or of.startswith(scope + "/")
