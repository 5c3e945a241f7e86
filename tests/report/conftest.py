"""A report by hand, of the shape a real run has: three rounds, two students, good and bad edits, every fault."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.report.data import (
    CandidateRecord,
    CommitRecord,
    EvaluationRecord,
    PhaseTime,
    ReportHeader,
    RoundUpdate,
    RunReport,
)
from tutelage.domain.evaluation import Answer, EvaluationReport, InnerLoopSettings, QuizResult, TrainingCost
from tutelage.domain.policy import Policy, UpdateResult
from tutelage.domain.reward import RewardSettings, reward_of
from tutelage.domain.run import RunEvent, RunPhase, RunState, RunSummary, StudentResult, TaskWithQuiz
from tutelage.domain.self_edit import Rejection, RejectionReason
from tutelage.domain.task import DocumentTask, Question, Quiz, Task

START = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)
TITLES = (
    "Ostrevane", "Bellfrost K9 Kettle: Quick Guide", "The Harrow Accord", "Mirel Antany, cartographer",
    "Rules of Quartern", "The lighthouse on Skarn and the long dispute about its keeper", "Tallow moth", "Dunmere",
)  # fmt: skip
FACTS = (
    ("Who founded {}?", "salt traders"), ("When was {} first recorded?", "1347"),
    ("Which bird stands on the arms of {}?", "heron"), ("What colour is the lamp of {}?", "violet"),
    ("How long is the term at {}?", "three years"), ("Who broke the key of {}?", "Hamo Drysse"),
)  # fmt: skip
HOSTILE = '<script>document.title="owned"</script><img src=x onerror=alert(1)>'


def _tasks() -> tuple[TaskWithQuiz, ...]:
    return tuple(
        TaskWithQuiz(
            Task(f"train-{number:03d}", DocumentTask(title, f"{title} was founded by salt traders in 1347.")),
            Quiz(
                tuple(
                    Question(f"train-{number:03d}-q{index}", text.format(title), answer, title)
                    for index, (text, answer) in enumerate(FACTS, start=1)
                )
            ),
        )
        for number, title in enumerate(TITLES, start=1)
    )


def _quiz(chance: random.Random, quiz: Quiz, skill: float) -> QuizResult:
    answers = []
    for question in quiz.questions:
        right = chance.random() < skill
        said = (
            question.answer if right else chance.choice(["I do not know.", "a blue <lamp> & more", "in 1902", "Paris"])
        )
        hit = 1.0 if right else 0.0
        scores = {
            "contains": hit,
            "exact": hit * 0.5,
            "f1": hit * 0.8,
            "loglik": -6.5 + 5 * skill + chance.gauss(0, 0.3),
        }
        answers.append(Answer(question.id, said, scores))
    return QuizResult.of(tuple(answers))


def _evaluation(
    chance: random.Random, item: TaskWithQuiz, candidate_id: str, student: str, repeat: int, quality: float
) -> EvaluationRecord:
    evaluation_id = f"{chance.getrandbits(256):064x}"
    if chance.random() < 0.04:
        reason = "student at 127.0.0.1:50112 went away: Socket closed"
        return EvaluationRecord(evaluation_id, candidate_id, student, repeat, state="failed", reason=reason, attempts=3)
    report = EvaluationReport(
        evaluation_id=evaluation_id,
        before=_quiz(chance, item.quiz, 0.04),
        after=_quiz(chance, item.quiz, max(0.0, quality)),
        retention_before=_quiz(chance, item.quiz, 0.8),
        retention_after=_quiz(chance, item.quiz, 0.72),
        effective_settings=InnerLoopSettings(rank=16, alpha=32.0, epochs=8 if chance.random() < 0.8 else 12),
        cost=TrainingCost(64, 3900, 2100, 4.1, 0.6, 14.2, 6.1, repeat > 0),
        answer_overlap=quality * 0.9,
        finished_at=START + timedelta(seconds=90),
    )
    reward = reward_of(report, RewardSettings())
    return EvaluationRecord(
        evaluation_id, candidate_id, student, repeat, reward=reward.value, parts=reward.parts, report=report
    )


def _candidate(chance: random.Random, item: TaskWithQuiz, round_number: int, index: int) -> CandidateRecord:
    title = item.task.content.title if isinstance(item.task.content, DocumentTask) else ""
    identifier = f"c-{round_number}-{item.task.id}-{index}"
    policy = f"{round_number:x}" * 64
    common = (identifier, round_number, item.task.id, title, index, "self-qa", policy)
    if chance.random() < 0.06:
        rejection = Rejection(RejectionReason.OUT_OF_BOUNDS, "learning_rate", "0.5", "1e-06 to 0.01")
        return CandidateRecord(
            *common, text='{"learning_rate": 0.5}\nQ: ?', rejection=rejection, seed=chance.getrandbits(31)
        )
    quality = max(0.0, chance.gauss(0.16 + 0.14 * round_number, 0.16))
    pairs = [f"Q: {question.text}\nA: {question.answer}" for question in item.quiz.questions[: chance.randint(2, 6)]]
    if index == 1 and item.task.id == "train-003":
        pairs.append(HOSTILE)
    evaluations = tuple(
        _evaluation(chance, item, identifier, student, repeat, quality) for student in ("a", "b") for repeat in range(2)
    )
    rewards = [evaluation.reward for evaluation in evaluations if evaluation.reward is not None]
    return CandidateRecord(
        *common,
        text="\n\n".join(pairs),
        documents=(f"{title}\n{title} was founded by salt traders in 1347.", *pairs),
        reward=sum(rewards) / len(rewards) if rewards else None,
        # The second round was not updated: see `_updates`.
        chosen=round_number != 2 and bool(rewards) and sum(rewards) > 0,
        evaluations=evaluations,
        seed=chance.getrandbits(31),
    )


def _updates() -> tuple[RoundUpdate, ...]:
    first = Policy("2" * 64, "1" * 64, "harbour-01", 1, "rest_em", "d" * 64, "e" * 64, START)
    second = Policy("3" * 64, "2" * 64, "harbour-01", 2, "rest_em", "f" * 64, "0" * 64, START)
    return (
        RoundUpdate(
            1,
            UpdateResult(
                first, "e" * 64, True, 7, 48.2, "kept 7 of 8 groups", 3, 5, 1_310_000_000, 0, {},
                {"loss": -0.0123, "kl": 0.000456, "clip_ratio/high_mean": 0.25}, 0.5, None,
            ),
        ),
        RoundUpdate(2, UpdateResult(second, "0" * 64, False, 0, 0.0, "no group beat the untouched student by 0.05")),
    )  # fmt: skip


def _commits(candidates: tuple[CandidateRecord, ...]) -> tuple[CommitRecord, ...]:
    commits = []
    for number, candidate in enumerate(candidates[-10::3]):
        for evaluation in candidate.evaluations[:3:2]:
            if evaluation.report is None:
                continue
            gain = evaluation.report.after.scores["contains"] - evaluation.report.before.scores["contains"]
            kept = gain > 0.7
            commits.append(
                CommitRecord(
                    evaluation.student, candidate.task_id, candidate.id, evaluation.evaluation_id, kept,
                    reason="" if kept else f"contains gained {gain:+.2f}, not above min_gain 0.70",
                    version=f"{number + 10:x}" * 32 if kept else "", parent_version="a" * 64 if number else "",
                    quiz_before=evaluation.report.before, quiz_after=evaluation.report.after,
                )
            )  # fmt: skip
    return tuple(commits)


def build_report() -> RunReport:
    chance = random.Random(11)
    tasks = _tasks()
    candidates = tuple(
        _candidate(chance, item, round_number, index)
        for round_number in (1, 2, 3)
        for item in tasks
        for index in range(4)
    )
    summary = RunSummary(
        "harbour-01", RunState.DONE, RunPhase.ENDED, 3, 3, 384, 384, 0.31, None, "3" * 64, "", START,
        START + timedelta(minutes=47, seconds=12), unscored=3, rejected=4,
        students=(StudentResult("a", 192, 0.33, 0.913), StudentResult("b", 192, 0.29, None)), teacher_busy=0.425,
    )  # fmt: skip
    config = (
        "name: harbour\nstudents: [a, b]\nformat: self-qa\ncandidates: 4\nevaluation_seeds: 2\nrounds: 3\nseed: 7\n"
    )
    versions = {
        "tutelage": "0.1.0", "teacher model": "smollm2-135m-instruct@" + "9f" * 20,
        "student a": "smollm2-135m-instruct, nf4, bfloat16, cpu", "student b": "gemma3-270m, nf4, bfloat16, cpu",
    }  # fmt: skip
    phases = tuple(
        PhaseTime(number, phase, seconds * (1 + 0.1 * number))
        for number in (1, 2, 3)
        for phase, seconds in (("writing", 88.0), ("evaluating", 640.0), ("updating", 49.0))
    )
    events = tuple(
        RunEvent(number, START + timedelta(seconds=number), "evaluation_done", {"student": "a", "reward": 0.25})
        for number in range(1, 6)
    )
    return RunReport(
        ReportHeader(summary, config, versions, tasks),
        candidates,
        _updates(),
        _commits(candidates),
        (*phases, PhaseTime(0, "committing", 31.0)),
        events,
    )


@pytest.fixture(scope="session")
def run_report() -> RunReport:
    return build_report()
