"""Yours: models and data. Edit, rename, delete."""
