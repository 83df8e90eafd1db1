"""Check that a configuration file is a YAML mapping of settings, before jsonargparse reads it."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from litlab.errors import did_you_mean, one_line

SECTIONS = ("trainer", "checkpoint", "last_checkpoint", "guard")
CHOICES = ("model", "data")  # sections that can also be the name of a class
# modules of litlab 0.1 that have moved
MOVED_DATA = ("mnist", "text_classification", "summarization", "span_corruption")
MOVED = ("litlab.models.", "litlab.callbacks.", "litlab.loggers.", *(f"litlab.data.{name}." for name in MOVED_DATA))
MAX_VALUES = 10_000  # in one configuration file


def file_problem(path: Path) -> str | None:
    """Return one sentence if a configuration file is missing or is not a YAML mapping of settings, otherwise None."""
    found = _file_problem(path)
    return one_line(found) if found else None


def _file_problem(path: Path) -> str | None:
    # a missing file
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        known = _names_beside(path)
        if path.name == ".yaml" and known:
            return f"no experiment is named; known are {', '.join(known)}: make train EXP=<name>."
        if os.path.isdir(path) or path.suffix != ".yaml" or not known:
            return f"{path!s:.200} is not a file: -c takes a YAML file such as configs/experiment/<name>.yaml."
        for recipe in _recipes(path):
            if recipe.stem == path.stem:
                return f"{path} does not exist: {path.stem} is an experiment of a recipe; use -c {recipe}."
        return f"no {path.parent.name} {path.stem!r} ({path} does not exist){did_you_mean(path.stem, known)}; known are {', '.join(known)}."
    # not YAML
    try:
        text = path.read_text()
        content = yaml.safe_load(text)
    except (yaml.reader.ReaderError, UnicodeDecodeError):
        return f"{path}: this is not YAML (it is not text in UTF-8)."
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        return f"{path}{line}: this is not YAML ({error.problem})."
    except (ValueError, LookupError, AttributeError) as error:  # PyYAML raises these for 2026-02-30 or `!!int many`
        return f"{path}: invalid YAML value ({error}); quote it if it is a string."
    except RecursionError:
        return f"{path}: its lists or settings are nested too deeply."
    # not settings
    root = yaml.compose(text)
    if _size(root, {}) > MAX_VALUES:
        return f"{path} holds more than {MAX_VALUES:,} values, including those that its aliases (*) repeat."
    if not isinstance(content, dict):
        return f"{path} must hold settings as `key: value` lines; it holds {'nothing' if content is None else type(content).__name__}."
    for key in (*SECTIONS, *CHOICES):
        value = content.get(key, {})
        if not isinstance(value, dict | str if key in CHOICES else dict):
            found = "nothing" if value is None else repr(value)
            return f"{path}: {key} must hold settings as indented `key: value` lines; it is {found}."
    return next((f"{path}, {problem}" for problem in _wrong_keys(root)), None)


def _names_beside(path: Path) -> list[str]:
    """Return the names of the configuration files beside a path; beside experiments, those of the recipes too."""
    files = [*path.parent.glob("*.yaml"), *_recipes(path)] if os.path.isdir(path.parent) else []
    return sorted(file.stem for file in files)


def _recipes(path: Path) -> list[Path]:
    """Return the experiments of the recipes if a path is beside the project's experiments, otherwise an empty list."""
    if path.parent.name != "experiment":
        return []
    root = path.parent.parent.parent
    return sorted(root.glob("recipes/*/configs/*.yaml"))


def _wrong_keys(node: Any) -> Iterator[str]:
    """Yield what jsonargparse misses or explains badly: duplicate keys, moved classes, and invalid init_args."""
    seen = set()
    for name, child in node.value if isinstance(node, yaml.MappingNode) else []:
        line = f"line {name.start_mark.line + 1}"
        if name.value in seen:
            yield f"{line}: {name.value} is set a second time; keep one."
        if name.value == "class_path" and str(child.value).startswith(MOVED):
            yield (
                f"{line}: {child.value} has moved since litlab 0.1: models and data are in project.models and project.data, callbacks and "
                "loggers in litlab.training; correct the class path, or use the commit in the run's run.json."
            )
        if name.value == "init_args" and not isinstance(child, yaml.MappingNode):
            yield f"{line}: init_args must hold settings as indented `key: value` lines."
        seen.add(name.value)
    for child in _children(node):
        yield from _wrong_keys(child)


def _size(node: Any, known: dict[int, float]) -> float:
    """Return the number of values in a node, with those that aliases repeat; infinite if a node contains itself."""
    if isinstance(node, yaml.CollectionNode) and id(node) not in known:
        known[id(node)] = math.inf  # a node that contains itself reads this value before it is counted
        known[id(node)] = 1 + sum(_size(child, known) for child in _children(node))
    return known.get(id(node), 1)


def _children(node: Any) -> list[Any]:
    entries = node.value if isinstance(node, yaml.CollectionNode) else []
    return [child for entry in entries for child in (entry if isinstance(entry, tuple) else [entry])]
