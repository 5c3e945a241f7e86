"""Property tests have no clock: an example that a busy machine holds up is no defect, and no test measures speed so."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("tutelage", parent=settings(), deadline=None)
settings.load_profile("tutelage")
