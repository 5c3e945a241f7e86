"""Start a run on your own documents and print how it went: `python adapt_my_documents.py ADDRESS DOCUMENTS.jsonl`."""

import sys
from datetime import datetime
from pathlib import Path

from tutelage.client import SyncOrchestratorClient
from tutelage.documents import read_quiz, read_tasks
from tutelage.domain.run import ReportFormat
from tutelage.rpc.config import ChannelSettings

CONFIG = "students: [a]\nformat: self-qa\ncandidates: 2\nrounds: 1\nseed: 7\n"
HERE = Path(__file__).parent


def main(address: str, documents: str) -> None:
    run_id = f"mine-{datetime.now():%Y%m%d-%H%M%S}"
    tasks, retention = read_tasks(documents), read_quiz(HERE / "documents/retention.jsonl")
    with SyncOrchestratorClient(ChannelSettings(address=address)) as orchestrator:
        orchestrator.start_run(run_id, CONFIG, tasks, retention)
        for summary, event in orchestrator.watch_run(run_id):
            done = f"{summary.evaluations_done}/{summary.evaluations_total} evaluations"
            print(f"{summary.phase}: {done} {event.kind if event else ''}")
        summary, _ = orchestrator.get_run(run_id)
        report = Path(f"{run_id}.html")
        report.write_bytes(orchestrator.get_report(run_id, ReportFormat.HTML))
    print(f"{summary.state}: mean reward {summary.mean_reward}, policy {summary.policy_version}, see {report}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
