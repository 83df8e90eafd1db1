"""How src/project/pretrained/t5-documentation was made."""
