"""The example plugin, installed into a folder: its algorithm trains, its grader grades, its format is offered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.run_config import RunConfig
from teacher.algorithms import algorithm_names, settings_violations
from teacher.own_formats import all_formats
from tutelage.domain.errors import InvalidInput
from tutelage.domain.policy import UpdateSettings
from tutelage.extensions import ALGORITHMS, Extended, extension_names
from tutelage.grading import STRING_GRADERS
from tutelage.settings import parse_settings

PLUGIN = Path(__file__).resolve().parents[2] / "examples" / "plugin"

PROGRAM = """
import json, sys
from pathlib import Path
from student.quiz import GRADERS
from teacher.algorithms import algorithm_names, settings_violations
from teacher.config import TeacherSettings
from teacher.own_formats import all_formats
from teacher.policies import PolicyStore
from teacher.update_request import lessons_of
from teacher.updates import Updates
from tutelage.domain.errors import TutelageError
from tutelage.domain.policy import CandidateGroup, ScoredCandidate, UpdateRequest, UpdateSettings
from tutelage.domain.reward import RewardSettings, value_of
from tutelage.grading import grade
from tutelage.models.loading import load_model
from tutelage.models.tiny import write_tiny_model
from tutelage.v1 import policy_pb2

folder = Path(sys.argv[1])
model = str(write_tiny_model(folder / "model"))
settings = TeacherSettings(model=model, device="cpu", threads=1, data_dir=folder / "data", quantisation="none")
store = PolicyStore(settings.data_dir / "policies", load_model(settings.model, threads=1).revision)

def scored(name, reward):
    rollout = policy_pb2.Rollout(
        policy_version=store.initial.version, prompt_ids=[5, 6], completion_ids=[7, 8], tokenizer_hash="h", ended=True
    )
    return ScoredCandidate(name, rollout.SerializeToString(), reward)

group = CandidateGroup("g", tuple(scored(name, reward) for name, reward in zip("abcd", (0.1, 0.9, -0.5, 0.4))))
own = UpdateSettings(rank=4, alpha=8, learning_rate=1e-3, epochs=1, batch_size=2, options={"count": 2})
*_, result = Updates(settings, store, "h").update(
    UpdateRequest(store.initial.version, "best_few", own, (group,), 1, "run", 1)
)
ruled = UpdateSettings(rank=4, alpha=8, learning_rate=1e-3, epochs=1, options={"rule": "above_most"})
rule = lessons_of(
    UpdateRequest(store.initial.version, "rest_em", ruled, (group,), 1, "run", 1), "h", {store.initial.version: 0}
)
wrong = settings_violations("best_few", UpdateSettings(options={"count": 0}), 256)
try:
    settings_violations("broken", UpdateSettings(), 256)
except TutelageError as error:
    broken = str(error)
print(json.dumps({
    "algorithms": algorithm_names(), "graders": GRADERS, "formats": [item.name for item in all_formats()],
    "kept": result.kept_candidates, "algorithm": result.policy.algorithm, "wrong": [item.field for item in wrong],
    "scores": [grade("begins_with", text, ["Orr"]) for text in ("Orr, I think", "I think Orr")], "broken": broken,
    "rule": rule.kept, "reward": value_of({"gain_contains": 0.5, "forgotten": 0.1}, RewardSettings(formula="careful")),
}))
"""


def test_a_plugin_installed_into_a_folder(tmp_path: Path) -> None:
    site = tmp_path / "site"
    source = tmp_path / "plugin"
    source.mkdir()
    for path in PLUGIN.iterdir():
        if path.is_file():
            (source / path.name).write_bytes(path.read_bytes())
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(site), str(source)], check=True, capture_output=True)
    # A second package, which names what it does not have.
    broken = site / "broken-1.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (broken / "entry_points.txt").write_text("[tutelage.algorithms]\nbroken = not_there:Nothing\n")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["algorithms"][-2:] == ["best_few", "broken"]
    assert "begins_with" in found["graders"]
    assert "glossary" in found["formats"]
    assert (found["algorithm"], found["kept"]) == ("best_few", 2)
    assert found["wrong"] == ["settings.options.count"]
    assert found["scores"] == [1.0, 0.0]
    assert found["rule"] == 2
    assert found["reward"] == pytest.approx(0.3)
    assert "broken" in found["broken"]
    assert "not_there" in found["broken"]


def test_without_plugins_there_is_what_this_project_brings() -> None:
    assert extension_names(ALGORITHMS) == ()
    assert algorithm_names() == ("rest_em", "grpo", "rloo", "dpo")
    assert "begins_with" not in STRING_GRADERS
    assert len({item.name for item in all_formats()}) == len(all_formats())


def test_own_parts_win_over_a_package_of_the_same_name() -> None:
    known = Extended({"a": 1}, "tutelage.nothing")
    assert dict(known) == {"a": 1}
    assert "b" not in known
    with pytest.raises(KeyError):
        known["b"]


def test_a_run_names_what_is_not_there() -> None:
    with pytest.raises(InvalidInput, match=r"reward\.formula: 'careful'.*there is none"):
        parse_settings({"students": ["a"], "reward": {"formula": "careful"}}, RunConfig)
    wrong = settings_violations("rest_em", UpdateSettings(options={"rule": "above_most"}), 256)
    assert [item.field for item in wrong] == ["settings.options.rule"]
    assert "one of best, above, top, weighted, lead" in wrong[0].allowed
