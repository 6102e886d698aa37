"""The candidates of one model: turns, then batches, curves and fresh processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blu_export.benchmark.candidates import Candidate
from blu_export.benchmark.cold import measure_cold
from blu_export.benchmark.curves import LARGE_PHOTO, around_the_network, measure_curves
from blu_export.benchmark.row import Row
from blu_export.benchmark.settings import Settings
from blu_export.benchmark.timing import NOISY_SPREAD, Timing, enough_of, median_seconds, settled, take_turns
from blu_export.detector import STAGES, Detector
from blu_export.errors import BluError
from blu_export.extras import import_extra, missing_extra
from blu_export.image import canvas_of, decode, mold
from blu_export.runtime.tuning import precision_path, remember

LARGE_INSTANCES = 100
LONG_BATCH_S = 12
"""When a batch takes this long, larger ones add nothing new."""
SLOW_S = 3
"""A network that takes longer for a photo gets no curves, and is not tried with one photo a core."""
Say = Callable[[str], None]


class ModelRun:
    """The candidates of one model, measured into ``result``."""

    def __init__(self, model: str, photo: Path, settings: Settings, result: dict[str, Any], say: Say) -> None:
        self.model = model
        self.photo = photo
        self.encoded = photo.read_bytes()
        self.settings = settings
        self.result = result
        self.say = say
        self.large: dict[str, float] = {}
        """Seconds of decode, mold and unmold on 12 megapixels with LARGE_INSTANCES instances."""

    def measure(self, candidates: Sequence[Candidate]) -> None:
        """Add rows, what was skipped, and facts about the model to the result."""
        detectors = {}
        for candidate in candidates:
            self.say(f"loading {candidate.name}")
            if (detector := self._open(candidate)) is not None:
                detectors[candidate] = detector
        if not detectors:
            return
        rows = self._turns(detectors)
        slow = any(c.ours and row.stages["run"] > SLOW_S for c, row in rows.items())
        if not slow:
            self._curves(detectors)
        for detector in detectors.values():
            detector.runner.close()
        detectors.clear()
        # From here on one at a time: large batches of all of them at once do not fit into memory.
        lanes: dict[tuple[Path, str], int] = {}
        for candidate, row in rows.items():
            rates = self._rates(candidate) if candidate.ours or candidate.file else {}
            row.photos_per_second = rates
            if candidate.key is not None:
                if not slow:
                    lanes[candidate.key] = self._lanes(candidate, rates)
                if self.settings.profile and candidate.runtime == "onnxruntime":
                    row.onnx_stages = self._profile(candidate.key[0])
            own = candidate.file is not None and candidate.device is None and candidate.precision != "bf16"
            if self.settings.cold and own:
                row.fresh_process = self._cold(candidate)
        self.result["rows"] += [row.to_json() for row in rows.values()]
        self._remember(rows, lanes)

    def _open(self, candidate: Candidate) -> Detector | None:
        try:
            return settled(candidate.open(self.settings.threads), self.encoded)
        except BluError as error:
            why = str(error)
        except ModuleNotFoundError as error:
            if (missing := missing_extra(error)) is None:
                raise
            why = str(missing)
        self.say(f"skipped {candidate.name}: {why}")
        self.result["skipped"].append({"name": candidate.name, "why": why})
        return None

    def _turns(self, detectors: dict[Candidate, Detector]) -> dict[Candidate, Row]:
        """A row for each candidate, from interleaved calls on one photo."""
        settings = self.settings
        times: dict[Candidate, list[dict[str, float]]] = {candidate: [] for candidate in detectors}

        def once(candidate: Candidate, detector: Detector) -> Callable[[], None]:
            def action() -> None:
                detector(self.encoded)
                times[candidate].append(dict(detector.timings))

            return action

        total = settings.repeats + settings.warmup
        rounds = take_turns(
            {candidate.name: once(candidate, detector) for candidate, detector in detectors.items()},
            settings.repeats,
            settings.warmup,
            lambda done: self.say(f"{self.model}: round {done} of {total}"),
            settings.limit_s,
        )
        self.result["spread"] = max(self.result["spread"], rounds.spread)
        work = self._facts(detectors)
        rows: dict[Candidate, Row] = {}
        for candidate, detector in detectors.items():
            stages = times[candidate][settings.warmup :]
            medians = {stage: float(np.median([s[stage] for s in stages])) for stage in STAGES}
            row = Row(
                model=self.model,
                runtime=candidate.shown,
                precision=detector.runner.precision,
                device=detector.runner.device,
                ours=candidate.ours,
                detections=len(detector(self.encoded)),
                end_to_end=Timing.of(rounds.seconds[candidate.name]),
                stages=medians,
                around_large=_share(self.large, medians["run"]),
                notes=dict(candidate.notes),
            )
            if candidate.same_network and (flops := work.get(candidate.canvas)):
                row.flops_per_second = flops / medians["run"]
                peak = self.result["peaks"].get(row.precision)
                if peak and row.device == "CPU":
                    row.share_of_peak = row.flops_per_second / peak
            rows[candidate] = row
            self.say(f"{candidate.name}: {1000 * row.end_to_end.p50:.1f} ms a photo")
        return rows

    def _facts(self, detectors: dict[Candidate, Detector]) -> dict[str, float]:
        """Fill in what holds for the model in every runtime; returns its FLOPs by canvas."""
        reference = next(iter(detectors.values()))
        spec, found = reference.spec, len(reference(self.encoded))
        work = self._flops(detectors, found)
        stages = next(iter(work.values()), {})
        self.large = around_the_network(spec, LARGE_PHOTO, LARGE_INSTANCES, self.settings.rounds)
        self.result["models"][self.model] = {
            "canvas": spec.largest_canvas,
            "backbone": spec.backbone,
            "classes": spec.num_classes,
            "detections": found,
            "gflop": sum(stages.values()) / 1e9 if stages else None,
            "gflop_by_stage": {name: work / 1e9 for name, work in stages.items()},
            "around_12mp_100_instances": self.large,
        }
        return {canvas: sum(by_stage.values()) for canvas, by_stage in work.items()}

    def _flops(self, detectors: dict[Candidate, Detector], found: int) -> dict[str, dict[str, float]]:
        """FLOPs by canvas and stage of our float32 files; empty where there are none, or no ``onnx`` to read them."""
        work: dict[str, dict[str, float]] = {}
        for candidate, detector in detectors.items():
            if candidate.key is None or candidate.precision != "float32" or candidate.canvas in work:
                continue
            try:
                onnx = import_extra("onnx")
            except BluError as error:
                self.say(f"FLOPs are not counted: {error}")
                return {}
            from blu_export.benchmark.flops import count_flops

            photo = decode(self.encoded, channels=detector.spec.image_channel_count)
            canvas = canvas_of(photo.shape[0], photo.shape[1], detector.spec)
            work[candidate.canvas] = count_flops(onnx.load(candidate.key[0]), canvas, found).by_stage
        return work

    def _rates(self, candidate: Candidate) -> dict[str, float]:
        """Photos per second of a list, by batch size.

        A runner that takes one photo only has no more figures, nor has one whose batches take longer than LONG_BATCH_S.
        """
        rates: dict[str, float] = {}
        detector = settled(candidate.open(self.settings.threads), self.encoded)
        with detector.runner:
            for batch in self.settings.batches:
                self.say(f"batch {batch}: {candidate.name}")
                photos = [self.encoded] * max(batch, 2)

                def action(photos: list[bytes] = photos, batch: int = batch) -> object:
                    return detector(photos, batch=batch)

                try:
                    seconds = median_seconds(action, self.settings.rounds)
                except BluError:
                    continue
                rates[str(batch)] = len(photos) / seconds
                if seconds > LONG_BATCH_S:
                    break
        return rates

    def _lanes(self, candidate: Candidate, rates: dict[str, float]) -> int:
        """Photos per second with one photo a core; returns the better number of lanes."""
        threads = self.settings.threads
        if threads < 2:
            return 1
        self.say(f"one photo a core: {candidate.name}")
        detector = settled(candidate.open(1), self.encoded)
        with detector.runner:
            detector.runner.lanes = threads
            photos = [self.encoded] * (2 * threads)
            rate = len(photos) / median_seconds(lambda: detector(photos), self.settings.rounds)
        rates["one a core"] = rate
        return threads if rate > rates["1"] else 1

    def _curves(self, detectors: dict[Candidate, Detector]) -> None:
        if not self.settings.curves:
            return
        for candidate, detector in detectors.items():
            if candidate.key and candidate.precision == "float32" and detector.spec.largest_canvas:
                try:
                    import_extra("onnx")
                except BluError as error:
                    self.say(f"the curves are left out: {error}")
                    return
                self.say(f"curves: {candidate.name}")
                self.result["models"][self.model]["curves"] = measure_curves(
                    candidate.key[0], detector.runner, self.settings.threads, self.settings.rounds, self.say
                )
                return

    def _profile(self, path: Path) -> dict[str, float]:
        from blu_export.benchmark.onnx_stages import profile_stages
        from blu_export.runtime.onnx_file import read_onnx, spec_of

        self.say(f"profiling {path.name}")
        spec = spec_of(read_onnx(path), str(path))
        molded = mold(decode(self.encoded, channels=spec.image_channel_count), spec)
        window = np.asarray(molded.window, np.float32)[None]
        return profile_stages(path, molded.canvas[None], window, self.settings.threads, max(3, self.settings.rounds))

    def _cold(self, candidate: Candidate) -> dict[str, float] | None:
        """Medians over fresh processes, figure by figure; the first one, which fills the cache, does not count."""
        assert candidate.file is not None
        self.say(f"fresh process: {candidate.name}")
        runtime = candidate.runtime.partition(" ")[0]
        file = candidate.file
        try:
            runs = enough_of(
                lambda: measure_cold(file, self.photo, runtime), self.settings.rounds, lambda run: run["first_result_s"]
            )
        except BluError as error:
            self.say(f"skipped: {error}")
            return None
        return {key: float(np.median([run[key] for run in runs])) for key in runs[0]}

    def _remember(self, rows: dict[Candidate, Row], lanes: dict[tuple[Path, str], int]) -> None:
        seconds = {c.key: row.stages["run"] for c, row in rows.items() if c.key is not None}
        if not seconds or not self.settings.remember:
            return
        if self.result["spread"] > NOISY_SPREAD:
            self.say("the machine was too noisy: --runtime auto does not learn from this run")
            return
        remember(precision_path(next(iter(seconds))[0], "float32"), seconds, lanes)


def _share(around: dict[str, float], run: float) -> float:
    """Share of all time that is not the network, were it to see such a photo."""
    outside = sum(around.values())
    return outside / (outside + run)
