"""The service that studies self-edits and takes quizzes."""

# First of all: what this room imports later logs while it is imported, and its known noise is silenced there.
import tutelage.models  # noqa: F401
