"""What is to be learned, and the quiz that measures whether it was."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_TASK_ID = 200
"""Longest id of a task, in characters; a `/` would end it in the ids of its candidates."""


@dataclass(frozen=True)
class DocumentTask:
    title: str
    text: str


@dataclass(frozen=True)
class Demonstration:
    input: str
    output: str


@dataclass(frozen=True)
class FewShotTask:
    instruction: str
    demonstrations: tuple[Demonstration, ...]


@dataclass(frozen=True)
class Task:
    id: str
    content: DocumentTask | FewShotTask


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    answer: str
    topic: str = ""
    aliases: tuple[str, ...] = ()
    support: str = field(default="", compare=False)
    """The sentence of the text that supports the answer, for people; empty where not known. No part of what is asked:
    questions that differ in nothing else are equal, and have equal ids."""


@dataclass(frozen=True)
class Quiz:
    questions: tuple[Question, ...] = ()
