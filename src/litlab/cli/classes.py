"""Import the classes that a configuration names, read their constructor arguments, and link dependent settings."""

import importlib
import inspect
from typing import Any


def import_class(class_path: str) -> Any:
    """Import the class of a dotted path; return None if there is none. Errors in its module are not caught."""
    module, _, name = class_path.rpartition(".")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            return None
        raise  # the module exists, but one of its imports does not
    return found if callable(found) else None


def parameters(function: Any) -> dict[str, Any]:
    """Return the named parameters of a class or function and their defaults.

    If a constructor takes **kwargs, those of the next base class are included. A function written in C may have none.
    """
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    # a class: its constructor, then those of its base classes
    constructors = (
        [vars(kind)["__init__"] for kind in function.__mro__ if "__init__" in vars(kind)]
        if inspect.isclass(function)
        else []
    )
    found: dict[str, Any] = {}
    for part in constructors or [function]:
        try:
            signature = inspect.signature(part).parameters.values()
        except ValueError:  # a function written in C
            break
        own = {
            parameter.name: parameter.default
            for parameter in signature
            if parameter.kind in kinds and (parameter.name != "self" or not constructors)
        }
        found = {**own, **found}
        # without **kwargs the next constructor gets no arguments from the user
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature):
            break
    return found


def links(model: Any, data: Any) -> dict[str, str]:
    """Map each setting that is derived, and so cannot be set by the user, to the setting that it is derived from.

    Args:
        model: class of the model, or None.
        data: class of the data module, or None.
    """
    model_options, data_options = (parameters(owner) if owner else {} for owner in (model, data))
    found = {}
    if "seed" in data_options:
        found["data.seed"] = "seed_everything"
    if "tokenizer" in data_options and "pretrained" in model_options:
        found["data.tokenizer"] = "model.pretrained"
    for name in ("num_classes", "vocab_size"):
        if name in model_options and hasattr(data, name):
            found[f"model.{name}"] = f"data.{name}"
    return found
