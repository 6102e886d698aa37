"""ModelSnapshot: what a worker loaded, for the workers after it, even if the model file changes meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from io import BufferedRandom
from pathlib import Path

from blu_export.errors import BluError, ModelFileError
from blu_export.runtime import PRECISIONS
from blu_export.runtime.tuning import precision_path
from blu_export.serve.settings import ServeSettings
from blu_export.serve.worker_process import ModelInfo, WorkerProcess
from blu_export.tensorrt.sidecar import sidecar_path


class ModelSnapshot:
    """A private copy of a loaded model file, of an engine's sidecar and of the precision chosen instead of the file.

    It lies in the folder for temporary files, in files without names: they go with the process, however that ends.
    Use ``await load(settings)``.
    """

    def __init__(self, settings: ServeSettings, info: ModelInfo) -> None:
        # What was chosen the first time is asked for now: the choice may depend on where a file lies.
        precision = info.precision if info.precision in PRECISIONS else "file"  # a foreign file may say anything
        options = replace(settings.options, runtime=info.runtime, precision=precision)
        self._settings = replace(settings, options=options)
        self._copies: dict[str, BufferedRandom] = {}
        model = settings.model
        file_precision = "float32" if precision == "bf16" else precision  # bf16 has no file of its own
        with ExitStack() as files:
            for path in {model, sidecar_path(model), precision_path(model, file_precision)}:
                if path.is_file():
                    self._copies[path.name] = files.enter_context(tempfile.TemporaryFile())
                    with path.open("rb") as file:
                        shutil.copyfileobj(file, self._copies[path.name])
            if self._sha256(model.name) != info.sha256:
                raise ModelFileError(
                    f"{model} changed while it was being loaded.", "Write it elsewhere, then rename it."
                )
            self._open = files.pop_all()

    @classmethod
    async def load(cls, settings: ServeSettings) -> tuple[WorkerProcess, ModelSnapshot]:
        """Start a worker, and keep what it loaded.

        Raises:
            BluError: the model cannot be loaded, or there is no room for the copy.
            WorkerLostError: see WorkerProcess.start.
        """
        device = await WorkerProcess.start(settings)
        try:
            return device, await asyncio.to_thread(cls, settings, device.info)
        except OSError as error:
            await device.close()
            raise BluError(
                f"The model cannot be copied to {tempfile.gettempdir()}: {error.strerror or error}.",
                "Make room there, or set TMPDIR to another folder.",
            ) from error
        except BaseException:
            await device.close()
            raise

    async def start(self) -> WorkerProcess:
        """Another worker with the same model.

        Raises:
            OSError: there is no room for the files that it reads.
            BluError, WorkerLostError: see WorkerProcess.start.
        """
        with tempfile.TemporaryDirectory(prefix="blu-serve-", ignore_cleanup_errors=True) as folder:
            await asyncio.to_thread(self._write, Path(folder))
            return await WorkerProcess.start(replace(self._settings, model=Path(folder, self._settings.model.name)))

    def close(self) -> None:
        """Remove the copy."""
        self._open.close()

    def _sha256(self, name: str) -> str | None:
        if (copy := self._copies.get(name)) is None:
            return None
        copy.seek(0)
        return hashlib.file_digest(copy, "sha256").hexdigest()

    def _write(self, folder: Path) -> None:
        for name, copy in self._copies.items():
            copy.seek(0)
            with Path(folder, name).open("wb") as file:
                shutil.copyfileobj(copy, file)
