"""The example plugin, installed into a folder: its algorithm trains, its grader grades, its format is offered.

A broken package beside it breaks what names its parts, and nothing else.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from orchestrator.run_config import RunConfig
from orchestrator.run_violations import formula_violations
from teacher.algorithm import SampleGroup
from teacher.algorithms import algorithm_names, settings_violations
from teacher.own_formats import all_formats
from teacher.rest_em import RestEM
from teacher.selection import Kept
from teacher.update_request import lessons_of
from tutelage import extensions
from tutelage.domain.errors import PreconditionFailed
from tutelage.domain.policy import CandidateGroup, Format, Parser, ScoredCandidate, UpdateRequest, UpdateSettings
from tutelage.extensions import ALGORITHMS, FORMATS, REWARDS, SELECTION_RULES, Extended, extension_names
from tutelage.grading import STRING_GRADERS
from tutelage.settings import parse_settings
from tutelage.v1 import policy_pb2

PLUGIN = Path(__file__).resolve().parents[2] / "examples" / "plugin"

PROGRAM = """
import json, sys
from dataclasses import replace
from pathlib import Path
from orchestrator.run_config import RunConfig
from orchestrator.run_violations import formula_violations
from student.quiz import GRADERS, Sitting, graded
from teacher.algorithms import algorithm_names, settings_violations
from teacher.config import TeacherSettings
from teacher.own_formats import all_formats
from teacher.policies import PolicyStore
from teacher.update_request import lessons_of
from teacher.updates import Updates
from tutelage.domain.errors import TutelageError
from tutelage.domain.policy import CandidateGroup, ScoredCandidate, UpdateRequest, UpdateSettings
from tutelage.domain.reward import RewardSettings, value_of
from tutelage.domain.task import Question
from tutelage.grading import grade
from tutelage.models.loading import load_model
from tutelage.models.tiny import write_tiny_model
from tutelage.settings import parse_settings
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


def fault_of(call):
    try:
        call()
    except TutelageError as error:
        return str(error)


refusal = UpdateRequest(
    store.initial.version, "refuses", UpdateSettings(rank=4, alpha=8, learning_rate=1e-3, epochs=1), (group,), 1, "r", 1
)
broken = {
    "algorithm": fault_of(lambda: settings_violations("broken", UpdateSettings(), 256)),
    "rule": str(settings_violations("rest_em", UpdateSettings(options={"rule": "broken"}), 256)[0]),
    "formula": str(formula_violations("broken")[0]),
    "grader": fault_of(lambda: graded(Sitting((Question("q", "Who?", "Orr"),), ("broken",)), ["Orr"], [None])),
}
print(json.dumps({
    "algorithms": algorithm_names(), "graders": GRADERS, "formats": [item.name for item in all_formats()],
    "kept": result.kept_candidates, "algorithm": result.policy.algorithm, "wrong": [item.field for item in wrong],
    "scores": [grade("begins_with", text, ["Orr"]) for text in ("Orr, I think", "I think Orr")], "broken": broken,
    "refused": fault_of(lambda: list(Updates(settings, store, "h").update(refusal))),
    "failed": fault_of(lambda: list(Updates(settings, store, "h").update(replace(refusal, algorithm="fails")))),
    "rule": rule.kept, "reward": value_of({"gain_contains": 0.5, "forgotten": 0.1}, RewardSettings(formula="careful")),
}))
"""


REFUSES = """
from teacher.rest_em import RestEM
from tutelage.domain.errors import InvalidInput


class Refuses(RestEM):
    summary = "sees only in its training that it cannot serve a model"

    def train(self, training):
        raise InvalidInput.of("settings.epochs", training.settings.epochs, "two, with a llama")


class Fails(RestEM):
    summary = "breaks in its training"

    def train(self, training):
        raise ZeroDivisionError("in the package")
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
    groups = ("algorithms", "selection_rules", "rewards", "formats", "graders")
    points = "".join(f"[tutelage.{group}]\nbroken = not_there:Nothing\n" for group in groups)
    (broken / "entry_points.txt").write_text(points)
    refuses = site / "refuses-1.dist-info"
    refuses.mkdir()
    (refuses / "METADATA").write_text("Metadata-Version: 2.1\nName: refuses\nVersion: 1\n")
    (refuses / "entry_points.txt").write_text(
        "[tutelage.algorithms]\nrefuses = refuses:Refuses\nfails = refuses:Fails\n"
    )
    (site / "refuses.py").write_text(REFUSES)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["algorithms"][-4:] == ["best_few", "broken", "fails", "refuses"]
    assert "begins_with" in found["graders"]
    assert "glossary" in found["formats"]
    assert "broken" not in found["formats"]
    assert "format 'broken' is left out" in done.stderr
    assert (found["algorithm"], found["kept"]) == ("best_few", 2)
    assert found["wrong"] == ["settings.options.count"]
    assert found["scores"] == [1.0, 0.0]
    assert found["refused"] == "settings.epochs: '1' is not allowed; allowed: two, with a llama"
    assert found["failed"] == "algorithm 'fails' failed in training: ZeroDivisionError: in the package"
    assert found["rule"] == 2
    assert found["reward"] == pytest.approx(0.3)
    for part, fault in found["broken"].items():
        assert "'broken'" in fault, part
        assert "No module named 'not_there'" in fault, part


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
    (unknown,) = formula_violations("careful")
    assert (unknown.field, unknown.value) == ("config.reward.formula", "careful")
    assert "there is none" in unknown.allowed
    # Settings with it can be read without the package: a stored run, and at the client.
    assert parse_settings({"students": ["a"], "reward": {"formula": "careful"}}, RunConfig).reward.formula == "careful"
    wrong = settings_violations("rest_em", UpdateSettings(options={"rule": "above_most"}), 256)
    assert [item.field for item in wrong] == ["settings.options.rule"]
    assert "one of best, above, top, weighted, lead" in wrong[0].allowed


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Parts of a package that is made of this file."""
    points = [
        EntryPoint(name, f"{__name__}:{value}", group)
        for group, name, value in (
            (FORMATS, "good", "GOOD"),
            (FORMATS, "misnamed", "GOOD"),
            (FORMATS, "number", "NUMBER"),
            (FORMATS, "promptless", "PROMPTLESS"),
            (FORMATS, "unsendable", "UNSENDABLE"),
            (FORMATS, "missing", "NOT_THERE"),
            (SELECTION_RULES, "number", "NUMBER"),
            (SELECTION_RULES, "missing", "NOT_THERE"),
            (SELECTION_RULES, "dividing", "dividing"),
            (SELECTION_RULES, "weightless", "weightless"),
            (ALGORITHMS, "telling", "Telling"),
            (REWARDS, "number", "NUMBER"),
            (REWARDS, "missing", "NOT_THERE"),
        )
    ]
    monkeypatch.setattr(extensions, "_points", lambda group: tuple(each for each in points if each.group == group))
    all_formats.cache_clear()
    yield monkeypatch
    all_formats.cache_clear()


def dividing(groups: Sequence[CandidateGroup], lengths: Mapping[str, int], settings: object) -> tuple[Kept, ...]:
    return (Kept(groups[0].candidates[0], len(groups) / sum(lengths.get("nobody", 0) for _ in groups)),)


def weightless(groups: Sequence[CandidateGroup], lengths: Mapping[str, int], settings: object) -> tuple[Kept, ...]:
    return tuple(Kept(item, math.nan) for item in groups[0].candidates)


class Telling(RestEM):
    """Chooses well, and tells of it what is no number."""

    summary = "tells nonsense"

    def weights(self, groups: Sequence[SampleGroup], options: object) -> dict[str, float]:
        return {"a": None}  # type: ignore[dict-item]


GOOD = Format("good", "Write about {text}", Parser.LINES)
NUMBER = 3
PROMPTLESS = Format("promptless", 3, Parser.LINES)  # type: ignore[arg-type]
UNSENDABLE = Format("unsendable", "Write about {text}", Parser.LINES, max_documents=1.5)  # type: ignore[arg-type]


def test_a_broken_format_is_left_out_and_hides_no_other(
    installed: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        names = [item.name for item in all_formats()]
        assert [item.name for item in all_formats()] == names
    assert [name for name in names if name in extension_names(FORMATS)] == ["good"]
    assert "implications" in names
    told = [record.getMessage() for record in caplog.records]
    # Once each, however often the teacher is asked.
    assert len(told) == 5
    for name in ("misnamed", "missing", "number", "promptless", "unsendable"):
        assert any(f"format {name!r} is left out" in line for line in told), name
    assert any("NOT_THERE" in line for line in told)


@pytest.mark.parametrize(
    ("algorithm", "options", "reason"),
    [
        ("rest_em", {"rule": "dividing"}, "'rest_em' with rule 'dividing' .* ZeroDivisionError: division by zero"),
        ("rest_em", {"rule": "weightless"}, "'rest_em' with rule 'weightless' .* 'a' has the weight nan"),
        ("telling", {"rule": "above"}, "'telling' .* TypeError: must be real number"),
    ],
)
def test_what_chooses_nonsense_is_named_before_anything_is_trained(
    installed: pytest.MonkeyPatch, algorithm: str, options: dict[str, object], reason: str
) -> None:
    rollout = policy_pb2.Rollout(policy_version="p", prompt_ids=[5], completion_ids=[6], tokenizer_hash="h")
    group = CandidateGroup("g", (ScoredCandidate("a", rollout.SerializeToString(), 1.0),))
    asked = UpdateRequest("p", algorithm, UpdateSettings(options=options), (group,), 1, "run", 1)
    with pytest.raises(PreconditionFailed, match=reason):
        lessons_of(asked, "h", {"p": 0})


@pytest.mark.parametrize(("name", "reason"), [("missing", "does not load: AttributeError"), ("number", "is a int")])
def test_what_cannot_be_called_is_refused_before_a_run_starts(
    installed: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    (wrong,) = settings_violations("rest_em", UpdateSettings(options={"rule": name}), 256)
    assert (wrong.field, wrong.value) == ("settings.options.rule", name)
    assert reason in wrong.allowed
    (wrong,) = formula_violations(name)
    assert (wrong.field, wrong.value) == ("config.reward.formula", name)
    assert reason in wrong.allowed
