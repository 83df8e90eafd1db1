"""Parts that models share: optimizer, metrics, faster transformers, decoding."""
