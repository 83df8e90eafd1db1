"""What models share: optimizer, metrics, faster transformers, decoding."""
