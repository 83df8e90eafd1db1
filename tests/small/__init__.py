"""Two experiments that train in a second: what the tests of the engine use in place of a project's models and data."""
