"""Add layers to a trained T5: python -m recipes.t5_documentation.grow FOLDER OUT --encoder N --decoder M.

The deeper network gives the same output until it is trained further (after LLaMA Pro, Wu et al., 2024). To train it,
set `--model.pretrained=OUT`.
"""

import argparse
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

from litlab.errors import BadInput, explain_full_disk
from litlab.sources import pretrained

# output weights of attention and feed-forward layers; their output is added to the residual stream
RESIDUAL_OUTPUTS = (".o.weight", ".wo.weight")


def grow(network: Any, encoder: int, decoder: int) -> T5ForConditionalGeneration:
    """A deeper T5 with the same output as `network`.

    The new layers are spread evenly. Each is a copy of the layer before it, with the output weights set to zero.

    Args:
        network: a T5; it is not changed.
        encoder: number of layers to add to the encoder.
        decoder: number of layers to add to the decoder.

    Raises:
        BadInput: if the network is not a T5, or if the decoder would have more layers than the encoder: transformers
            cannot generate with such a T5.
    """
    # check the input
    if type(network) is not T5ForConditionalGeneration:
        raise BadInput(f"cannot add layers to a {type(network).__name__}: only T5 is supported.")
    deep, deep_decoder = len(network.encoder.block) + encoder, len(network.decoder.block) + decoder
    if deep_decoder > deep:
        raise BadInput(
            f"--decoder={decoder}: the decoder would have {deep_decoder} layers, more than the encoder's {deep}: add layers to the "
            "encoder too, with --encoder."
        )
    # a new T5 that differs only in its number of layers
    config = deepcopy(network.config)
    config.num_layers, config.num_decoder_layers = deep, deep_decoder
    deeper = T5ForConditionalGeneration(config)
    deeper.generation_config = deepcopy(network.generation_config)
    if network.lm_head.weight is not network.shared.weight:  # as in T5 1.1; a new T5 always ties the two
        deeper.lm_head.weight = nn.Parameter(deeper.lm_head.weight.detach().clone())
    # copy the embeddings and the output layer, then the layers of both stacks
    deeper.load_state_dict(network.state_dict(), strict=False)
    for stack, small in ((deeper.encoder, network.encoder), (deeper.decoder, network.decoder)):
        _fill(stack.block, small.block)
    return deeper


def _fill(blocks: Any, small: Any) -> None:
    """Copy the layers of a stack into a deeper stack; every copy of a layer after the first outputs zero."""
    last = None
    for position, block in enumerate(blocks):
        source = position * len(small) // len(blocks)
        # not strict, because only the first layer of a stack has weights for relative positions
        block.load_state_dict(small[source].state_dict(), strict=False)
        for name, weight in block.named_parameters():
            if source == last and name.endswith(RESIDUAL_OUTPUTS):
                nn.init.zeros_(weight)
        last = source


def save(network: Any, tokenizer: Any, out: Path) -> None:
    """Save network and tokenizer to a new folder for `--model.pretrained`; a killed process leaves no partial folder.

    Raises:
        BadInput: if the folder exists or cannot be written.
    """
    if out.exists():
        raise BadInput(f"{out} already exists: choose a new folder, or delete this one.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with (
            explain_full_disk(out.parent, f"writing {out.name}", "OUT"),
            tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as room,
        ):
            folder = Path(room) / out.name
            network.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            folder.rename(out)
    except OSError as error:
        raise BadInput(f"cannot write {out} ({error.strerror}).") from error


def main() -> int:
    """Run the command; the exit status is 2 if the input cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m recipes.t5_documentation.grow", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="a trained T5: a folder of save_pretrained, or a Hub id")
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder for the deeper T5 and its tokenizer")
    parser.add_argument("--encoder", metavar="N", type=_layers, default=0, help="encoder layers to add")
    parser.add_argument("--decoder", metavar="M", type=_layers, default=0, help="decoder layers to add")
    given = parser.parse_args()
    try:
        network = pretrained.load_model(AutoModelForSeq2SeqLM, given.folder)
        tokenizer = pretrained.load_tokenizer(given.folder)
        deeper = grow(network, given.encoder, given.decoder)
        with pretrained.quiet_transformers():
            save(deeper, tokenizer, given.out)
    except BadInput as error:
        print(f"litlab: {error}", file=sys.stderr)
        return 2
    encoder, decoder = len(deeper.encoder.block), len(deeper.decoder.block)
    print(f"{given.out}: {encoder} encoder and {decoder} decoder layers; train with --model.pretrained={given.out}")
    return 0


def _layers(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
