"""``blu serve`` with the fake model: ``python serve_fake.py '{"model": …, "port": 0, …}'``, settings as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from blu_export.errors import BluError
from blu_export.serve.hangups import Hangups
from blu_export.serve.logs import set_up
from blu_export.serve.server import run
from blu_export.serve.settings import ServeSettings
from blu_export.workers.entry import die_with

if __name__ == "__main__":
    die_with(os.getppid())  # a test that is killed leaves nothing behind
    given = json.loads(sys.argv[1])
    hangups = Hangups()
    for _ in range(given.pop("hangups_at_start", 0)):
        os.kill(os.getpid(), signal.SIGHUP)
    settings = ServeSettings(**{"loader": "fake_runner:load", **given, "model": Path(given["model"])})
    set_up()
    try:
        run(settings, hangups)
    except BluError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
