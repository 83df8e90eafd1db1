"""What the command line reads of classes: their options, and which setting follows which."""

from typing import Any

from small.data import SmallData
from small.model import SmallModel

from litlab.cli.classes import import_class, links, parameters


class Mixin:
    """Something beside the model that takes nothing."""


class Extended(Mixin, SmallModel):
    """A subclass with an option of its own."""

    def __init__(self, extra: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Fixed(SmallModel):
    """A subclass without the options of its parent."""

    def __init__(self, extra: int = 3) -> None:
        super().__init__(hidden=extra)


def test_keyword_arguments_that_are_passed_on_are_options_too() -> None:
    options = parameters(Extended)
    assert options["extra"] == 3 and options["hidden"] == parameters(SmallModel)["hidden"]
    assert list(parameters(Fixed)) == ["extra"]
    assert links(Extended, SmallData) == links(SmallModel, SmallData)
    assert {"model.num_classes", "data.seed"} <= links(Extended, SmallData).keys()


def test_a_class_is_imported_by_its_path_and_what_is_not_there_is_none() -> None:
    assert import_class("small.model.SmallModel") is SmallModel
    assert import_class("small.model.Nothing") is None and import_class("nowhere.Model") is None
