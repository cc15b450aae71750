"""What a config may import and name: a run directory may come from a stranger, and whatever it names is called."""

from __future__ import annotations

import inspect

import gin.config as gin_state  # its registry has no public accessors

from agents.errors import ConfigError

TRUSTED = (
    *("agents.dataset", "agents.dqn", "agents.environments", "agents.experiment", "agents.learner"),
    *("networks", "replay.ring", "replay.samplers"),
)
ALLOW_IMPORT = "a package of yours that the config may import and name, may be repeated"
LIBRARIES = ("optax", "flax.linen.initializers", "jax.nn.initializers", "jax._src.nn.initializers")
# Of these, what may be imported: whatever else lies below them, tests among it, would run.
IMPORTABLE = ("optax", "optax.contrib", "optax.losses", "optax.schedules", "optax.transforms", *LIBRARIES[1:3])
OF_DOPAMINE = "Dopamine's gin files are not read; the README has its settings' names here: Coming from Dopamine."
# What is no config but taken for one, by what it imports.
NOT_CONFIGS = {"dopamine": OF_DOPAMINE, "sweeping": "This is a sweep: python scripts/sweep.py FILE."}


def _inside(module: str, packages) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def importable(module: str, allow_import=()) -> bool:
    """Whether a config may import a module."""
    own = _inside(module, (*TRUSTED, *allow_import)) and "_" not in (part[:1] for part in module.split("."))
    return own or module in (*IMPORTABLE, "__gin__.dynamic_registration")


def _may_be_named(selector: str, allow_import) -> bool:
    if selector in ("gin.macro", "gin.constant", "gin.singleton"):
        return True
    thing = gin_state._REGISTRY[selector].wrapped
    module, name = getattr(thing, "__module__", None) or "", getattr(thing, "__name__", "_")
    # Of this project classes only, which describe settings: its functions read and write files.
    ours = _inside(module, TRUSTED) and inspect.isclass(thing)
    return not name.startswith("_") and (ours or _inside(module, LIBRARIES)) or _inside(module, allow_import)


def _references(value):
    """All references in a value, those in the keys of dicts too, which gin calls as well."""
    if isinstance(value, gin_state.ConfigurableReference):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from _references(pair)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _references(item)


def check_names(source: str, bindings, allow_import=()) -> None:
    """Refuses bindings and references to objects that are neither this project's nor of `LIBRARIES`, nor allowed.

    Args:
      source: where the bindings come from, for the message.
      bindings: `checks.Key` -> value.
      allow_import: packages that may be named, too.

    What counts is where an object is defined, not the name under which it was imported.
    """
    selectors = {key.selector for key in bindings}
    for value in bindings.values():
        selectors |= {reference.configurable.selector for reference in _references(value)}
    for selector in sorted(selectors):
        if not _may_be_named(selector, allow_import):
            module = getattr(gin_state._REGISTRY[selector].wrapped, "__module__", None) or "an unknown module"
            raise ConfigError(f"{source} names {selector}, which is defined in {module}. {allow(module)}")


def check_environment(name: str, allow_import=()) -> None:
    """Refuses the id of an environment that imports a module that is not allowed."""
    module, colon, _ = name.rpartition(":")
    if colon and not _inside(module, allow_import):
        raise ConfigError(f"The environment {name!r} imports {module}. {allow(module)}")


def allow(module: str) -> str:
    """What may be named, and how to allow a module."""
    if (package := module.partition(".")[0]) in NOT_CONFIGS:
        return NOT_CONFIGS[package]
    rule = "A config may name this project's classes, optax and initializers only, since whatever it names is called."
    return rule if _inside(module, TRUSTED) else f"{rule} If you trust it: --allow_import {package}"
