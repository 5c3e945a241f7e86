"""Start a run on your own documents: `python adapt_my_documents.py ADDRESS DOCUMENTS.jsonl STUDENT [STUDENT ...]`."""

import sys
from datetime import datetime
from pathlib import Path

from tutelage.client import SyncOrchestratorClient
from tutelage.documents import read_quiz, read_tasks
from tutelage.domain.run import ReportFormat
from tutelage.rpc.config import ChannelSettings

QUIZ = Path(__file__).parent / "documents/retention.jsonl"


def main(address: str, documents: str, *students: str) -> None:
    run_id = f"mine-{datetime.now():%Y%m%d-%H%M%S}"
    config = f"students: [{', '.join(students)}]\nformat: self-qa\ncandidates: 2\nrounds: 1\nseed: 7\n"
    with SyncOrchestratorClient(ChannelSettings(address=address)) as orchestrator:
        orchestrator.start_run(run_id, config, read_tasks(documents), read_quiz(QUIZ))
        for summary, event in orchestrator.watch_run(run_id):
            done = f"{summary.evaluations_done}/{summary.evaluations_total} evaluations"
            print(f"{summary.phase}: {done} {event.kind if event else ''}")
        report = Path(f"{run_id}.html")
        report.write_bytes(orchestrator.get_report(run_id, ReportFormat.HTML))
    print(f"{summary.state}: mean reward {summary.mean_reward}, policy {summary.policy_version}, see {report}")


if __name__ == "__main__":
    main(*sys.argv[1:])
