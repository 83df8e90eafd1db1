"""How the weights in src/project/pretrained/t5-documentation were trained."""
