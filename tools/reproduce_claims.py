#!/usr/bin/env python3
"""CenterX's claims in miniature: distillation, several teachers, the adaptive loss, each against what it replaces."""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.utils.env import seed_all_rng  # noqa: E402

import centerx  # noqa: E402, F401  (registers its models and recipe)
import plain_detr  # noqa: E402, F401
from d2x.data.cache import write_atomically  # noqa: E402
from d2x.data.shapes import CLASSES, ShapesSpec, register_shapes_dataset  # noqa: E402
from d2x.engine.errors import one_line_errors  # noqa: E402
from d2x.engine.load_cfg import load_cfg, prepare_data  # noqa: E402
from d2x.engine.logs import setup_logs  # noqa: E402
from d2x.engine.trainer import Trainer  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "projects/CenterX/configs/quickstart.yaml"
A, B = CLASSES[:2], CLASSES[2:]
PSEUDO_THRESHOLD = 0.4
COLLAPSED = 1.0  # AP below which a run counts as collapsed


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is.

    Args:
        images: of each training set; unlabelled: of the extra set without labels; val: of each validation set.
        teacher_iterations, student_iterations, batch: of the runs.
        teacher_widths, student_widths: of the backbone's stages.
        teacher_neck, student_neck: channels of the neck's stages; the last is the head's too.
    """

    images: int
    unlabelled: int
    val: int
    teacher_iterations: int
    student_iterations: int
    batch: int
    teacher_widths: tuple[int, ...]
    student_widths: tuple[int, ...]
    teacher_neck: tuple[int, ...]
    student_neck: tuple[int, ...]
    device: str = "cpu"
    workers: int = 0


SCALES = {
    "tiny": Scale(8, 8, 8, 2, 2, 2, (8, 12, 16, 20), (4, 8, 12, 16), (16, 8, 8), (8, 8, 8)),
    "cpu": Scale(1000, 1000, 300, 1500, 800, 16, (24, 48, 96, 192), (8, 16, 32, 64), (96, 48, 48), (32, 24, 24)),
    "gpu": Scale(
        4000, 8000, 1000, 8000, 4000, 32, (64, 128, 256, 512), (16, 32, 64, 128), (256, 128, 128), (64, 48, 48),
        device="cuda", workers=8,
    ),
}  # fmt: skip


def register_data(scale: Scale) -> None:
    """The data sets of all runs; drawn on first use."""
    specs = {
        "claims_train": ShapesSpec(scale.images, seed=1),
        "claims_val": ShapesSpec(scale.val, seed=2),
        "claims_a_train": ShapesSpec(scale.images, seed=3, annotated=A),
        "claims_b_train": ShapesSpec(scale.images, seed=4, annotated=B),
        "claims_a_val": ShapesSpec(scale.val, seed=2, annotated=A),
        "claims_b_val": ShapesSpec(scale.val, seed=2, annotated=B),
        "claims_unlabelled": ShapesSpec(scale.unlabelled, seed=5, annotated=()),
    }
    for name, spec in specs.items():
        register_shapes_dataset(name, spec)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Args:
        name: of the row or of what a row needs.
        opts: config overrides.
        needs: names of runs of the same seed that teach and must be done before.
        pseudo: make the training set from the teachers' detections first; otherwise they distil.
    """

    name: str
    opts: tuple = ()
    needs: tuple[str, ...] = ()
    pseudo: bool = False

    def key(self, scale: Scale, seed: int, runs: dict[str, "Run"]) -> str:
        """Hash of everything that the result depends on, needed runs included."""
        content = [dataclasses.asdict(scale), seed, self.name, self.opts, self.pseudo, QUICKSTART.read_text()]
        content += [runs[name].key(scale, seed, runs) for name in self.needs]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:10]


def network(widths: Sequence[int], neck: Sequence[int], iterations: int, scale: Scale) -> tuple:
    warmup = max(1, iterations // 20)
    return (
        *("MODEL.SMALL_RESNET.WIDTHS", list(widths), "MODEL.CENTERNET.NECK.CHANNELS", list(neck)),
        *("MODEL.CENTERNET.HEAD_CHANNELS", neck[-1], "MODEL.DEVICE", scale.device),
        *("SOLVER.MAX_ITER", iterations, "SOLVER.WARMUP_ITERS", warmup, "SOLVER.IMS_PER_BATCH", scale.batch),
        *("SOLVER.CHECKPOINT_PERIOD", max(1, iterations // 4), "TEST.EVAL_PERIOD", 0),
        *("DATALOADER.NUM_WORKERS", scale.workers),
    )


def data(train: Sequence[str], val: Sequence[str], classes: Sequence[str] = CLASSES) -> tuple:
    return (
        *("DATASETS.TRAIN_SOURCES", list(train), "DATASETS.VAL_SOURCES", list(val)),
        *("DATASETS.CLASS_NAMES", list(classes)),
    )


def all_runs(scale: Scale) -> dict[str, Run]:
    """Every run by its name, each after those it needs."""
    teacher = network(scale.teacher_widths, scale.teacher_neck, scale.teacher_iterations, scale)
    student = network(scale.student_widths, scale.student_neck, scale.student_iterations, scale)
    distilled = ("MODEL.META_ARCHITECTURE", "DistilledCenterNet", "DISTILL.NORM_SIZE", True)
    label_free = (*distilled, "DISTILL.LABELS", False)
    train, val = data(["claims_train"], ["claims_val"]), ["claims_a_val", "claims_b_val"]
    more = data(["claims_train", "claims_unlabelled"], ["claims_val"])
    union = data(["claims_a_train", "claims_b_train"], val)
    sgd = (*student, *train, *("SOLVER.OPTIMIZER", "SGD", "SOLVER.CLIP_GRADIENTS.ENABLED", False))
    sgd = (*sgd, "SOLVER.WEIGHT_DECAY", 0.0001)
    adaptive = ("ADAPTIVE_LOSS.ENABLED", True, "SOLVER.FLAT_FRACTION", 0.0)
    found = [
        Run("teacher", (*teacher, *train)),
        Run("student", (*student, *train)),
        Run("student_kd", (*student, *train, *distilled), ("teacher",)),
        Run("student_label_free", (*student, *train, *label_free), ("teacher",)),
        Run("student_label_free_more_images", (*student, *more, *label_free), ("teacher",)),
        Run("student_self_kd", (*student, *train, *distilled), ("student",)),
        Run("teacher_a", (*teacher, *data(["claims_a_train"], ["claims_a_val"], A))),
        Run("teacher_b", (*teacher, *data(["claims_b_train"], ["claims_b_val"], B))),
        Run("only_a", (*student, *data(["claims_a_train"], ["claims_a_val"], A))),
        Run("only_b", (*student, *data(["claims_b_train"], ["claims_b_val"], B))),
        Run("as_negatives", (*student, *union, "MODEL.CENTERNET.LOSS.UNLABELLED", "none")),
        Run("ignore_unlabelled", (*student, *union)),
        Run("pseudo_labels", (*student, *data([], val)), ("teacher_a", "teacher_b"), pseudo=True),
        Run("two_teachers", (*student, *union, *label_free), ("teacher_a", "teacher_b")),
        Run("lr_tuned_plain", (*sgd, "SOLVER.BASE_LR", 0.02)),
        Run("lr_tuned_adaptive", (*sgd, *adaptive, "SOLVER.BASE_LR", 0.02)),
        Run("lr_large_plain", (*sgd, "SOLVER.BASE_LR", 0.5)),
        Run("lr_large_adaptive", (*sgd, *adaptive, "SOLVER.BASE_LR", 0.5)),
    ]
    return {run.name: run for run in found}


# Title, and rows of the table: (run, description).
TABLES = (
    (
        "One teacher: all labels on the same images",
        (
            ("teacher", "teacher, large"),
            ("student", "student, small, alone"),
            ("student_kd", "+ teacher"),
            ("student_label_free", "teacher only, no labels"),
            ("student_label_free_more_images", "teacher only, no labels, twice the images"),
            ("student_self_kd", "+ itself as teacher"),
        ),
    ),
    (
        "Two data sets, A labelled for two classes, B for the two others",
        (
            ("teacher_a", "teacher A, large"),
            ("teacher_b", "teacher B, large"),
            ("only_a", "student on A only"),
            ("only_b", "student on B only"),
            ("as_negatives", "student on A + B, unlabelled counted as background"),
            ("ignore_unlabelled", "student on A + B, unlabelled ignored"),
            ("pseudo_labels", "student on A + B, pseudo labels"),
            ("two_teachers", "student on A + B, two teachers, no labels"),
        ),
    ),
    (
        "Learning rate (SGD without clipping)",
        (
            ("lr_tuned_plain", "tuned rate, plain loss"),
            ("lr_tuned_adaptive", "tuned rate, adaptive loss"),
            ("lr_large_plain", "25 times the rate, plain loss"),
            ("lr_large_adaptive", "25 times the rate, adaptive loss"),
        ),
    ),
)


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
        """Each run in a process of its own, what is done already left alone."""
        left = [(name, seed) for seed in seeds for name in self.wanted(names) if self.result(name, seed) is None]
        waves: dict[int, list] = {}
        for name, seed in left:
            waves.setdefault(self._depth(name), []).append((name, seed))
        bar = tqdm(total=len(left), desc="claims", unit="run")
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            for depth in sorted(waves):
                futures = {pool.submit(self._subprocess, *one): one for one in waves[depth]}
                for future in concurrent.futures.as_completed(futures):
                    future.result()
                    bar.set_postfix_str(futures[future][0])
                    bar.update()
        bar.close()

    def _depth(self, name: str) -> int:
        return 1 + max((self._depth(other) for other in self.runs[name].needs), default=-1)

    def _subprocess(self, name: str, seed: int) -> None:
        folder = self.folder(name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--one", name, "--seeds", str(seed), "--scale", self.scale_name]
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {"OMP_NUM_THREADS": threads, **os.environ, "PYTHONPATH": path}
        with (folder / "output.txt").open("w") as log:
            done = subprocess.run([*command, "--output", str(self.output)], stdout=log, stderr=log, env=env)
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
        write_atomically(folder / "config.yaml", cfg.dump())
        result = {"seed": seed, "diverged": False, "AP": {}}
        try:
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=True)
            trainer.train()
            results = getattr(trainer, "_last_eval_results", None) or trainer.test(cfg, trainer.model)
            result["AP"] = self._scores(cfg, results)
        except FloatingPointError as error:  # detectron2's for a loss that is not finite: the run has collapsed
            result.update(diverged=True, message=" ".join(str(error).split()), AP=dict.fromkeys(cfg.DATASETS.TEST, 0.0))
        write_atomically(folder / "result.json", json.dumps(result, indent=1))
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


def columns(result: dict) -> dict[str, float]:
    """AP by column: "all", "A", "B"."""
    names: dict[str, Callable[[str], bool]] = {
        "all": lambda name: name.startswith("claims_val"),
        "A": lambda name: name.startswith("claims_a_val"),
        "B": lambda name: name.startswith("claims_b_val"),
    }
    return {column: value for column, fits in names.items() for name, value in result["AP"].items() if fits(name)}


def mean_and_spread(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {spread:.1f}"


def write_table(claims: Claims, seeds: Sequence[int], names: Sequence[str]) -> Path:
    """``claims.md``: mean and standard deviation over the seeds of every row that is done."""
    lines = [
        "# CenterX's claims in miniature",
        "",
        f"COCO AP on the embedded data set, mean ± standard deviation over seeds {', '.join(map(str, seeds))}.",
        f"Collapsed are runs whose loss became NaN or whose AP ended below {COLLAPSED:g}. Made by",
        "",
        f"    python tools/reproduce_claims.py --scale {claims.scale_name} --seeds {' '.join(map(str, seeds))}",
        "",
        f"Sizes: {dataclasses.asdict(claims.scale)}.",
    ]
    for title, rows in TABLES:
        lines += ["", f"## {title}", "", "| run | AP | AP on A's classes | AP on B's classes | collapsed |"]
        lines.append("|---|---|---|---|---|")
        for name, text in rows:
            results = [result for seed in seeds if (result := claims.result(name, seed))]
            if name not in names or not results:
                continue
            cells = [columns(result) for result in results]
            shown = []
            for column in ("all", "A", "B"):
                values = [cell[column] for cell in cells if column in cell]
                shown.append(mean_and_spread(values) if values else "")
            collapsed = sum(r["diverged"] or max(r["AP"].values()) < COLLAPSED for r in results)
            lines.append(f"| {text} | {' | '.join(shown)} | {collapsed} of {len(results)} |")
    path = claims.output / "claims.md"
    write_atomically(path, "\n".join(lines) + "\n")
    return path


def draw(claims: Claims, seeds: Sequence[int], path: Path) -> None:
    """One panel a table: bars are means, dots the seeds."""
    figure, panels = plt.subplots(1, len(TABLES), figsize=(6 * len(TABLES), 5), layout="constrained")
    for axes, (title, rows) in zip(panels, TABLES):
        labels = []
        for name, text in rows:
            results = [columns(result) for seed in seeds if (result := claims.result(name, seed))]
            for column, colour in (("all", "tab:gray"), ("A", "tab:blue"), ("B", "tab:orange")):
                values = [result[column] for result in results if column in result]
                if values:
                    y = len(labels)
                    axes.barh(y, statistics.mean(values), color=colour, alpha=0.6)
                    axes.plot(values, [y] * len(values), "k.", markersize=4)
                    labels.append(text if column == "all" else f"{text}: {column}")
        axes.set(title=title, xlabel="COCO AP", yticks=range(len(labels)), yticklabels=labels)
        axes.tick_params(axis="y", labelsize=7)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="only these and what they need; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--output", default="output/claims")
    parser.add_argument("--table-only", action="store_true", help="write the table of what is done")
    parser.add_argument("--one", metavar="RUN", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    known = list(all_runs(SCALES[args.scale]))
    unknown = [name for name in args.runs or [] if name not in known]
    if unknown:
        parser.error(f"unknown runs {', '.join(unknown)}; known: {', '.join(known)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the table and the picture."""
    args = parse_args(argv)
    claims = Claims(Path(args.output), args.scale, args.jobs)
    if args.one:
        claims.run_one(args.one, args.seeds[0])
        return
    names = args.runs or list(claims.runs)
    if not args.table_only:
        claims.run_all(names, args.seeds)
    table = write_table(claims, args.seeds, list(claims.runs))
    draw(claims, args.seeds, table.with_suffix(".png"))
    print(f"{table.read_text()}\n{table}, {table.with_suffix('.png')}")


if __name__ == "__main__":
    with one_line_errors():
        main()
