"""Programs that scripts of both projects start."""
