"""The pairs and gap sentences of this recipe, as data of a summarizer."""

from project.data.summarization import Summarization
from recipes.t5_documentation import documentation


class DocumentationSummarization(Summarization):
    """Summarization whose file is made first if it is one of this recipe's in recipes/t5_documentation/data/ and is missing."""

    def prepare_data(self) -> None:
        """Make the file, then tokenize and open it.

        Raises:
            BadInput: if the file cannot be made, or the data or the tokenizer cannot be used.
        """
        if self.fingerprint is None:
            documentation.prepare(self.source)
        super().prepare_data()
