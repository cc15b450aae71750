"""What gin would silently accept, and what its errors leave unsaid: the checks behind `config.py`."""

from __future__ import annotations

import inspect
import math
import re
import tokenize
import types
import typing
from typing import NamedTuple

import gin.config as gin_state  # its registry and its bindings have no public accessors
from gin import config_parser

from agents.configuration.trust import OF_DOPAMINE, allow, importable
from agents.errors import ConfigError, did_you_mean

COMMAND_LINE = "command line"


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


def current_bindings() -> dict[Key, object]:
    """All bindings that gin holds."""
    return {
        Key(scope, selector, parameter): value
        for (scope, selector), values in gin_state._CONFIG.items()
        for parameter, value in values.items()
    }


def settings() -> dict[str, str]:
    """All values the built experiment uses, defaults included: 'Class.parameter' -> its gin representation."""
    return {
        str(Key(scope, selector, parameter)): repr(value)
        for (scope, selector), values in gin_state._OPERATIVE_CONFIG.items()
        for parameter, value in values.items()
        if not callable(value)
    }


class _Anything(config_parser.ParserDelegate):
    """Parses references and macros without resolving them."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        return scoped_configurable_name

    def macro(self, macro_name):
        return macro_name


def check_statements(source: str, text: str, allow_import=()) -> None:
    """Refuses what gin would silently accept in one source, and imports of what it may not name."""
    seen: dict[tuple, config_parser.BindingStatement] = {}
    for statement in _statements(text):
        line = statement.location.line_num
        if isinstance(statement, config_parser.ImportStatement) and not importable(statement.module, allow_import):
            raise ConfigError(f"{source}, line {line} imports {statement.module}. {allow(statement.module)}")
        if isinstance(statement, config_parser.IncludeStatement):
            raise ConfigError(f"{source}, line {line}: include is not supported. Pass --gin_files once for each file.")
        if isinstance(statement, config_parser.BindingStatement):
            # Learner.x and learner.Learner.x are the same.
            key = (statement.scope, statement.selector.rpartition(".")[2], statement.arg_name)
            if key in seen:
                scope = f"{key[0]}/" if key[0] else ""
                name = scope + ".".join(filter(None, key[1:]))
                first = seen[key]
                where = f"in lines {first.location.line_num} and {line}"
                if source == COMMAND_LINE:  # in which a line is a flag
                    where = f"to {first.value!r} and to {statement.value!r}, which flags such as --steps do, too"
                raise ConfigError(f"{source}: {name} is bound twice, {where}. Remove one.")
            seen[key] = statement


def _statements(text: str):
    """Yields statements up to the first mistake of syntax, which gin reports when it comes there."""
    try:
        yield from config_parser.ConfigParser(text, _Anything())
    except (SyntaxError, TypeError, RecursionError, tokenize.TokenError):
        return


def check_types(sources: dict[Key, str]) -> None:
    """Refuses plain values of another type than the parameter they are bound to has; an int for a float becomes one."""
    bound = current_bindings()
    for key, source in sources.items():
        try:
            hint = typing.get_type_hints(gin_state._REGISTRY[key.selector].wrapped).get(key.parameter, typing.Any)
        except (NameError, TypeError):  # annotations of other packages need not resolve
            continue
        value = bound[key]
        if strange := _strange(value):
            raise ConfigError(f"{source}: {key} = {_short(value)} is no value for a setting: {strange}.")
        if not isinstance(value, gin_state.ConfigurableReference) and not _fits(value, hint):
            expected = hint.__name__ if inspect.isclass(hint) else hint
            raise ConfigError(f"{source}: {key} = {_short(value)} is of the wrong type; it must be {expected}.")
        if hint is float and isinstance(value, int):  # 20 and 20.0 are one setting
            gin_state._CONFIG[key[:2]][key.parameter] = float(value)
        is_class = isinstance(value, gin_state.ConfigurableReference) and not value.evaluate
        if is_class and inspect.isclass(hint):
            allowed = f"a plain {hint.__name__}" if hint in (bool, int, float, str) else f"an object: {value!r}()"
            raise ConfigError(f"{source}: {key} = {value!r} is a class; it must be {allowed}.")


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _strange(value) -> str | None:
    """What is wrong with a value wherever it is bound, or in what it holds."""
    if isinstance(value, dict):
        return next(filter(None, map(_strange, (*value.keys(), *value.values()))), None)
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_strange, value)), None)
    if isinstance(value, (bytes, complex, set)):
        return f"of the type {type(value).__name__}"
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "beyond 64 bits"
    return None


def _fits(value, hint) -> bool:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if len(options) > 1:
        return any(_fits(value, option) for option in options)
    if hint is typing.Any:
        return True
    plain = typing.get_origin(hint) or hint
    if not inspect.isclass(plain):  # e.g. a type variable
        return True
    if plain in (int, float):
        return not isinstance(value, bool) and isinstance(value, (int, plain))
    try:
        return isinstance(value, plain)
    except TypeError:  # a protocol that cannot be asked
        return True


def refuse_unused(sources: dict[Key, str], obsolete: set[Key]) -> None:
    """Refuses bindings that the built experiment did not read; forgets those that are obsolete."""
    bound = current_bindings()
    for key, source in sources.items():
        winners = _winners(key, bound)
        if key in winners:
            continue
        if source != COMMAND_LINE and (winners or key in obsolete):
            del gin_state._CONFIG[key[:2]][key.parameter]
        elif winners:
            winner = winners.pop()
            raise ConfigError(f"{source}: {key} has no effect: {winner} = {bound[winner]!r} wins. Bind that one.")
        else:
            used = sorted(settings())
            kind = "the macro" if key.selector == "gin.macro" else "the binding"
            raise ConfigError(
                f"{source}: {kind} {key} = {bound[key]!r} is not used by this run.{did_you_mean(str(key), used)}"
            )
    for part in [part for part, values in gin_state._CONFIG.items() if not values]:
        del gin_state._CONFIG[part]


def check_learning_rates(bound) -> None:
    """Refuses learning rates that are not positive, which optax takes, and which go uphill."""
    for key, value in bound.items():
        if key.parameter == "learning_rate" and isinstance(value, (int, float)) and not value > 0:
            raise ConfigError(f"{key} must be positive; got {value}.")


def _winners(key: Key, bound) -> set[Key]:
    """The bindings that took effect wherever `key` could have: one in a longer scope wins over it."""
    scopes = [
        scope
        for (scope, selector), values in gin_state._OPERATIVE_CONFIG.items()
        if selector == key.selector and key.parameter in values and is_prefix(key.scope, scope)
    ]
    rivals = [other for other in bound if other[1:] == key[1:]]
    return {
        max((other for other in rivals if is_prefix(other.scope, scope)), key=lambda other: len(other.scope))
        for scope in scopes
    }


def is_prefix(scope: str, of: str) -> bool:
    """Whether what is bound in a scope also holds in the scope `of`."""
    return scope == "" or of == scope or of.startswith(scope + "/")


def explain(message: str) -> str:
    """Adds what is allowed to gin's message."""
    message = re.sub(r"In bindings string line \d+\s+", "In: ", message)
    classes = [selector.rpartition(".")[2] for selector, _ in gin_state._REGISTRY.items()]
    if match := re.search(r"Configurable '([\w.]+)' doesn't have a parameter named '(\w+)'", message):
        target = gin_state._REGISTRY.get_match(match[1]) or gin_state._REGISTRY.get_match(match[1].rpartition(".")[2])
        parameters = [name for name in inspect.signature(target.wrapped).parameters if name != "self"] if target else []
        return f"{message}\n{did_you_mean(match[2], parameters)} Parameters: {', '.join(parameters)}."
    if match := re.search(r"No configurable matching (?:reference )?'@?([\w./]+)", message):
        return (
            f"{message}\n{did_you_mean(match[1], classes)} Classes in use: {', '.join(sorted(set(classes)))}. "
            "Others are bound in a gin file of your own that imports them (--gin_files)."
            f"{f' {OF_DOPAMINE}' if match[1].startswith('Jax') else ''}"
        )
    if match := re.search(r"malformed node or string|Failed to parse token '([^']*)'", message):
        return f"{message}\nA string needs quotes: 'text'; a class is written @module.Class, a macro %NAME."
    return message
