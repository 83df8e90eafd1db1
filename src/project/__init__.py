"""Your models and data: edit, rename or delete them."""
