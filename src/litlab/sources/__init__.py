"""How bytes get here: package index, Hugging Face Hub, pretrained models; pinned, hashed, cached."""
