"""Alembic migrations of the orchestrator's database; applied at start."""
