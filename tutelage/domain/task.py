"""What is to be learned, and the quiz that measures whether it was."""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True)
class Quiz:
    questions: tuple[Question, ...] = ()
