"""One-sentence messages for invalid settings: the location, the problem, the accepted values, the closest spelling.

Nothing is validated here: jsonargparse finds the problem, and this module finds its location and the closest spelling.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from litlab.cli.classes import import_class, parameters
from litlab.errors import did_you_mean, one_line

OPEN, CLOSE = "\u27e6", "\u27e7"  # brackets around a finished message; the command line removes them
ROLES = {"model": "a LightningModule", "data": "a LightningDataModule"}
PLAIN_NAMES = {"NoneType": "null", "str": "string", "bool": "true or false"}
REQUIRED = "the following arguments are required: "  # from a message of jsonargparse


@dataclass
class Setting:
    """One setting, as the user wrote it.

    Args:
        location: what messages print: "--model.hiden=64", or the file, the line and the key.
        path: the key, split at its dots, without init_args, << and the + of lists.
        value: the value as written; None for a mapping or a list.
        owner: the class_path beside the init_args that hold the setting; None without one.
    """

    location: str
    path: list[str]
    value: str | None = None
    owner: str | None = None


class Settings:
    """All settings of the configuration files and the command line, with their locations.

    Args:
        arguments: the command line.
        files: the configuration files, in reading order.
    """

    def __init__(self, arguments: list[str], files: list[Path]) -> None:
        self.all = [setting for file in files for setting in _read(file, yaml.compose(file.read_text()), [], None)]
        for argument in _joined(arguments):
            if argument.startswith("--"):
                name, _, value = argument[2:].partition("=")
                self.all.append(Setting(one_line(argument), _plain_path(name), value))

    def find(self, key: str, value: str | None = None) -> Setting:
        """Return the last setting of `key`, preferably one with `value`; without one, the last setting with this value.

        Args:
            key: a dotted name or the end of one.
            value: the value as written.
        """
        wanted = _plain_path(key)
        with_key = [setting for setting in self.all if setting.path[-len(wanted) :] == wanted]
        with_value = [setting for setting in with_key or self.all if value is not None and setting.value == value]
        return (with_value or with_key or [Setting(key, wanted)])[-1]

    def set_at(self, key: str) -> Setting | None:
        """Return the last setting of exactly `key`, or None."""
        return next((setting for setting in reversed(self.all) if setting.path == _plain_path(key)), None)

    def class_of(self, part: str) -> str | None:
        """Return the dotted path of the class of the model or the data, or None."""
        chosen = [one.value for one in self.all if one.path in ([part], [part, "class_path"]) and one.value]
        return chosen[-1] if chosen else None


def _read(file: Path, node: Any, path: list[str], owner: str | None) -> Iterator[Setting]:
    """Yield all settings below a node of a YAML file, in order."""
    for child in node.value if isinstance(node, yaml.SequenceNode) else []:
        yield from _read(file, child, path, None)
    if isinstance(node, yaml.MappingNode):
        chosen = next((child.value for name, child in node.value if name.value == "class_path"), None)
        for name, child in node.value:
            here = [*path, str(name.value)]
            value = child.value if isinstance(child, yaml.ScalarNode) else None
            location = f"{file}, line {name.start_mark.line + 1}, {'.'.join(here)}"
            yield Setting(one_line(location), _plain_path(".".join(here)), value, owner)
            yield from _read(file, child, here, chosen if name.value == "init_args" else None)


def _plain_path(name: str) -> list[str]:
    return [part.removesuffix("+") for part in name.split(".") if part not in ("init_args", "<<")]


def _joined(arguments: list[str]) -> list[str]:
    """Return the command line with each option as one word: `--key value` becomes `--key=value`."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and not argument.startswith("-"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def problem(message: str, settings: Settings, options: list[str]) -> str:
    """Return one sentence for an error of jsonargparse, between `OPEN` and `CLOSE`.

    Args:
        message: the message of jsonargparse.
        settings: all settings of the user.
        options: all options of the parser, as dotted names.
    """
    if found := re.search(rf"{OPEN}(.*?){CLOSE}", message):  # a nested parser has written the sentence already
        return found[0]
    if message.startswith(REQUIRED) and not _required(message) <= set(ROLES):
        return message  # from a nested parser; the outer parser adds the key and calls this function again
    return OPEN + one_line(_problem(message, settings, options)) + CLOSE


def missing_package(message: str) -> str | None:
    """Return one sentence for a class whose package is not installed; None for another error.

    Args:
        message: the error of jsonargparse when it instantiates a class.
    """
    name = re.search(r"given class_path '([^']+)'", message)
    packages = re.findall(r"Requirement '(\w[\w-]*)[^']*' not met", message)
    if not name or not packages:
        return None
    return (
        f"{name[1]} needs the package {packages[-1]}, which is not installed: run .venv/bin/pip install --require-hashes --no-deps "
        f"-r requirements/{packages[-1]}.txt if litlab has this extra, otherwise .venv/bin/pip install {packages[-1]}."
    )


def _problem(message: str, settings: Settings, options: list[str]) -> str:
    # a word on the command line that is not an option
    if found := re.search(r"unrecognized arguments: (.*)", message):
        argument = found[1].split(" ")[0]
        if not argument.startswith("-"):
            return (
                f"{argument or repr(argument)}: this is not an option; options begin with --, and -c precedes a file."
            )
        return f"{argument}: there is no such option{did_you_mean(argument.lstrip('-').split('=')[0], options)}."
    # an option without a value
    if found := re.search(r"argument (\S+): expected one argument", message):
        locations = [setting.location for setting in settings.all]
        without = [location for location in locations if location.startswith(found[1]) and "=" not in location]
        argument = (without or [found[1]])[-1]
        return f"{argument}: the value is missing; write {argument}=..."
    # an unknown key
    if found := re.search(r"Option '([^']+)' is not accepted|accept option '([^']+)'", message):
        return _unknown_key(found[1] or found[2], settings, options)
    # a required setting that is missing
    key = re.search(r'Parser key "([^"]+)"', message)
    if REQUIRED in message:
        names = sorted(_required(message))
        if not key:
            return f"no {' and no '.join(names)} is set: name an experiment with -c configs/experiment/<name>.yaml."
        return f"{settings.find(key[1]).location}: {' and '.join(names)} must be set too: --{key[1]}.{names[0]}=..."
    # a key that is not a string
    if found := re.search(r"Key must be a string, got: (\w+)", message):
        return f"{settings.find(found[1]).location}: the name of a setting must be a string, not {found[1]}."
    # an error in the user's own module: it is raised here, with its traceback
    for part in ("model", "data"):
        import_class(settings.class_of(part) or "")
    # a class that cannot be imported
    if found := re.search(r"Problem with given class_path '([^']+)':\s*(.*)", message):
        setting = settings.find(found[1], value=found[1])
        return f"{setting.location}: {found[1]} cannot be used ({found[2].strip()}){_closest_class(found[1])}."
    # a value in the place of a section
    if key and (found := re.search("Unable to load config [\"'](.*)[\"']", message)):
        return f"{settings.find(key[1]).location}: {found[1]} is not accepted; set single values, as in --{key[1]}.name=value."
    # an invalid value
    if key:
        values = re.findall(r"(?:Got|Given) value: (.*)", message)
        value = values[-1] if values else "the value"
        value = "null" if value == "None" else value
        if nested := re.match(r"NestedArg\(key='(.*)', val='(.*)'\)", value):
            value = nested[2]
        setting = settings.find(f"{key[1]}.{nested[1]}" if nested else key[1], value=value)
        # outside of a range of numbers
        if limit := re.search(r"Input should be (.*?)(?:,[^\[]*)? \[type=", message):
            return f"{setting.location}: {value} is not accepted, expected {limit[1].replace('greater', 'a number greater').replace('less', 'a number less')}."
        # of another type; the accepted words are candidates for the closest spelling
        kinds = re.findall(r"(?:Expected a|Not a valid subclass of) (.*?)(?:\. Got.*)?$", message, re.M)
        accepted = list(dict.fromkeys(_plain(kind) for kind in kinds if not kind.startswith("path but")))
        if key[1] in ROLES:
            named = "'class_path': '" in value
            value, accepted = (settings.class_of(key[1]) or value) if named else value or "nothing", [ROLES[key[1]]]
        wanted = f"expected {' or '.join(accepted)}" if accepted else " ".join(message.split())
        words = [
            word for kind in accepted if kind.startswith("one of ") for word in kind.removeprefix("one of ").split(", ")
        ]
        if base := re.search(r"Subtypes: .*?(\w+(?:\.\w+)+)", message):
            words += _subclasses(import_class(base[1]))
        return f"{setting.location}: {value} is not accepted, {wanted}{did_you_mean(value, words)}."
    # any other message: as it is, on one line
    return " ".join(message.split()).removesuffix(".") + "."


def _unknown_key(key: str, settings: Settings, options: list[str]) -> str:
    last = key.split(".")[-1]
    setting = settings.find(key)
    part = "".join(setting.path[:1])
    if part in ROLES and len(setting.path) > 1 and not settings.class_of(part):
        return f"{setting.location}: the class of this setting is missing; name the class with {part}.class_path."
    class_path = setting.owner or settings.class_of(part) or ""
    owner = import_class(class_path)
    if owner:
        names = list(parameters(owner))
        return f"{setting.location}: {class_path.split('.')[-1]} has no option {last!r}{did_you_mean(last, names)}; it has {', '.join(names) or 'none'}."
    return f"{setting.location}: there is no such setting{did_you_mean('.'.join(setting.path), options)}."


def _closest_class(class_path: str) -> str:
    module, _, name = class_path.rpartition(".")
    try:
        names = vars(importlib.import_module(module))
    except (ImportError, TypeError, ValueError):  # the last two: the name begins with a dot, or is empty
        return ""
    return did_you_mean(name, [known for known, thing in names.items() if inspect.isclass(thing)])


def _subclasses(owner: Any) -> list[str]:
    """Return the names of all imported subclasses of a class."""
    children = owner.__subclasses__() if inspect.isclass(owner) else []
    return [name for child in children for name in (child.__name__, *_subclasses(child))]


def _required(message: str) -> set[str]:
    return set(message.split(REQUIRED)[1].splitlines()[0].split(", "))


def _plain(kind: str) -> str:
    """Return a readable name of a type: "<class 'int'>" becomes int, "typing.Literal['a', 'b']" becomes one of a, b."""
    if literal := re.match(r"typing\.Literal\[(.*)\]", kind):
        return "one of " + literal[1].replace("'", "")
    if kind.startswith("dot import path string"):
        return "the name of a class"
    name = re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", kind).strip()
    return PLAIN_NAMES.get(name, name)
