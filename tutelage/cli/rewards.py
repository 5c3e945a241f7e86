"""`tutelage run rewards`: how a run's stored candidates rank under other settings of the reward."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.connection import DEFAULT_ORCHESTRATOR, Orchestrator, orchestrator_client
from tutelage.cli.listing import print_json, print_table

if TYPE_CHECKING:
    from tutelage.domain.recomputed_reward import RecomputedReward, RewardComparison

COLUMNS = ("group", "candidate", "stored reward", "recomputed reward")


class Form(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def run_rewards(
    run_id: Annotated[str, typer.Argument(metavar="ID", help="The run's id.")],
    reward: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="YAML file with what stands under `reward` in a run's YAML."),
    ],
    orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR,
    format: Annotated[Form, typer.Option(help="table, csv or json.")] = Form.TABLE,
) -> None:
    """Rank a run's stored candidates by another reward; no student is asked."""
    from orchestrator.run_config import RewardConfig
    from tutelage.domain.recomputed_reward import compared
    from tutelage.settings import load_settings

    # For what is wrong in the file itself; what the run's reports lack only the orchestrator knows.
    load_settings(reward, RewardConfig)
    reward_yaml = reward.read_text(encoding="utf-8")

    async def call() -> list[RecomputedReward]:
        async with orchestrator_client(orchestrator) as client:
            return await client.recompute_rewards(run_id, reward_yaml)

    found = asyncio.run(call())
    rewards, comparison = best_first(found), compared(found)
    if format is Form.JSON:
        print_json({"rewards": rewards, "comparison": comparison})
    elif format is Form.CSV:
        typer.echo(csv_text(rewards, comparison), nl=False)
    else:
        rows = [(each.group, each.candidate_id, _signed(each.stored), _signed(each.recomputed)) for each in rewards]
        print_table(COLUMNS, rows, "no candidates yet")
        if rows:
            typer.echo(comparison_text(comparison, len(rows)))


def best_first(rewards: Sequence[RecomputedReward]) -> list[RecomputedReward]:
    """Group by group as they came, in each the best by the other settings first and the unscored last."""

    def rank(each: RecomputedReward) -> tuple[bool, float]:
        return each.recomputed is None, -(each.recomputed or 0.0)

    return [each for _, group in groupby(rewards, lambda each: each.group) for each in sorted(group, key=rank)]


def comparison_text(comparison: RewardComparison, candidates: int) -> str:
    """The last line: both means, and how alike the ranks are."""
    if not comparison.scored:
        return f"none of {candidates} candidates is scored by both"
    means = f"mean {_signed(comparison.mean_stored)} stored, {_signed(comparison.mean_recomputed)} recomputed"
    ranks = "no group in which both tell candidates apart"
    if comparison.rank_correlation is not None:
        groups = "1 group" if comparison.groups == 1 else f"{comparison.groups} groups"
        ranks = f"rank correlation within groups {comparison.rank_correlation:+.2f} ({groups})"
    return f"{means}, of the {comparison.scored} of {candidates} candidates that both score; {ranks}"


def csv_text(rewards: Sequence[RecomputedReward], comparison: RewardComparison) -> str:
    """A row a candidate, and a last one, `all`, of the means and, in a column of its own, the rank correlation."""
    import csv
    import io

    def cell(value: float | None) -> str:
        return "" if value is None else repr(value)

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("group", "candidate", "stored_reward", "recomputed_reward", "rank_correlation"))
    for each in rewards:
        writer.writerow((each.group, each.candidate_id, cell(each.stored), cell(each.recomputed), ""))
    means = (comparison.mean_stored, comparison.mean_recomputed, comparison.rank_correlation)
    writer.writerow(("all", "", *map(cell, means)))
    return text.getvalue()


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"
