"""Classes that a configuration names: importing them, reading their constructors, and which setting follows which."""

import importlib
import inspect
from typing import Any


def import_class(class_path: str) -> Any:
    """The class of a dotted path, or None if there is none. Errors in the module itself are not caught: they are its author's."""
    module, _, name = class_path.rpartition(".")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            return None
        raise  # the module is there, but imports what is not
    return found if callable(found) else None


def parameters(function: Any) -> dict[str, Any]:
    """The named parameters of a class or function and their defaults; those that **kwargs of a class passes on to the next are its too.

    A function that is written in C may not tell them: then there are none.
    """
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    constructors = (
        [vars(kind)["__init__"] for kind in function.__mro__ if "__init__" in vars(kind)]
        if inspect.isclass(function)
        else []
    )
    found: dict[str, Any] = {}
    for part in constructors or [function]:
        try:
            signature = inspect.signature(part).parameters.values()
        except ValueError:
            break
        own = {
            one.name: one.default for one in signature if one.kind in kinds and (one.name != "self" or not constructors)
        }
        found = {**own, **found}
        if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in signature):
            break
    return found


def links(model: Any, data: Any) -> dict[str, str]:
    """Settings that follow another one and cannot be set themselves, each with what it follows.

    Args:
        model: the model's class, or None.
        data: the data module's class, or None.
    """
    of_model, of_data = (parameters(owner) if owner else {} for owner in (model, data))
    found = {}
    if "seed" in of_data:
        found["data.seed"] = "seed_everything"
    if "tokenizer" in of_data and "pretrained" in of_model:
        found["data.tokenizer"] = "model.pretrained"
    for name in ("num_classes", "vocab_size"):
        if name in of_model and hasattr(data, name):
            found[f"model.{name}"] = f"data.{name}"
    return found
