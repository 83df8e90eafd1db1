"""The help of `litlab fit`: one line per option, from the docstring of the class that takes it."""

import inspect
from typing import Any

import docstring_parser
import yaml

from litlab.cli.classes import import_class, links, parameters
from litlab.cli.settings import config_files
from litlab.errors import BadInput


def fit_help(arguments: list[str], summary: str) -> str:
    """Return the help text. It includes the options of the model and its data if -c names an experiment.

    Args:
        arguments: the command line after the command.
        summary: what the command does.

    Raises:
        BadInput: if a class of the experiment cannot be imported.
    """
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from litlab.training.checkpoints import LastCheckpoint
    from litlab.training.guard import Guard

    shared = {"checkpoint": ModelCheckpoint, "last_checkpoint": LastCheckpoint, "guard": Guard, "trainer": Trainer}
    # which class takes the options of each section, and the values in the files
    owners = {}
    values: dict[str, dict[str, Any]] = {part: {} for part in ("model", "data", *shared)}
    for file in config_files(arguments):
        content = yaml.safe_load(file.read_text())
        for part, set_values in values.items():
            if isinstance(content.get(part), dict):
                set_values.update(content[part].get("init_args") or content[part])
        for part in ("model", "data"):
            if isinstance(content.get(part), dict) and "class_path" in content[part]:
                owners[part] = import_class(content[part]["class_path"])
                if owners[part] is None:
                    raise BadInput(
                        f"{file}: {part}.class_path {content[part]['class_path']!r} is not a class that can be imported."
                    )
    # the general options
    sections = [
        "litlab fit -c configs/experiment/<name>.yaml [-c overlay.yaml ...] [--key=value ...]",
        summary,
        "Settings come from configs/base.yaml, then the -c files, then the options; the last one wins. The values below are those\n"
        "in the -c files, otherwise the defaults of the classes.",
        "general\n"
        "  --seed_everything=0    random seed; it also determines the order of the data\n"
        "  --experiment=NAME      folder in runs/; default: the name of the first -c file\n"
        "  --resume=auto|RUN      auto: continue the newest unfinished run with these settings, or start a new run;\n"
        "                         RUN: continue that run\n"
        "  --fork=RUN             continue from the state of RUN in a new run, whose settings may differ\n"
        "  --init=RUN|FILE        start a new run with the weights of RUN or of a checkpoint file",
    ]
    # the options of each class
    for part, owner in {**owners, **shared}.items():
        linked = {name.removeprefix(f"{part}.") for name in links(owners.get("model"), owners.get("data"))}
        lines = "\n".join(f"  --{part}.{line}" for line in option_lines(owner, linked, values[part]))
        sections.append(f"{part}: {owner.__name__}\n{lines}")
    if not owners:
        sections.append(
            "With -c configs/experiment/<name>.yaml this help also lists the options of its model and data."
        )
    return "\n\n".join(sections)


def option_lines(owner: type, excluded: set[str], values: dict[str, Any]) -> list[str]:
    """Return one line per constructor argument: name, value or default, and the first sentence of its docstring.

    Args:
        owner: the class.
        excluded: names of arguments to leave out.
        values: the values in the files, by name; for a list or a mapping the default is shown.
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
        if name in excluded:
            continue
        text = " ".join(described.get(name, "").replace("``", "").split()).split(". ")[0].removesuffix(".")
        if not isinstance(values.get(name), list | dict):
            default = values.get(name, default)
        value = "" if default is inspect.Parameter.empty else f" = {'null' if default is None else default}"
        lines.append(f"{name + value:<36} {text if len(text) <= 110 else text[:107] + '...'}")
    return lines
