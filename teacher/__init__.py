"""The service that writes self-edits and learns from their rewards."""

# First of all: what this room imports later logs while it is imported, and its known noise is silenced there.
import tutelage.models  # noqa: F401
