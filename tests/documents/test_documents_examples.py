"""The example documents keep their promises, and the example runs are valid settings."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from orchestrator.run_config import RunConfig
from teacher.algorithms import find_algorithm
from tutelage.documents import read_quiz, read_tasks
from tutelage.domain.task import DocumentTask

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize(("name", "count"), [("train", 40), ("heldout", 56)])
def test_documents_are_long_enough_and_hold_their_answers(name: str, count: int) -> None:
    tasks = read_tasks(EXAMPLES / "documents" / f"{name}.jsonl")
    assert len(tasks) == count
    for item in tasks:
        assert isinstance(item.task.content, DocumentTask)
        text = item.task.content.text
        assert 80 <= len(text.split()) <= 250, item.task.id
        assert len(item.quiz.questions) >= 6, item.task.id
        assert len({question.text for question in item.quiz.questions}) == len(item.quiz.questions)
        for question in item.quiz.questions:
            assert question.answer.lower() in text.lower(), (item.task.id, question.answer)


def test_ids_titles_and_texts_are_unique_across_the_two_sets() -> None:
    tasks = [item for name in ("train", "heldout") for item in read_tasks(EXAMPLES / "documents" / f"{name}.jsonl")]
    assert len({item.task.id for item in tasks}) == 96
    assert len({question.id for item in tasks for question in item.quiz.questions}) == sum(
        len(item.quiz.questions) for item in tasks
    )
    contents = [item.task.content for item in tasks if isinstance(item.task.content, DocumentTask)]
    assert len({content.title for content in contents}) == len({content.text for content in contents}) == 96


def test_the_retention_quiz_asks_about_other_things() -> None:
    quiz = read_quiz(EXAMPLES / "documents" / "retention.jsonl")
    assert len(quiz.questions) >= 20
    titles = {item.quiz.questions[0].topic.lower() for item in read_tasks(EXAMPLES / "documents" / "train.jsonl")}
    assert not any(title in question.text.lower() for question in quiz.questions for title in titles)


@pytest.mark.parametrize("path", sorted((EXAMPLES / "runs").glob("*.yaml")), ids=lambda path: path.stem)
def test_example_runs_are_valid_and_name_files_that_exist(path: Path) -> None:
    config = RunConfig(**yaml.safe_load(path.read_text()))
    assert config.documents is not None
    for file in (config.documents, config.retention_quiz):
        assert file is None or (path.parent / file).is_file()
    assert find_algorithm(config.update.algorithm).options.model_validate(config.update.options)


def test_the_quickstart_stays_small() -> None:
    config = RunConfig(**yaml.safe_load((EXAMPLES / "runs" / "quickstart.yaml").read_text()))
    assert config.limit is not None
    evaluations = config.limit * config.candidates * config.rounds * config.evaluation_seeds * len(config.students)
    assert evaluations <= 24


def test_the_script_is_short_and_uses_the_client_alone() -> None:
    source = (EXAMPLES / "adapt_my_documents.py").read_text()
    modules = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.module}
    assert len(source.splitlines()) <= 30
    assert not any(module.split(".")[0] in ("teacher", "student", "orchestrator", "torch") for module in modules)
