"""models.toml -> ModelSpec."""
