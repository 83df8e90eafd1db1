"""One sentence for a setting that cannot be used: where it stands, what is accepted, the closest spelling.

Nothing is validated here: jsonargparse has found the problem, this finds the place and the nearest right spelling.
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

OPEN, CLOSE = "\u27e6", "\u27e7"  # around a finished explanation; the command line takes them off
ROLES = {"model": "a LightningModule", "data": "a LightningDataModule"}
PLAIN_NAMES = {"NoneType": "null", "str": "text", "bool": "true or false"}
REQUIRED = "the following arguments are required: "  # jsonargparse's words


@dataclass
class Place:
    """Where a setting stands.

    Args:
        text: what to show: "--model.hiden=64", or the file, its line and the key.
        path: the key, split at its dots, without init_args, << and the + of lists.
        value: as it was written; None for a mapping or a list.
        owner: the class that the setting is an argument of, if it stands beside it.
    """

    text: str
    path: list[str]
    value: str | None = None
    owner: str | None = None


class Settings:
    """Every setting of the configuration files and the command line, to find where one was made.

    Args:
        arguments: the command line.
        files: the configuration files, in the order in which they are read.
    """

    def __init__(self, arguments: list[str], files: list[Path]) -> None:
        self.places = [place for file in files for place in _places(file, yaml.compose(file.read_text()), [], None)]
        for argument in _joined(arguments):
            if argument.startswith("--"):
                name, _, value = argument[2:].partition("=")
                self.places.append(Place(one_line(argument), _plain_path(name), value))

    def find(self, key: str, value: str | None = None) -> Place:
        """The last place that sets `key`, preferably to `value`; else the last that has this value.

        Args:
            key: a dotted name or the end of one.
            value: the value as it was written.
        """
        wanted = _plain_path(key)
        named = [place for place in self.places if place.path[-len(wanted) :] == wanted]
        same = [place for place in named or self.places if value is not None and place.value == value]
        return (same or named or [Place(key, wanted)])[-1]

    def set_at(self, key: str) -> Place | None:
        """The last place that sets exactly `key`, or None."""
        return next((place for place in reversed(self.places) if place.path == _plain_path(key)), None)

    def class_of(self, part: str) -> str | None:
        """The class that was chosen for the model or the data."""
        chosen = [place.value for place in self.places if place.path in ([part], [part, "class_path"]) and place.value]
        return chosen[-1] if chosen else None


def _places(file: Path, node: Any, path: list[str], owner: str | None) -> Iterator[Place]:
    for child in node.value if isinstance(node, yaml.SequenceNode) else []:
        yield from _places(file, child, path, None)
    if isinstance(node, yaml.MappingNode):
        chosen = next((child.value for name, child in node.value if name.value == "class_path"), None)
        for name, child in node.value:
            here = [*path, str(name.value)]
            value = child.value if isinstance(child, yaml.ScalarNode) else None
            text = f"{file}, line {name.start_mark.line + 1}, {'.'.join(here)}"
            yield Place(one_line(text), _plain_path(".".join(here)), value, owner)
            yield from _places(file, child, here, chosen if name.value == "init_args" else None)


def _plain_path(name: str) -> list[str]:
    return [part.removesuffix("+") for part in name.split(".") if part not in ("init_args", "<<")]


def _joined(arguments: list[str]) -> list[str]:
    """The command line with every option as one word: `--key value` as `--key=value`."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and not argument.startswith("-"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def problem(message: str, settings: Settings, options: list[str]) -> str:
    """One sentence for an error of the parser: the place, what is wrong, what is accepted, the closest spelling.

    Args:
        message: what jsonargparse says.
        settings: where to look for the place.
        options: every option that the parser itself knows, as dotted names.
    """
    if found := re.search(rf"{OPEN}(.*?){CLOSE}", message):  # a parser within the parser has explained it already
        return found[0]
    if message.startswith(REQUIRED) and not _required(message) <= set(ROLES):
        return message  # this is the parser within, and the one around it knows the place
    return OPEN + one_line(_problem(message, settings, options)) + CLOSE


def _problem(message: str, settings: Settings, options: list[str]) -> str:
    if found := re.search(r"unrecognized arguments: (.*)", message):
        argument = found[1].split(" ")[0]
        if not argument.startswith("-"):
            return f"{argument or repr(argument)}: this is no option; options begin with --, experiments with -c."
        return f"{argument}: there is no such option{did_you_mean(argument.lstrip('-').split('=')[0], options)}."
    if found := re.search(r"argument (\S+): expected one argument", message):
        without = [place.text for place in settings.places if place.text.startswith(found[1]) and "=" not in place.text]
        argument = (without or [found[1]])[-1]
        return f"{argument}: the value is missing, {argument}=... is right."
    if found := re.search(r"Option '([^']+)' is not accepted|accept option '([^']+)'", message):
        return _unknown_key(found[1] or found[2], settings, options)
    key = re.search(r'Parser key "([^"]+)"', message)
    if REQUIRED in message:
        names = sorted(_required(message))
        if not key:
            return f"nothing says which {' and '.join(names)} to use: name an experiment with -c configs/experiment/<name>.yaml."
        return f"{settings.find(key[1]).text}: {' and '.join(names)} must be set too, there is no default: --{key[1]}.{names[0]}=..."
    if found := re.search(r"Key must be a string, got: (\w+)", message):
        return f"{settings.find(found[1]).text}: the name of a setting must be text, {found[1]} is not."
    for part in ("model", "data"):
        import_class(settings.class_of(part) or "")  # an error in a researcher's own file is shown as it is
    if found := re.search(r"Problem with given class_path '([^']+)':\s*(.*)", message):
        place = settings.find(found[1], value=found[1])
        return f"{place.text}: {found[1]} cannot be used ({found[2].strip()}){_closest_class(found[1])}."
    if key and (found := re.search("Unable to load config [\"'](.*)[\"']", message)):
        return f"{settings.find(key[1]).text}: {found[1]} is not accepted, single settings are, as in --{key[1]}.name=value."
    if key:
        values = re.findall(r"(?:Got|Given) value: (.*)", message)
        value = values[-1] if values else "the value"
        value = "null" if value == "None" else value
        if nested := re.match(r"NestedArg\(key='(.*)', val='(.*)'\)", value):
            value = nested[2]
        place = settings.find(f"{key[1]}.{nested[1]}" if nested else key[1], value=value)
        if limit := re.search(r"Input should be (.*?)(?:,[^\[]*)? \[type=", message):
            return f"{place.text}: {value} is not accepted, expected {limit[1].replace('greater', 'a number greater').replace('less', 'a number less')}."
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
        return f"{place.text}: {value} is not accepted, {wanted}{did_you_mean(value, words)}."
    return " ".join(message.split()).removesuffix(".") + "."


def _unknown_key(key: str, settings: Settings, options: list[str]) -> str:
    last = key.split(".")[-1]
    place = settings.find(key)
    part = "".join(place.path[:1])
    if part in ROLES and len(place.path) > 1 and not settings.class_of(part):
        return f"{place.text}: nothing says whose setting this is; name the class with {part}.class_path."
    class_path = place.owner or settings.class_of(part) or ""
    owner = import_class(class_path)
    if owner:
        names = list(parameters(owner))
        return f"{place.text}: {class_path.split('.')[-1]} has no option {last!r}{did_you_mean(last, names)}; it has {', '.join(names) or 'none'}."
    return f"{place.text}: there is no such setting{did_you_mean('.'.join(place.path), options)}."


def _closest_class(class_path: str) -> str:
    module, _, name = class_path.rpartition(".")
    try:
        names = vars(importlib.import_module(module))
    except (ImportError, TypeError, ValueError):  # the last two: of a name that begins with a dot, or is empty
        return ""
    return did_you_mean(name, [known for known, thing in names.items() if inspect.isclass(thing)])


def _subclasses(owner: Any) -> list[str]:
    """The names of all classes that are made from one, and that have been imported."""
    children = owner.__subclasses__() if inspect.isclass(owner) else []
    return [name for child in children for name in (child.__name__, *_subclasses(child))]


def _required(message: str) -> set[str]:
    return set(message.split(REQUIRED)[1].splitlines()[0].split(", "))


def _plain(kind: str) -> str:
    """A type as a person would say it: "<class 'int'>" is int, "typing.Literal['a', 'b']" is one of a, b."""
    if literal := re.match(r"typing\.Literal\[(.*)\]", kind):
        return "one of " + literal[1].replace("'", "")
    if kind.startswith("dot import path string"):
        return "the name of a class"
    name = re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", kind).strip()
    return PLAIN_NAMES.get(name, name)
