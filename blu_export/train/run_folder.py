"""RunFolder: what a run leaves on disk beside its checkpoints. The layout is in ``train.fit``."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blu_export.extras import import_extra
from blu_export.files import atomic_write
from blu_export.train.config import RunConfig
from blu_export.train.toml import write_toml

if TYPE_CHECKING:
    from blu_export.model.mask_rcnn import MaskRCNN

Row = dict[str, float]

LEFT_OUT = "left_out.csv"
"""The file of a run folder that lists the photos and objects that could not be read."""
LOG_EVERY = 20
"""Steps between the losses that TensorBoard gets."""


class RunFolder:
    """Writes the files of a run.

    Args:
        path: the folder; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        import tensorflow as tf

        import_extra("tensorboard")  # tf.summary needs it, and says so only at the first value
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._changes: dict[str, str] = {}
        self._summary = tf.summary.create_file_writer(str(path / "tensorboard"))

    def save_weights(self, name: str, model: MaskRCNN) -> Path:
        """Write the weights, and the spec inside them, as ``name``."""
        from blu_export.model.weights import save_weights

        save_weights(model, self.path / name)
        return self.path / name

    def save_config(self, config: RunConfig) -> None:
        """Write the settings of the run, and keep their changes for the history."""
        self._changes = config.changes
        write_toml(self.path / "config.toml", dataclasses.asdict(config))

    def save_left_out(self, found: Mapping[str, Iterable[tuple[str, str]]]) -> None:
        """List what could not be read, by part: (path or URL, reason); beside what earlier sessions listed."""
        path = self.path / LEFT_OUT
        rows: dict[tuple[str, ...], None] = {}
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                rows = dict.fromkeys(tuple(row) for row in list(csv.reader(file))[1:])
        known = len(rows)
        rows |= dict.fromkeys((part, photo, reason) for part, listed in found.items() for photo, reason in listed)
        if len(rows) == known:
            return
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["part", "photo", "reason"])
            writer.writerows(rows)

    def picture(self, epoch: int) -> Path:
        """Where the predictions after ``epoch`` epochs are drawn."""
        return self.path / "pictures" / f"epoch-{epoch}.jpg"

    def log_step(self, number: int, values: Row) -> None:
        """Losses of step ``number`` (from 0), for TensorBoard."""
        import tensorflow as tf

        if number % LOG_EVERY == 0:
            with self._summary.as_default(step=number):
                for name, value in values.items():
                    tf.summary.scalar(f"step/{name}", value)

    def log_epoch(self, history: Sequence[Row]) -> None:
        """Write the history up to and with the last epoch as table, plots and TensorBoard scalars."""
        import tensorflow as tf

        write_history(self.path / "history.csv", history, self._changes)
        plot_history(self.path / "curves.png", history)
        with self._summary.as_default(step=int(history[-1]["epoch"])):
            for name, value in history[-1].items():
                tf.summary.scalar(f"epoch/{name}", value)
        self._summary.flush()


def write_history(path: Path, history: Sequence[Row], changes: Mapping[str, str] | None = None) -> None:
    """One line per epoch; a column that an epoch lacks stays empty.

    ``changes`` are those of ``RunConfig``; each stands in the line of the first epoch that it applies to.
    """
    columns = list(dict.fromkeys(name for row in (history[-1], *history) for name in row))
    texts = {int(done) + 1: text for done, text in (changes or {}).items()}
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, "change"] if texts else columns)
        writer.writeheader()
        for row in history:
            change = {"change": texts[int(row["epoch"])]} if int(row["epoch"]) in texts else {}
            writer.writerow(row | change)


def plot_history(path: Path, history: Sequence[Row]) -> None:
    """Losses, average precision and learning rate over the epochs, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    every = dict.fromkeys(name for row in history for name in row)
    panels = [
        ("loss", [name for name in every if name.startswith(("rpn_", "mrcnn_")) or name == "loss"]),
        ("average precision", sorted(name for name in every if name.endswith(("_ap", "_ap50")))),
        ("learning rate", ["learning_rate"]),
    ]
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name in names:
            rows = [row for row in history if name in row]
            axes.plot([row["epoch"] for row in rows], [row[name] for row in rows], label=name, marker=".")
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if names:
            axes.legend(fontsize="small")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100)
