"""The help of `litlab fit`: one line per option, with the docstring of the class that it belongs to."""

import inspect
from typing import Any

import docstring_parser
import yaml

from litlab.cli.classes import import_class, links, parameters
from litlab.cli.settings import config_files
from litlab.errors import BadInput


def fit_help(arguments: list[str], summary: str) -> str:
    """The options of `litlab fit`, one line each; those of a model and its data if an experiment is given with -c."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from litlab.training.checkpoints import LastCheckpoint
    from litlab.training.guard import Guard

    shared = {"checkpoint": ModelCheckpoint, "last_checkpoint": LastCheckpoint, "guard": Guard, "trainer": Trainer}
    owners = {}
    values: dict[str, dict[str, Any]] = {part: {} for part in ("model", "data", *shared)}
    for file in config_files(arguments):
        content = yaml.safe_load(file.read_text())
        for part, known in values.items():
            if isinstance(content.get(part), dict):
                known.update(content[part].get("init_args") or content[part])
        for part in ("model", "data"):
            if isinstance(content.get(part), dict) and "class_path" in content[part]:
                owners[part] = import_class(content[part]["class_path"])
                if owners[part] is None:
                    raise BadInput(
                        f"{file}: {part}.class_path {content[part]['class_path']!r} is not a class that can be imported."
                    )
    sections = [
        "litlab fit -c configs/experiment/<name>.yaml [-c overlay.yaml ...] [--key=value ...]",
        summary,
        "Settings come from configs/base.yaml, then the -c files, then the options; the last one wins. The values below are what the\n"
        "files set, and the defaults where they set nothing.",
        "general\n"
        "  --seed_everything=0    seed of everything random; also fixes the order of the data\n"
        "  --experiment=NAME      folder below runs/; default: the name of the first -c file\n"
        "  --resume=auto|RUN      continue the newest unfinished run with these settings, or begin one; or continue RUN\n"
        "  --fork=RUN             continue the state of RUN in a new run, with other settings if you like\n"
        "  --init=RUN|FILE        begin a new run with the weights of RUN or of a checkpoint file",
    ]
    for part, owner in {**owners, **shared}.items():
        linked = {name.removeprefix(f"{part}.") for name in links(owners.get("model"), owners.get("data"))}
        lines = "\n".join(f"  --{part}.{line}" for line in option_lines(owner, linked, values[part]))
        sections.append(f"{part}: {owner.__name__}\n{lines}")
    if not owners:
        sections.append(
            "With -c configs/experiment/<name>.yaml this help also lists the options of its model and data."
        )
    return "\n\n".join(sections)


def option_lines(owner: type, without: set[str], values: dict[str, Any]) -> list[str]:
    """One line per argument of a class's constructor: name, value or default, and what the docstring says.

    Args:
        owner: the class.
        without: arguments to leave out.
        values: what is set, by name; lists and mappings are not shown.
    """
    documents = [
        text
        for kind in reversed(owner.__mro__[:-1])
        for text in (kind.__doc__, vars(kind).get("__init__", kind).__doc__)
    ]
    entries = [entry for text in documents for entry in docstring_parser.parse(text or "").params]
    described = {entry.arg_name: entry.description or "" for entry in entries}
    lines = []
    for name, default in parameters(owner).items():
        if name in without:
            continue
        text = " ".join(described.get(name, "").replace("``", "").split()).split(". ")[0].removesuffix(".")
        if not isinstance(values.get(name), list | dict):
            default = values.get(name, default)
        shown = "" if default is inspect.Parameter.empty else f" = {'null' if default is None else default}"
        lines.append(f"{name + shown:<36} {text if len(text) <= 110 else text[:107] + '...'}")
    return lines
