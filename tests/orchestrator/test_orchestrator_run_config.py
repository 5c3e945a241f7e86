"""Settings of a run that do not fit each other are named one by one, each with what was given and what is allowed."""

from __future__ import annotations

import pytest

from orchestrator.partial_config import read_config


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("students: [a, b, a]", ["students[2]: 'a' is not allowed; allowed: each name once"]),
        (
            "judges: [j, contains]",
            ["judges[1]: 'contains' is not allowed; allowed: each name once, and none that is a grader's"],
        ),
        (
            "graders: [contains, f1]\ncommit: {grader: exact}",
            [
                "reward.grader_weights.loglik: 'loglik' is not allowed; allowed: one of graders (contains, f1)",
                "commit.grader: 'exact' is not allowed; allowed: one of graders (contains, f1)",
            ],
        ),
        (
            "group: {close: minimum}",
            ["group.minimum: 'nothing' is not allowed; allowed: a number with `close: minimum`, and only there"],
        ),
        (
            "group: {close: minimum, minimum: 9}",
            ["group.minimum: '9' is not allowed; allowed: 4 at most, as many as there are candidates"],
        ),
        ("group: {wait_s: 5}", ["group.wait_s: '5.0' is not allowed; allowed: a number only with `close: minimum`"]),
        (
            "staleness: 4",
            [
                "staleness: '4' is not allowed; allowed: update.max_staleness (1) at most: what is older would be "
                "dropped"
            ],
        ),
        (
            "format: {name: x, prompt: y, parser: bullet}",
            [
                "format.parser: 'bullet' is not allowed; allowed: 'lines', 'whole', 'question_answer', 'paragraphs', "
                "'thought_lines' or 'mixed'"
            ],
        ),
    ],
)
def test_settings_that_do_not_fit_are_named_one_by_one(text: str, told: list[str]) -> None:
    whole = text if text.startswith("students") else f"students: [a]\n{text}"
    assert [str(each) for each in read_config(whole).wrong] == [f"config.{each}" for each in told]


def test_what_does_not_fit_hides_nothing_that_is_wrong_elsewhere() -> None:
    read = read_config("students: [zoe]\ngroup: {wait_s: 5}\n")
    assert read.config is not None
    assert read.config.students == ("zoe",)
