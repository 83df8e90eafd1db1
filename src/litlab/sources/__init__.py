"""Downloads from a package index and the Hugging Face Hub, and pretrained models: pinned, verified and cached."""
