"""An adaptation commits the best candidate that passes its gates, leaves students alone otherwise, teaches no one."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.adapt_config import AdaptConfig, Recipe
from orchestrator.config import OrchestratorSettings
from orchestrator.inbox_config import InboxConfig
from orchestrator.report.quiz_scores import student_scores
from orchestrator.report.rewards import groups
from orchestrator.report_builder import build_report
from orchestrator.run_config import RunConfig
from tutelage.cli.adapt import prepare
from tutelage.cli.main import app
from tutelage.domain.errors import InvalidInput
from tutelage.domain.evaluation import Answer, Failure, QuizResult
from tutelage.domain.run import RunState
from tutelage.domain.task import Question, Quiz
from tutelage.settings import load_settings, parse_settings
from tutelage.wire.evaluation import quiz_result_to_wire

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "adapt.yaml"


RETENTION = Quiz((Question("r", "Which city is France's capital?", "Paris"),))


def _recipe(**changes: Any) -> Recipe:
    return parse_settings({"students": ["a", "b"], "candidates": 3, "policy": "initial"} | changes, Recipe)


async def _adapt(world: Any, engine: Any, run_id: str = "run", quiz: Quiz | None = None, **changes: Any) -> Any:
    await engine.start_run(run_id, _recipe(**changes).run_yaml("adapt"), world.tasks, quiz or Quiz())
    return await world.done(engine, run_id)


def test_the_best_is_committed_and_the_teacher_learns_nothing(world: Any) -> None:
    async def body() -> None:
        await world.up()
        async with world.engine() as engine:
            summary = await _adapt(world, engine)
            assert summary.state is RunState.DONE
            assert summary.policy_version == "policy-0"
            commits = await engine.store.commits("run")
            assert {(row["student"], row["task_id"]) for row in commits} == {
                (student, task) for student in ("a", "b") for task in ("t1", "t2")
            }
            assert all(row["committed"] for row in commits)
            best: dict[tuple[str, str], float] = {}
            for row in await engine.store.evaluations("run"):
                if row.phase == "round" and row.outcome is not None:
                    key = (row.student, row.task_id)
                    best[key] = max(best.get(key, 0.0), row.outcome.after.scores["contains"])
            first = next(row for row in commits if (row["student"], row["task_id"]) == ("a", "t1"))
            assert first["quiz_after"].scores["contains"] == best["a", "t1"]
            last = {row["student"]: row for row in commits if row["task_id"] == "t2"}
            for student in await engine.list_students():
                assert student.current_adapter_version == last[student.name]["version"]
        assert world.teacher.updates == []
        await world.down()

    asyncio.run(body())


def test_below_the_gate_a_student_stays_as_it_is(world: Any) -> None:
    async def body() -> None:
        await world.up()
        async with world.engine() as engine:
            summary = await _adapt(world, engine, gate={"min_gain": 2.0})
            assert summary.state is RunState.DONE
            commits = await engine.store.commits("run")
            assert len(commits) == 4
            assert not any(row["committed"] for row in commits)
            assert all("is not above 2.0" in row["reason"] for row in commits)
            assert {student.current_adapter_version for student in await engine.list_students()} == {""}
        assert world.a.adapters == {}
        await world.down()

    asyncio.run(body())


def test_a_student_that_forgets_too_much_is_left_alone_and_the_other_learns(world: Any) -> None:
    plain = world.a.report

    def forgetful(key: Any) -> Any:
        def answered(value: float) -> QuizResult:
            return QuizResult.of((Answer("r", "text", {"contains": 1.0, "loglik": value}),))

        return dataclasses.replace(plain(key), retention_before=answered(-1.0), retention_after=answered(-1.75))

    world.a.report = forgetful

    async def body() -> None:
        await world.up()
        async with world.engine() as engine:
            await _adapt(world, engine, quiz=RETENTION, gate={"max_retention_loss": 0.5})
            commits = await engine.store.commits("run")
            assert {row["student"] for row in commits if row["committed"]} == {"b"}
            reasons = [row["reason"] for row in commits if row["student"] == "a"]
            assert all("0.7500 forgotten on loglik is above 0.5" in reason for reason in reasons)
        await world.down()

    asyncio.run(body())


def forget_when_stored(world: Any) -> None:
    """Student a: a version forgets 0.75 nats as it is stored, of which its evaluation showed 0.1."""

    def answered(value: float) -> QuizResult:
        return QuizResult.of((Answer("r", "text", {"contains": 1.0, "loglik": value}),))

    report, commit = world.a.report, world.a.Commit

    def remembering(key: Any) -> Any:
        return dataclasses.replace(report(key), retention_before=answered(-1.0), retention_after=answered(-1.1))

    async def recompressed(request: Any, context: Any) -> Any:
        reply = await commit(request, context)
        reply.retention.CopyFrom(quiz_result_to_wire(answered(-1.75)))
        return reply

    world.a.report, world.a.Commit = remembering, recompressed


def test_what_the_stored_version_forgot_counts_and_not_what_was_evaluated(world: Any) -> None:
    forget_when_stored(world)

    async def body() -> None:
        await world.up()
        async with world.engine() as engine:
            await _adapt(world, engine, quiz=RETENTION, gate={"max_retention_loss": 0.5})
            commits = await engine.store.commits("run")
            assert {row["student"] for row in commits if row["committed"]} == {"b"}
            reasons = [row["reason"] for row in commits if row["student"] == "a"]
            assert all("as stored, 0.7500 forgotten on loglik is above 0.5" in reason for reason in reasons)
        await world.down()

    asyncio.run(body())


def test_many_small_losses_end_at_the_least_that_a_version_may_remember(world: Any) -> None:
    plain, commit = world.a.report, world.a.Commit
    remembered = {"": -1.0}

    def answered(value: float) -> QuizResult:
        return QuizResult.of((Answer("r", "text", {"contains": 1.0, "loglik": value}),))

    def forgetful(key: Any) -> Any:
        before = remembered[key.adapter_version]
        return dataclasses.replace(
            plain(key), retention_before=answered(before), retention_after=answered(before - 0.25)
        )

    async def forgotten(request: Any, context: Any) -> Any:
        reply = await commit(request, context)
        remembered[reply.adapter.version] = min(remembered.values()) - 0.25
        reply.retention.CopyFrom(quiz_result_to_wire(answered(remembered[reply.adapter.version])))
        return reply

    world.a.report, world.a.Commit = forgetful, forgotten

    async def body() -> None:
        await world.up()
        async with world.engine() as engine:
            await _adapt(world, engine, quiz=RETENTION, gate={"max_retention_loss": 0.5, "min_retention": -1.25})
            commits = [row for row in await engine.store.commits("run") if row["student"] == "a"]
            # Each loses a quarter, less than a document may; the second would leave less than the student has to keep.
            assert [row["committed"] for row in commits] == [True, False]
            assert "-1.5000 on loglik of the retention quiz is below -1.25" in commits[1]["reason"]
        await world.down()

    asyncio.run(body())


def test_a_version_is_held_to_what_it_remembers_as_it_is_stored(world: Any) -> None:
    forget_when_stored(world)

    async def body() -> None:
        await world.up()
        async with world.engine() as engine:
            await _adapt(world, engine, quiz=RETENTION, gate={"max_retention_loss": None, "min_retention": -1.5})
            commits = await engine.store.commits("run")
            assert {row["student"] for row in commits if row["committed"]} == {"b"}
            reasons = [row["reason"] for row in commits if row["student"] == "a"]
            assert all("as stored, -1.7500 on loglik of the retention quiz is below -1.5" in each for each in reasons)
        await world.down()

    asyncio.run(body())


def test_what_no_quiz_measures_cannot_be_asked_of_a_gate(world: Any, tmp_path: Path) -> None:
    allowed = r"^gate\.min_retention: '-2\.0' is not allowed; allowed: nothing without a retention_quiz"
    recipe = {"students": ["a"], "gate": {"min_retention": -2.0}}
    with pytest.raises(InvalidInput, match=allowed):
        parse_settings(recipe, InboxConfig)
    assert parse_settings(recipe | {"retention_quiz": "general.jsonl"}, InboxConfig).gate.min_retention == -2.0
    (tmp_path / "adapt.yaml").write_text(yaml.safe_dump(recipe | {"documents": "news.jsonl"}), encoding="utf-8")
    (tmp_path / "news.jsonl").write_text(DOCUMENTS, encoding="utf-8")
    (tmp_path / "general.jsonl").write_text('{"question": "?", "answer": "!"}\n', encoding="utf-8")
    with pytest.raises(InvalidInput, match=allowed):
        prepare(None, tmp_path / "adapt.yaml", {})
    # The quiz may be given beside the file.
    given = {"retention_quiz": str(tmp_path / "general.jsonl")}
    assert len(prepare(None, tmp_path / "adapt.yaml", given)[2].questions) == 1


def test_a_report_shows_what_the_stored_version_forgot(world: Any) -> None:
    forget_when_stored(world)

    async def body() -> None:
        await world.up()
        async with world.engine() as engine:
            summary = await _adapt(world, engine, quiz=RETENTION, gate={"max_retention_loss": None})
            report = await build_report(engine.store, await engine.store.run("run"), summary)
            (table,) = [each for each in student_scores(report, groups(report)) if each.student == "a"]
            (row,) = [each for each in table.of("retention") if each.edits == "committed"]
            change = row.change("loglik")
            assert change is not None
            assert change.difference.mean == pytest.approx(-0.75)
        await world.down()

    asyncio.run(body())


def test_the_example_is_a_recipe_and_its_run_is_valid() -> None:
    config = load_settings(EXAMPLE, AdaptConfig)
    run = parse_settings(config.run_yaml("x"), RunConfig)
    assert (run.rounds, run.update.when, run.commit.when) == (1, "never", "end")
    assert run.commit.min_gain == config.gate.min_gain
    assert run.inner_loop == config.inner_loop
    assert run.documents is None


def test_the_example_of_an_inbox_is_valid_and_says_what_it_costs() -> None:
    settings = load_settings(EXAMPLE.parent / "orchestrator-with-inbox.yaml", OrchestratorSettings)
    inbox = settings.inboxes["news"]
    assert inbox.evaluations_per_document == 16
    assert inbox.budget // inbox.evaluations_per_document == 125
    assert parse_settings(inbox.run_yaml("inbox news"), RunConfig).candidates == 5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"gate": {"grader": "judge"}},
            r"^gate\.grader: 'judge' is not allowed; allowed: one of graders \(contains, loglik\)$",
        ),
        ({"graders": ["contains"]}, r"^gate\.retention_grader: 'loglik'"),
        ({"students": ["a", "a"]}, r"^students\[1\]: 'a' is not allowed; allowed: each name once$"),
        ({"made_questions": 2}, r"^made_questions: '2' is not allowed; allowed: 0, or least_questions \(3\) and more$"),
        ({"rounds": 2}, "rounds"),
        ({"candidates": 0}, "candidates"),
    ],
)
def test_a_recipe_that_is_no_run_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        _recipe(**changes)


def test_a_policy_that_the_teacher_does_not_keep_is_refused(world: Any) -> None:
    async def body() -> None:
        await world.up()
        async with world.engine() as engine:
            with pytest.raises(InvalidInput, match=r"config\.update\.algorithm"):
                await engine.start_run("r", "students: [a]\nupdate: {algorithm: none}\n", world.tasks, Quiz())
            assert (await _adapt(world, engine, policy="latest")).policy_version == "policy-0"
        await world.down()

    asyncio.run(body())


DOCUMENTS = "\n".join(
    json.dumps({"id": name, "title": f"Title {name}", "text": "Text.", "questions": [{"question": "?", "answer": "!"}]})
    for name in ("d1", "d2")
)


def test_the_command_tells_what_became_of_each_document(served: Any, tmp_path: Path) -> None:
    documents = tmp_path / "documents.jsonl"
    documents.write_text(DOCUMENTS, encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    values = {"students": ["a", "b"], "candidates": 2, "policy": "initial", "documents": "documents.jsonl"}
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    with served() as address:
        common = ["--orchestrator", address]
        told = CliRunner().invoke(app, ["adapt", str(documents), "--student", "a", *common], env={"COLUMNS": "160"})
        assert told.exit_code == 0, told.output
        assert "Title d1" in told.stdout
        assert told.stdout.count("committed") == 3
        assert "2 committed, 0 left alone" in told.stdout
        assert "no retention quiz" in told.stderr
        again = CliRunner().invoke(app, ["adapt", "--settings", str(recipe), "--run-id", "mine", "--json", *common])
        document = json.loads(again.stdout)
        assert document["run"]["state"] == "done"
        decided = {(item["student"], item["task_id"]): item for item in document["decisions"]}
        assert len(decided) == len(document["decisions"]) == 4
        assert all(item["after"]["contains"] > item["before"]["contains"] for item in decided.values())
        attached = CliRunner().invoke(app, ["adapt", "--settings", str(recipe), "--run-id", "mine", "--json", *common])
        assert json.loads(attached.stdout)["decisions"] == document["decisions"]


def test_what_a_fault_kept_from_being_decided_is_told_as_such_and_fails_the_command(
    world: Any, served: Any, tmp_path: Path
) -> None:
    world.b.outcome = lambda _: Failure("out of memory")
    (tmp_path / "documents.jsonl").write_text(DOCUMENTS.splitlines()[0], encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    values = {"students": ["a", "b"], "candidates": 2, "policy": "initial", "documents": "documents.jsonl"}
    recipe.write_text(yaml.safe_dump(values | {"deadlines": {"attempts": 1}}), encoding="utf-8")
    with served() as address:
        adapt = ["adapt", "--settings", str(recipe), "--run-id", "mine", "--orchestrator", address]
        told = CliRunner().invoke(app, adapt, env={"COLUMNS": "160"})
        assert told.exit_code == 1, told.output
        assert "1 committed, 0 left alone, 1 not decided" in told.stdout
        assert "1 of 2 not decided" in told.stderr
        for_programs = CliRunner().invoke(app, [*adapt, "--json"])
        assert for_programs.exit_code == 1
        decisions = json.loads(for_programs.stdout)["decisions"]
        assert {item["student"]: (item["committed"], item["fault"]) for item in decisions} == {
            "a": (True, False),
            "b": (False, True),
        }


def test_a_dry_run_counts_the_work(tmp_path: Path) -> None:
    documents = tmp_path / "documents.jsonl"
    documents.write_text(DOCUMENTS, encoding="utf-8")
    arguments = ["adapt", str(documents), "--student", "a", "--student", "b", "--candidates", "5", "--dry-run"]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    assert "# 2 documents, 0 retention questions, 20 evaluations (32 at most" in told.stdout
    assert AdaptConfig.model_validate(yaml.safe_load(told.stdout)).candidates == 5
