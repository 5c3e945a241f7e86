"""Runs migrations on the connection that the store hands over; there is no offline mode."""

from __future__ import annotations

from alembic import context

from orchestrator.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite cannot alter most things in place.
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
