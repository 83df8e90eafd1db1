"""What the command line reads from classes: their options, and which setting is derived from which."""

from typing import Any

from small.data import SmallData
from small.model import SmallModel

from litlab.cli.classes import import_class, links, parameters


class Mixin:
    """A base class without options."""


class Extended(Mixin, SmallModel):
    """A subclass with an additional option."""

    def __init__(self, extra: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Fixed(SmallModel):
    """A subclass without the options of its parent."""

    def __init__(self, extra: int = 3) -> None:
        super().__init__(hidden=extra)


def test_keyword_arguments_of_the_parent_class_are_options_too() -> None:
    options = parameters(Extended)
    assert options["extra"] == 3 and options["hidden"] == parameters(SmallModel)["hidden"]
    assert list(parameters(Fixed)) == ["extra"]
    assert links(Extended, SmallData) == links(SmallModel, SmallData)
    assert {"model.num_classes", "data.seed"} <= links(Extended, SmallData).keys()


def test_a_class_is_imported_by_its_path_and_a_missing_one_gives_none() -> None:
    assert import_class("small.model.SmallModel") is SmallModel
    assert import_class("small.model.Nothing") is None and import_class("nowhere.Model") is None
