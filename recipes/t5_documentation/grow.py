"""Give a trained T5 more layers: python -m recipes.t5_documentation.grow FOLDER OUT --encoder N --decoder M.

The deeper network computes what the given one computes, and is to be trained further (after LLaMA Pro, Wu et al., 2024):
`--model.pretrained=OUT` reads it.
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

RESIDUAL_OUTPUTS = (
    ".o.weight",
    ".wo.weight",
)  # of attention and feed-forward layers: what is added to the residual stream


def grow(network: Any, encoder: int, decoder: int) -> T5ForConditionalGeneration:
    """A deeper T5 that computes what `network` computes.

    New layers are copies of those before them, spread evenly, whose outputs are zero until they are trained.

    Args:
        network: any T5; it is not changed.
        encoder: layers to add to the encoder.
        decoder: layers to add to the decoder.

    Raises:
        BadInput: if the network is not a T5, or if the decoder would have more layers than the encoder, with which
            transformers cannot generate.
    """
    if type(network) is not T5ForConditionalGeneration:
        raise BadInput(f"a {type(network).__name__} cannot grow, only a T5 can.")
    deep, deep_decoder = len(network.encoder.block) + encoder, len(network.decoder.block) + decoder
    if deep_decoder > deep:
        raise BadInput(
            f"--decoder={decoder}: the decoder would have {deep_decoder} layers, more than the encoder's {deep}: add layers to the "
            "encoder too, with --encoder."
        )
    config = deepcopy(network.config)
    config.num_layers, config.num_decoder_layers = deep, deep_decoder
    deeper = T5ForConditionalGeneration(config)
    deeper.generation_config = deepcopy(network.generation_config)
    if network.lm_head.weight is not network.shared.weight:  # in T5 1.1; transformers ties them in any new T5
        deeper.lm_head.weight = nn.Parameter(deeper.lm_head.weight.detach().clone())
    deeper.load_state_dict(network.state_dict(), strict=False)  # everything but the layers, which follow
    for stack, small in ((deeper.encoder, network.encoder), (deeper.decoder, network.decoder)):
        _fill(stack.block, small.block)
    return deeper


def _fill(blocks: Any, small: Any) -> None:
    """Copy the layers of a stack into a deeper one; the second and further copies of a layer add zero."""
    last = None
    for position, block in enumerate(blocks):
        source = position * len(small) // len(blocks)
        # not strict: only a stack's first layer has the relative positions
        block.load_state_dict(small[source].state_dict(), strict=False)
        for name, weight in block.named_parameters():
            if source == last and name.endswith(RESIDUAL_OUTPUTS):
                nn.init.zeros_(weight)
        last = source


def save(network: Any, tokenizer: Any, out: Path) -> None:
    """Write a new folder that `--model.pretrained` reads; if the process is killed, it is not there.

    Raises:
        BadInput: if it exists, or cannot be written.
    """
    if out.exists():
        raise BadInput(f"{out} exists: name a new folder, or remove it.")
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
    """Grow the model in a folder; the exit code is 2 if it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m recipes.t5_documentation.grow", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="a trained T5: a folder of save_pretrained, or a Hub id")
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder for the deeper T5 and its tokenizer")
    parser.add_argument("--encoder", metavar="N", type=_layers, default=0, help="layers to add to the encoder")
    parser.add_argument("--decoder", metavar="M", type=_layers, default=0, help="layers to add to the decoder")
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
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of layers, 0 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
