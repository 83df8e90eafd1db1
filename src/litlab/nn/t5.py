"""A T5 (Raffel et al., 2020) with random weights and the layers of T5 1.1."""

from transformers import T5Config, T5ForConditionalGeneration

from litlab.errors import BadInput
from litlab.nn.fast_transformers import speed_up

EMBEDDING_SCALE = 0.05  # standard deviation of the embeddings; with AdamW, T5's 1.0 learns far more slowly


def check_heads(d_model: int, num_heads: int) -> None:
    """Check that the width is divisible by the number of heads.

    Raises:
        BadInput: if it is not divisible.
    """
    if d_model % num_heads:
        raise BadInput(f"model.d_model is {d_model}: it must be divisible by model.num_heads, which is {num_heads}.")


def new_t5(
    d_model: int, d_ff: int, num_layers: int, num_heads: int, dropout: float, vocab_size: int
) -> T5ForConditionalGeneration:
    """Create a T5 with gated feed-forward layers and litlab's faster modules.

    Args:
        d_model: width of the model.
        d_ff: width of the feed-forward layers.
        num_layers: number of encoder layers and of decoder layers.
        num_heads: attention heads per layer; d_model must be divisible by it.
        dropout: dropout probability.
        vocab_size: size of the vocabulary.
    """
    config = T5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=d_model // num_heads,
        d_ff=d_ff,
        num_layers=num_layers,
        num_heads=num_heads,
        dropout_rate=dropout,
        # SwiGLU (Shazeer, 2020); T5 1.1's GELU takes nearly twice as long on a CPU
        feed_forward_proj="gated-silu",
    )
    config.decoder_start_token_id = config.pad_token_id  # as in the paper
    config.scale_decoder_outputs = False  # this scale assumes embeddings with unit variance
    network = T5ForConditionalGeneration(config)
    # T5 initializes embeddings with unit variance, for Adafactor, whose steps are proportional to the weights
    network.shared.weight.data.mul_(EMBEDDING_SCALE)
    speed_up(network)
    return network
