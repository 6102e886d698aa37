"""``blu batch`` with the fake model: ``python batch_fake.py '{"source": …, "sink": …, "model": …}'``.

Prints a line per photo that is done, then the report.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from blu_export.batch.job import BatchJob, BatchSettings
from blu_export.workers.entry import die_with

if __name__ == "__main__":
    die_with(os.getppid())  # a test that is killed leaves nothing behind
    given = json.loads(sys.argv[1])
    job = BatchJob(BatchSettings(**{"loader": "fake_runner:load", **given, "model": Path(given["model"])}))
    for photo in job.run():
        print(photo, flush=True)
    print(json.dumps(job.report.to_json()), flush=True)
