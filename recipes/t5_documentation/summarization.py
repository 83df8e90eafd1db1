"""The pairs and gap sentences of this recipe as data for a summarizer."""

from project.data.summarization import Summarization
from recipes.t5_documentation import documentation


class DocumentationSummarization(Summarization):
    """Summarization that first creates its source if that is a missing file of recipes/t5_documentation/data/."""

    def prepare_data(self) -> None:
        """Create the file if needed, then tokenize and open it.

        Raises:
            BadInput: if the file cannot be created, or the data or the tokenizer cannot be used.
        """
        if self.fingerprint is None:
            documentation.prepare(self.source)
        super().prepare_data()
