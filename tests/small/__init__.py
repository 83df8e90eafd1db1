"""Two experiments that train in a second; the engine's tests use them instead of a project's models and data."""
