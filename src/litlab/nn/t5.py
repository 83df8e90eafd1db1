"""A T5 (Raffel et al., 2020): a new one, with random weights and T5 1.1's layers, or more layers for one that has learned."""

from copy import deepcopy

from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from litlab.errors import BadInput
from litlab.nn import fast_transformers

EMBEDDING_SCALE = 0.05  # of the embeddings: with AdamW it learns far faster than with T5's own 1.0


def check_heads(d_model: int, num_heads: int) -> None:
    """Refuse a width that the heads cannot share.

    Raises:
        BadInput: if they cannot.
    """
    if d_model % num_heads:
        raise BadInput(f"model.d_model is {d_model}, which {num_heads} heads (model.num_heads) cannot share.")


def new_t5(
    d_model: int, d_ff: int, num_layers: int, num_heads: int, dropout: float, vocab_size: int
) -> T5ForConditionalGeneration:
    """A T5 with gated feed-forward layers, in litlab's faster parts.

    Args:
        d_model: width.
        d_ff: width of the feed-forward layers.
        num_layers: of the encoder, and of the decoder.
        num_heads: attention heads of a layer; they share the width.
        dropout: everywhere.
        vocab_size: tokens that it knows.
    """
    config = T5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=d_model // num_heads,
        d_ff=d_ff,
        num_layers=num_layers,
        num_heads=num_heads,
        dropout_rate=dropout,
        # SwiGLU (Shazeer, 2020); the GELU of T5 1.1 takes nearly twice as long on a CPU
        feed_forward_proj="gated-silu",
    )
    config.decoder_start_token_id = config.pad_token_id  # as in the paper
    config.scale_decoder_outputs = False  # the scale belongs to embeddings of unit variance
    network = T5ForConditionalGeneration(config)
    # T5 draws them from a unit normal distribution, for Adafactor, whose steps are relative to a weight's size
    network.shared.weight.data.mul_(EMBEDDING_SCALE)
    fast_transformers.speed_up(network)
    return network


def grow(network: T5ForConditionalGeneration, encoder: int, decoder: int) -> T5ForConditionalGeneration:
    """A deeper T5 that computes what `network` computes, to be trained further (after LLaMA Pro, Wu et al., 2024).

    New layers are copies of those before them, spread evenly; what they would add is zero until they learn.

    Args:
        network: any T5; it is left as it is.
        encoder: new layers of the encoder.
        decoder: new layers of the decoder.

    Raises:
        BadInput: if the decoder would have more layers than the encoder, with which transformers cannot generate.
    """
    config = deepcopy(network.config)
    deep, deep_decoder = len(network.encoder.block) + encoder, len(network.decoder.block) + decoder
    config.num_layers, config.num_decoder_layers = deep, deep_decoder
    if deep_decoder > deep:
        raise BadInput(
            f"model.grow_decoder={decoder}: the decoder would have {deep_decoder} layers, more than the encoder's {deep}: let that "
            "grow as well, with model.grow_encoder."
        )
    deeper = T5ForConditionalGeneration(config)
    deeper.generation_config = deepcopy(network.generation_config)
    if network.lm_head.weight is not network.shared.weight:  # T5 1.1's, which transformers ties in any new T5
        deeper.lm_head.weight = nn.Parameter(deeper.lm_head.weight.detach().clone())
    deeper.load_state_dict(network.state_dict(), strict=False)  # all but the layers, which come now
    for stack, small in ((deeper.encoder, network.encoder), (deeper.decoder, network.decoder)):
        old, new, last = len(small.block), len(stack.block), None
        for place, block in enumerate(stack.block):
            source = place * old // new
            block.load_state_dict(
                small.block[source].state_dict(), strict=False
            )  # the first alone has relative positions
            for name, weight in block.named_parameters():
                if source == last and name.endswith(
                    (".o.weight", ".wo.weight")
                ):  # what is added to the sum of all layers
                    nn.init.zeros_(weight)
            last = source
    return deeper
