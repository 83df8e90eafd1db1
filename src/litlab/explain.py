"""What the command line says to a person: a short help, and one sentence for a setting that cannot be used.

Nothing is validated here: jsonargparse has found the problem, this finds the place and the nearest right spelling.
"""

import difflib
import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docstring_parser
import yaml

OPEN, CLOSE = "\u27e6", "\u27e7"  # around a finished explanation; the command line takes them off
PLAIN_NAMES = {"NoneType": "null", "str": "text", "bool": "true or false"}


@dataclass
class Place:
    """Where a setting stands: "--model.hiden=64", or a file, its line and the key's path."""

    text: str
    path: list[str]
    class_path: str | None = None


class Settings:
    """The command line and the configuration files, to find where a setting was made.

    Args:
        arguments: the command line.
        files: the configuration files, in the order in which they are read.
    """

    def __init__(self, arguments: list[str], files: list[Path]) -> None:
        self.arguments = _joined(arguments)
        self.trees: list[tuple[Path, Any]] = [(file, yaml.compose(file.read_text())) for file in files]

    def find(self, key: str, value: str | None = None) -> Place:
        """The last place that sets `key`, preferably to `value`; the command line comes last.

        Args:
            key: a dotted name or the end of one.
            value: the value as it was written.
        """
        for argument in reversed(self.arguments):
            name, _, given = argument.lstrip("-").partition("=")
            path = name.removesuffix("+").split(".")
            if argument.startswith("--") and (_ends_with(path, key) or (value is not None and given == value)):
                return Place(argument, path, self.class_of(path))
        found = [place for file, tree in self.trees for place in self._walk(file, tree, [], key, value)]
        # a place with the offending value beats one that only has the key
        return max(reversed(found), key=lambda pair: pair[0], default=(0, Place(key, key.split("."))))[1]

    def class_of(self, path: list[str]) -> str | None:
        """The class that the setting at `path` belongs to, if it belongs to the model or the data."""
        if path[0] not in ("model", "data"):
            return None
        for argument in reversed(self.arguments):
            name, _, given = argument.lstrip("-").partition("=")
            if name in (path[0], f"{path[0]}.class_path"):
                return given
        for _, tree in reversed(self.trees):
            node = dict((key.value, child) for key, child in tree.value).get(path[0])
            if isinstance(node, yaml.MappingNode):
                for key, child in node.value:
                    if key.value == "class_path":
                        return child.value
            elif isinstance(node, yaml.ScalarNode):
                return node.value
        return None

    def _walk(self, file: Path, node: yaml.Node, path: list[str], key: str, value: str | None) -> Any:
        if isinstance(node, yaml.SequenceNode):
            for child in node.value:
                yield from self._walk(file, child, path, key, value)
        elif isinstance(node, yaml.MappingNode):
            siblings = {name.value: child for name, child in node.value}
            for name, child in node.value:
                here = [*path, name.value]
                same = isinstance(child, yaml.ScalarNode) and child.value == value
                if _ends_with(here, key) or (same and value is not None):
                    owner = siblings.get("class_path")
                    text = f"{file}, line {name.start_mark.line + 1}, {'.'.join(here)}"
                    yield (
                        (2 if same else 1),
                        Place(text, here, owner.value if owner and name.value != "class_path" else self.class_of(here)),
                    )
                inner = {**({"class_path": siblings["class_path"]} if "class_path" in siblings else {})}
                for rank, place in self._walk(file, child, here, key, value):
                    if inner and name.value == "init_args":
                        place.class_path = inner["class_path"].value
                    yield rank, place


def _ends_with(path: list[str], key: str) -> bool:
    plain = [name.removesuffix("+") for name in path if name != "init_args"]
    wanted = [name for name in key.split(".") if name != "init_args"]
    return plain[-len(wanted) :] == wanted


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
    return OPEN + _problem(message, settings, options) + CLOSE


def _problem(message: str, settings: Settings, options: list[str]) -> str:
    if found := re.search(r"unrecognized arguments: (.*)", message):
        argument = found[1].split()[0]
        return f"{argument}: there is no such option{_closest(argument.lstrip('-').split('=')[0], options)}."
    if found := re.search(r"Option '([^']+)' is not accepted|accept option '([^']+)'", message):
        return _unknown_key(found[1] or found[2], settings, options)
    if found := re.search(r"arguments are required: (.*)", message):
        return f"nothing says which {' and '.join(found[1].split(', '))} to use: name an experiment with -c configs/experiment/<name>.yaml."
    if found := re.search(r"Problem with given class_path '([^']+)':\s*(.*)", message):
        place = settings.find("class_path", value=found[1])
        return f"{place.text}: {found[1]} cannot be used ({found[2].strip()}){_closest_class(found[1])}."
    if found := re.search(r'Parser key "([^"]+)"', message):
        values = re.findall(r"(?:Got|Given) value: (.*)", message)
        value = values[-1] if values else "the value"
        place = settings.find(found[1], value=value)
        if limit := re.search(r"Input should be (.*?)(?:,[^\[]*)? \[type=", message):
            return f"{place.text}: {value} is not accepted, expected {limit[1].replace('greater', 'a number greater').replace('less', 'a number less')}."
        accepted = list(
            dict.fromkeys(
                _plain(kind)
                for kind in re.findall(r"(?:Expected a|Not a valid subclass of) (.*?)(?:\. Got.*)?$", message, re.M)
            )
        )
        wanted = f"expected {' or '.join(accepted)}" if accepted else " ".join(message.split())
        words = [
            word for kind in accepted if kind.startswith("one of ") for word in kind.removeprefix("one of ").split(", ")
        ]
        return f"{place.text}: {value} is not accepted, {wanted}{_closest(value, words)}."
    return " ".join(message.split()).removesuffix(".") + "."


def file_problem(path: Path) -> str | None:
    """One sentence if a configuration file is missing or is not a YAML mapping of settings; None if it is fine."""
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.yaml"))
        if path.name == ".yaml":
            return f"no experiment is named; known are {', '.join(known)}: make train EXP={known[0] if known else '<name>'}."
        if not known:
            return f"{path} does not exist."
        return f"no {path.parent.name} {path.stem!r} ({path} does not exist){_closest(path.stem, known)}; known are {', '.join(known)}."
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        return f"{path}{line}: this is not YAML ({getattr(error, 'problem', None) or 'it is not text'})."
    if not isinstance(content, dict):
        return f"{path} must hold settings as `key: value` lines, it holds {'nothing' if content is None else type(content).__name__}."
    for key in ("trainer", "checkpoint"):
        if not isinstance(content.get(key, {}), dict):
            return f"{path}: {key} must hold settings as indented `key: value` lines, it is {content[key]!r}."
    return None


def first_sentence(message: str) -> str:
    """What a library says of a problem, without line breaks and hints, ending with one full stop."""
    return " ".join(message.split()).split(" HINT:")[0].split(". ")[0].rstrip(".!") + "."


def option_lines(function: Any) -> list[str]:
    """One line per argument of a class or function: name, default, and what its docstring says."""
    described = {
        entry.arg_name: entry.description or ""
        for entry in docstring_parser.parse(inspect.getdoc(function) or "").params
    }
    if inspect.isclass(function):
        described |= {
            entry.arg_name: entry.description or ""
            for entry in docstring_parser.parse(function.__init__.__doc__ or "").params
        }
    lines = []
    for name, default in _parameters(function).items():
        text = " ".join(described.get(name, "").replace("``", "").split()).split(". ")[0].removesuffix(".")
        shown = "" if default is inspect.Parameter.empty else f" = {'null' if default is None else default}"
        lines.append(f"{name + shown:<36} {text if len(text) <= 110 else text[:107] + '...'}")
    return lines


def _parameters(function: Any) -> dict[str, Any]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in kinds
    }


def import_class(class_path: str) -> Any:
    """The class of a dotted path, or None if there is none."""
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None


def _unknown_key(key: str, settings: Settings, options: list[str]) -> str:
    last = key.split(".")[-1]
    place = settings.find(key)
    if place.class_path and (owner := import_class(place.class_path)):
        names = list(_parameters(owner))
        return f"{place.text}: {owner.__name__} has no option {last!r}{_closest(last, names)}; it has {', '.join(names) or 'none'}."
    return f"{place.text}: there is no such setting{_closest('.'.join(place.path), options)}."


def _closest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?"[:-1] if near else ""


def _closest_class(class_path: str) -> str:
    module, _, name = class_path.rpartition(".")
    try:
        return _closest(
            name, [known for known, thing in vars(importlib.import_module(module)).items() if inspect.isclass(thing)]
        )
    except (ImportError, ValueError):
        return ""


def _plain(kind: str) -> str:
    """A type as a person would say it: "<class 'int'>" is int, "typing.Literal['a', 'b']" is one of a, b."""
    if literal := re.match(r"typing\.Literal\[(.*)\]", kind):
        return "one of " + literal[1].replace("'", "")
    name = re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", kind).strip()
    return PLAIN_NAMES.get(name, name)
