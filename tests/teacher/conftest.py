"""A tiny random model, a teacher's settings and its policies, for the tests of this room that update one."""

from __future__ import annotations

import pytest

from teacher.config import TeacherSettings
from teacher.policies import PolicyStore
from tutelage.models.loading import LoadedModel, load_model
from tutelage.models.tiny import write_tiny_model


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TeacherSettings:
    folder = tmp_path_factory.mktemp("algorithms")
    model = str(write_tiny_model(folder / "model"))
    return TeacherSettings(model=model, device="cpu", threads=1, data_dir=folder / "data", quantisation="none")


@pytest.fixture(scope="module")
def loaded(settings: TeacherSettings) -> LoadedModel:
    return load_model(settings.model, quantisation="none", threads=1)


@pytest.fixture(scope="module")
def store(settings: TeacherSettings, loaded: LoadedModel) -> PolicyStore:
    return PolicyStore(settings.data_dir / "policies", loaded.revision)
