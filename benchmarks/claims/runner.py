"""Trains what is missing, several runs at a time, and keeps every result."""

import concurrent.futures
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from tqdm import tqdm

from benchmarks.claims.runs import QUICKSTART, ROOT, all_runs
from benchmarks.claims.scale import SCALES, register_data
from d2x.atomic_files import write_text
from d2x.config.load import load_cfg
from d2x.data.prepare import prepare_data
from d2x.data.sets.shapes import CLASSES
from d2x.engine.health.step_guard import TrainingDiverged
from d2x.engine.logs import setup_logs
from d2x.engine.trainer import Trainer

PSEUDO_THRESHOLD = 0.4


class Claims:
    """Runs trainings into a folder and keeps their results."""

    def __init__(self, output: Path, scale_name: str, jobs: int = 1):
        self.output, self.scale_name, self.jobs = output, scale_name, jobs
        self.scale = SCALES[scale_name]
        self.runs = all_runs(self.scale)
        register_data(self.scale)

    def folder(self, name: str, seed: int) -> Path:
        """Where a run writes; another setting is another folder, so a result is never mistaken for another's."""
        return self.output / "runs" / f"{name}_seed{seed}_{self.runs[name].key(self.scale, seed, self.runs)}"

    def result(self, name: str, seed: int) -> dict | None:
        """AP by data set, if the run is done."""
        path = self.folder(name, seed) / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def wanted(self, names: Sequence[str]) -> list[str]:
        """The runs and all they need, in an order in which they can be done."""
        needed = set()

        def add(name: str) -> None:
            for other in self.runs[name].needs:
                add(other)
            needed.add(name)

        for name in names:
            add(name)
        return [name for name in self.runs if name in needed]

    def run_all(self, names: Sequence[str], seeds: Sequence[int]) -> None:
        """Each run in a process of its own, what is done already left alone; seed by seed, so that what is interrupted
        has whole rows in it.

        Raises:
            ValueError: a run failed.
        """
        waiting = [(name, seed) for seed in seeds for name in self.wanted(names) if self.result(name, seed) is None]
        bar = tqdm(total=len(waiting), desc="claims", unit="run")
        running: dict[concurrent.futures.Future, tuple[str, int]] = {}
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool, bar:
            while waiting or running:
                for one in [one for one in waiting if self._ready(*one)][: self.jobs - len(running)]:
                    waiting.remove(one)
                    running[pool.submit(self._subprocess, *one)] = one
                done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    bar.set_postfix_str(running.pop(future)[0])
                    future.result()
                    bar.update()

    def _ready(self, name: str, seed: int) -> bool:
        return all(self.result(other, seed) is not None for other in self.runs[name].needs)

    def _subprocess(self, name: str, seed: int) -> None:
        folder = self.folder(name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "benchmarks.claims",
            "--one",
            name,
            "--seeds",
            str(seed),
            "--scale",
            self.scale_name,
            "--output",
            str(self.output),
        ]
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {"OMP_NUM_THREADS": threads, **os.environ, "PYTHONPATH": path}
        with (folder / "output.txt").open("w") as log:
            done = subprocess.run(command, stdout=log, stderr=log, env=env)
        if done.returncode:
            last = (folder / "output.txt").read_text().strip().splitlines()[-1:]
            raise ValueError(f"run {name}, seed {seed} failed, see {folder / 'output.txt'}: {' '.join(last)}")

    def run_one(self, name: str, seed: int) -> dict:
        """Train (or go on), evaluate, write ``result.json``."""
        run, folder = self.runs[name], self.folder(name, seed)
        opts = [str(value) for value in (*run.opts, "OUTPUT_DIR", folder, "SEED", seed + 1)]
        teachers = [self.folder(other, seed) for other in run.needs]
        files = [(str(path / "config.yaml"), str(path / "model_final.pth")) for path in teachers]
        if run.pseudo:
            json_file = self._pseudo_labels(folder, files)
            opts += ["DATASETS.TRAIN_SOURCES", str([[str(json_file), "/"]])]
        elif files:
            entries = [{"CONFIG": config, "WEIGHTS": weights} for config, weights in files]
            opts += ["DISTILL.TEACHERS", str(entries)]
        cfg = prepare_data(load_cfg(str(QUICKSTART), opts))
        setup_logs(cfg.OUTPUT_DIR)
        seed_all_rng(cfg.SEED)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", cfg.dump())
        result = {"seed": seed, "diverged": False, "AP": {}}
        try:
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=True)
            trainer.train()
            if not (folder / "model_final.pth").exists():
                raise ValueError(f"{folder}: a signal has stopped it before its end; the same command goes on")
            results = getattr(trainer, "_last_eval_results", None) or trainer.test(cfg, trainer.model)
            result["AP"] = self._scores(cfg, results)
        except (TrainingDiverged, FloatingPointError) as error:  # the latter is detectron2's
            result.update(diverged=True, message=" ".join(str(error).split()), AP=dict.fromkeys(cfg.DATASETS.TEST, 0.0))
        write_text(folder / "result.json", json.dumps(result, indent=1))
        return result

    def _pseudo_labels(self, folder: Path, teachers: Sequence[tuple[str, str]]) -> Path:
        output = folder / "pseudo.json"
        if not output.exists():
            arguments = [part for pair in teachers for part in ("--teacher", *pair)]
            for name in ("claims_a_train", "claims_b_train"):
                DatasetCatalog.get(name)  # draws it, if nobody has
                metadata = MetadataCatalog.get(name)
                arguments += ["--data", metadata.json_file, metadata.image_root]
            arguments += ["--classes", *CLASSES, "--threshold", str(PSEUDO_THRESHOLD), "--device", self.scale.device]
            tool = str(ROOT / "tools" / "make_pseudo_labels.py")
            command = [sys.executable, tool, *arguments, "--image-root", "/", "--output", str(output)]
            subprocess.run(command, check=True)
        return output

    @staticmethod
    def _scores(cfg, results: dict) -> dict[str, float]:
        by_set = results if "bbox" not in results else {cfg.DATASETS.TEST[0]: results}
        scores = {name: float(found["bbox"]["AP"]) for name, found in by_set.items()}
        return {name: 0.0 if math.isnan(value) else value for name, value in scores.items()}  # NaN: nothing found
