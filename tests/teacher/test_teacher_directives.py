"""Directives that always parse: sampling held to the schema, free behind it, whatever the weights of the model are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teacher.config import TeacherSettings
from teacher.constrained import first_line_grammar
from teacher.directives import SCHEMA, DirectiveLine, parse_directives
from teacher.engine import Writer
from teacher.formats import DIRECTIVES_ASKED, builtin_formats, render_prompt
from teacher.parsing import chosen_names, parse_completion
from teacher.policies import PolicyStore
from tutelage.domain.evaluation import Bounds
from tutelage.domain.policy import Candidate, Format, Parser, Sampling, with_directives
from tutelage.domain.self_edit import Directives, LossMask, Rejection, SelfEdit
from tutelage.domain.task import DocumentTask, Task
from tutelage.models.loading import load_model
from tutelage.models.tiny import write_tiny_model
from tutelage.v1 import policy_pb2

TASK = Task("t", DocumentTask("Velm", "Velm is a town."))
DIRECTED = Format("own", "{title}: {text}", Parser.WHOLE, directives=True)
MIXED = next(item for item in builtin_formats() if item.parser is Parser.MIXED)
CHOICES = st.fixed_dictionaries(
    {
        name: st.sampled_from(rule["enum"]) if "enum" in rule else st.integers(rule["minimum"], rule["maximum"])
        for name, rule in SCHEMA["properties"].items()
    }
)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    folder = tmp_path_factory.mktemp("directives")
    model = str(write_tiny_model(folder / "model", context=2048))
    loaded = load_model(model, quantisation="none", device="cpu", threads=1)
    settings = TeacherSettings(model=model, threads=1, data_dir=folder)
    return Writer(loaded, PolicyStore(folder / "policies", loaded.revision), settings)


def write(writer: Writer, format: Format, sampling: Sampling, count: int = 4, seed: int = 3) -> list[Candidate]:
    version = writer._policies.initial.version
    return sorted(writer.write(TASK, format, count, sampling, version, seed), key=lambda item: item.index)


@pytest.mark.parametrize("sampling", [Sampling(1.0, 1.0, 160), Sampling(2.0, 0.5, 160), Sampling(0.0, 1.0, 160)])
def test_a_random_model_writes_directives_that_parse(writer: Writer, sampling: Sampling) -> None:
    for candidate in write(writer, DIRECTED, sampling):
        line, _, rest = candidate.text.partition("\n")
        assert isinstance(parse_directives(line)[0], DirectiveLine)
        assert list(json.loads(line)) == SCHEMA["required"]
        assert rest
        if isinstance(candidate.result, SelfEdit):
            assert candidate.result.directives.epochs == json.loads(line)["epochs"]
        else:
            assert candidate.result.field != "directives"


def test_a_format_that_keeps_many_notes_may_be_asked_for_them(writer: Writer) -> None:
    longest = with_directives(next(item for item in builtin_formats() if item.name == "implications-very-long"))
    written = write(writer, longest, Sampling(1.0, 1.0, 110), 24)
    asked = [json.loads(item.text.partition("\n")[0])["notes"] for item in written]
    assert SCHEMA["properties"]["notes"]["maximum"] < max(asked) <= longest.max_documents


def test_rows_choose_by_themselves_and_repeat_by_seed(writer: Writer) -> None:
    first, again = (write(writer, DIRECTED, Sampling(1.0, 1.0, 120), 6) for _ in range(2))
    assert [item.text for item in first] == [item.text for item in again]
    assert len({item.text.partition("\n")[0] for item in first}) > 3


def test_recorded_log_probabilities_stay_the_models_own(writer: Writer) -> None:
    for candidate in write(writer, DIRECTED, Sampling(1.0, 1.0, 110), 2):
        rollout = policy_pb2.Rollout.FromString(candidate.rollout)
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
        with torch.inference_mode():
            log_probs = torch.log_softmax(writer.loaded.model(input_ids=ids).logits.float(), dim=-1)[0]
        start = len(rollout.prompt_ids)
        expected = [float(log_probs[start + i - 1, token]) for i, token in enumerate(rollout.completion_ids)]
        assert list(rollout.log_probs) == pytest.approx(expected, abs=0.05)


def test_a_completion_that_ends_within_its_directives_is_rejected(writer: Writer) -> None:
    for candidate in write(writer, DIRECTED, Sampling(1.0, 1.0, 20)):
        assert isinstance(candidate.result, Rejection)
        assert candidate.result.field == "directives"


def test_a_random_model_chooses_a_format_that_the_prompt_names(writer: Writer) -> None:
    chosen = {item.format for item in write(writer, MIXED, Sampling(1.0, 1.0, 60), 12)}
    assert chosen <= {"mixed: implications", "mixed: rewrite", "mixed: self-qa"}
    assert len(chosen) > 1


def test_directives_then_the_name_of_a_format(writer: Writer) -> None:
    both = Format("both", "Choose rewrite or none: {text}", Parser.MIXED, directives=True)
    for candidate in write(writer, both, Sampling(1.0, 1.0, 200)):
        first, second = candidate.text.split("\n")[:2]
        assert isinstance(parse_directives(first)[0], DirectiveLine)
        assert second in ("Format: rewrite", "Format: none")


def test_behind_directives_the_notes_are_begun(writer: Writer) -> None:
    begun = Format("begun", "Ask about {text}", Parser.QUESTION_ANSWER, directives=True)
    for candidate in write(writer, begun, Sampling(1.0, 1.0, 170)):
        line, _, rest = candidate.text.partition("\n")
        assert isinstance(parse_directives(line)[0], DirectiveLine)
        assert rest.startswith("Question:")
        rollout = policy_pb2.Rollout.FromString(candidate.rollout)
        # What it had no choice about is marked, so that grpo and rloo do not learn it.
        assert sum(rollout.forced) >= len("Question:")


def test_a_machine_without_a_compiler_holds_writers_to_a_form(tmp_path: Path) -> None:
    """Images of services have none, and a mask over a vocabulary wants none."""
    program = """
import sys
import torch
from teacher.constrained import Constraint
from tutelage.models.loading import load_model
from tutelage.models.tiny import write_tiny_model
from pathlib import Path

tokenizer = load_model(str(write_tiny_model(Path(sys.argv[1]) / "model")), threads=1).tokenizer
allowed_V = Constraint(tokenizer, 'start: "yes"', 1).allowed(0, torch.zeros(len(tokenizer)))
print(sorted({tokenizer.decode([i])[:1] for i in allowed_V.isfinite().nonzero().flatten().tolist()}))
"""
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "['y']"


def test_only_formats_that_begin_with_a_form_are_held_to_one() -> None:
    held = [item.name for item in builtin_formats() if first_line_grammar(item, chosen_names())]
    assert held == ["mixed"]
    own = first_line_grammar(Format("own", "Write.", Parser.MIXED), chosen_names())
    assert own is not None
    assert all(name in own for name in chosen_names())


@given(CHOICES)
def test_the_schema_is_within_what_the_parser_and_a_student_take(choice: dict[str, object]) -> None:
    found, _, _ = parse_directives(json.dumps(choice))
    assert isinstance(found, DirectiveLine)
    assert found.notes == choice["notes"]
    directives, bounds = found.directives, Bounds()
    assert directives.learning_rate is not None
    assert bounds.min_learning_rate <= directives.learning_rate <= bounds.max_learning_rate
    assert directives.epochs is not None
    assert bounds.min_epochs <= directives.epochs <= bounds.max_epochs
    assert directives.rank is not None
    assert bounds.min_rank <= directives.rank <= bounds.max_rank
    assert isinstance(directives.loss_mask, LossMask)


@pytest.mark.parametrize(("limit", "kept"), [(0, 3), (1, 2), (9, 3)])
def test_the_writer_says_how_many_notes_it_wants_kept(limit: int, kept: int) -> None:
    format = Format("own", "Write.", Parser.LINES, directives=True, max_documents=limit)
    found = parse_completion('{"notes": 2}\nOne is.\nTwo are.\nThree are.', format, TASK)
    assert isinstance(found.result, SelfEdit)
    assert found.result.directives == Directives()
    # The passage comes beside the notes.
    assert len(found.result.documents) == kept
    assert found.repairs["over_limit"] == 4 - kept


@pytest.mark.parametrize("notes", ["0", "-1", "2.5", "true", '"3"'])
def test_a_number_of_notes_that_is_none_is_rejected(notes: str) -> None:
    found, _, _ = parse_directives(f'{{"notes": {notes}}}')
    assert isinstance(found, Rejection)
    assert found.field == "directives.notes"


def test_the_prompt_asks_for_directives_where_the_format_has_them() -> None:
    assert render_prompt(DIRECTED, TASK).startswith(DIRECTIVES_ASKED)
    assert DIRECTIVES_ASKED not in render_prompt(MIXED, TASK)
    assert all(name in DIRECTIVES_ASKED for name in SCHEMA["required"])
