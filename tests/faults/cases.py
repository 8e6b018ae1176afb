"""Faults, one function each: injects it into a small training, and says what was promised and what happened."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from d2x.atomic_files import atomic_write
from d2x.checkpoint.fingerprint import differences
from tests.faults.tiny_run import (
    LIMITED,
    READ_ONLY,
    RICH,
    command,
    errors,
    interrupt,
    kill_at_random,
    last_checkpoint,
    leftovers,
    processes_below,
    run,
    start,
    torchrun,
    wait,
    wait_for_checkpoint,
)


class Outcome(NamedTuple):
    """One row of the table."""

    injected: str
    promised: str
    happened: str
    kept: bool


class Place(NamedTuple):
    """Where a case works."""

    output: Path  # of its training
    log: Path  # what is printed
    whole: Path  # the run that nothing happens to
    kills: int
    seed: int


OPTS = [*RICH, "SOLVER.MAX_ITER", 30]
SAME = "the end is the same, bit for bit"


def same_end(place: Place, opts=OPTS, whole: Path | None = None) -> tuple[str, bool]:
    """Resume to the end; what came out."""
    status = run(command(place.output, *opts), place.log)
    if status:
        return f"resuming failed: {(errors(place.log) or [f'exit status {status}'])[-1]}", False
    one, other = (
        torch.load(folder / "model_final.pth", weights_only=True) for folder in (whole or place.whole, place.output)
    )
    different, left = differences(one, other), leftovers(place.output)
    text = f"{len(different)} differences" if different else "identical end"
    return f"{text}, {len(left)} temporary files", not different and not left


def part_way(place: Place, number: int = signal.SIGTERM, opts=OPTS) -> int:
    """Train for a moment and stop; returns the exit status."""
    return interrupt(command(place.output, *opts), place.output, place.log, number, random.Random(place.seed))


def sigkill(place: Place) -> Outcome:
    """Kills at random moments: a quarter during the start, the others during steps, saves and evaluations."""
    opts = [*RICH, "SOLVER.MAX_ITER", 12 * place.kills, "TEST.EVAL_PERIOD", 7, "CHECKPOINT.KEEP_BEST", "bbox/AP",
            "DATASETS.TEST", "('shapes_tiny_val',)"]  # fmt: skip
    place.output.mkdir(parents=True, exist_ok=True)
    whole = place.output.parent / "whole"
    if not (whole / "model_final.pth").exists():
        assert run(command(whole, *opts), place.log) == 0, place.log
    counter = place.output.parent / "kills.json"
    found = json.loads(counter.read_text()) if counter.exists() else {"kills": 0, "finished_before": 0}
    rng = random.Random(f"{place.seed} {found['kills']}")
    with tqdm(total=place.kills, initial=found["kills"], desc="kills", leave=False) as bar:
        while found["kills"] < place.kills:
            words = command(place.output, *opts, "DATALOADER.NUM_WORKERS", 1)
            ended = kill_at_random(words, place.output, place.log, rng, start=3, steps=0.6)
            found["kills" if ended == -signal.SIGKILL else "finished_before"] += 1
            bar.update(ended == -signal.SIGKILL)
            with atomic_write(counter) as file:
                file.write(json.dumps(found).encode())
            if ended != -signal.SIGKILL:
                break
    text, same = same_end(place, opts, whole)
    enough = found["kills"] >= place.kills
    return Outcome(f"{found['kills']} SIGKILLs at random moments of one run", SAME, f"{text}", same and enough)


def sigterm(place: Place) -> Outcome:
    statuses = [part_way(place, number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM)]
    messages = place.log.read_text().count("stopped after iteration")
    text, same = same_end(place)
    return Outcome(
        "SIGTERM, SIGINT, SIGTERM",
        f"each: step finished, state saved, message, exit status 0; {SAME}",
        f"exit statuses {statuses}, {messages} messages; {text}",
        same and statuses == [0, 0, 0] and messages == 3,
    )


def disk_full(place: Place) -> Outcome:
    """A small file system of its own, or, without root, a limit on the size of files."""
    part_way(place)
    before = last_checkpoint(place.output)
    with small_disk(place.output) as mounted:
        python = (sys.executable,) if mounted else (sys.executable, "-c", LIMITED)
        status = run(command(place.output, *OPTS, python=python), place.log)
        found, intact = errors(place.log), last_checkpoint(place.output) == before
        left = leftovers(place.output)
    text, same = same_end(place)
    return Outcome(
        "disk full" if mounted else "disk full (limit on file size)",
        f"one line, exit status 1, the state before is intact; {SAME}",
        f"exit status {status}, `{(found or ['no line'])[-1].replace(str(place.output), 'OUTPUT')}`,"
        f" {'intact' if intact else 'lost'}; {text}",
        same and status == 1 and len(found) == 1 and intact and not left,
    )


@contextlib.contextmanager
def small_disk(folder: Path):
    """Mount a disk with hardly more room than there is data over a folder, and copy back what is on it afterwards."""
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    mounted = _quietly("mount", "-t", "tmpfs", "-o", f"size={used + 150_000}", "tmpfs", folder)
    try:
        if mounted:
            shutil.copytree(copy, folder, dirs_exist_ok=True)
        yield mounted
        if mounted:
            shutil.rmtree(copy)
            shutil.copytree(folder, copy)
    finally:
        if mounted:
            _quietly("umount", folder)
            shutil.copytree(copy, folder, dirs_exist_ok=True)
        shutil.rmtree(copy)


def read_only(place: Place) -> Outcome:
    part_way(place)
    before = last_checkpoint(place.output)
    mounted = _quietly("mount", "--bind", place.output, place.output) and _quietly(
        "mount", "-o", "remount,ro,bind", place.output
    )
    if not mounted:
        os.chmod(place.output, 0o555)
    python = (sys.executable,) if mounted else (sys.executable, "-c", READ_ONLY)
    status = run(command(place.output, *OPTS, python=python), place.log)
    if mounted:
        _quietly("umount", place.output)
    else:
        os.chmod(place.output, 0o755)
    found, intact = errors(place.log), last_checkpoint(place.output) == before
    text, same = same_end(place)
    return Outcome(
        "output folder made read-only",
        f"one line, exit status 1; writable again: {SAME}",
        f"exit status {status}, `{(found or ['no line'])[-1].replace(str(place.output), 'OUTPUT')}`; {text}",
        same and status == 1 and len(found) == 1 and intact,
    )


def _quietly(*words) -> bool:
    try:
        return subprocess.run(list(map(str, words)), capture_output=True).returncode == 0
    except OSError:
        return False


def damaged(what: str, damage: Callable[[Path], None]) -> Callable[[Place], Outcome]:
    """A case: the newest checkpoint is damaged in some way."""

    def case(place: Place) -> Outcome:
        part_way(place, signal.SIGKILL)
        part_way(place)
        newest = place.output / last_checkpoint(place.output)
        damage(newest)
        mark = place.log.stat().st_size
        text, same = same_end(place)
        printed = place.log.read_bytes()[mark:].decode()
        warned = f"{newest}: " in printed and "going on from " in printed
        return Outcome(
            f"newest checkpoint: {what}",
            f"warning that names it and the one taken instead; {SAME}",
            f"{'warned' if warned else 'no warning'}; {text}",
            same and warned,
        )

    return case


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def all_damaged(place: Place) -> Outcome:
    part_way(place)
    for file in place.output.glob("model_*.pth"):
        file.write_bytes(file.read_bytes()[:5000])
    status, found = run(command(place.output, *OPTS), place.log), errors(place.log)
    line = (found or ["no line"])[-1]
    return Outcome(
        "every checkpoint cut off",
        "one line that names them, exit status 1; not a silent start from nothing",
        f"exit status {status}, `{line.replace(str(place.output), 'OUTPUT')[:110]}...`",
        status == 1 and "no checkpoint in" in line,
    )


class _RunsCode:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def hostile(place: Place) -> Outcome:
    part_way(place)
    mark = place.output.parent / "code_was_run"
    torch.save({"model": _RunsCode(mark)}, place.output / last_checkpoint(place.output))
    status, found = run(command(place.output, *OPTS), place.log), errors(place.log)
    return Outcome(
        "checkpoint with pickled code in place of the newest",
        "refused with an explanation, the code is not run",
        f"exit status {status}, {'refused' if found and 'refused' in found[-1] else 'not refused'},"
        f" code {'was' if mark.exists() else 'was not'} run",
        status == 1 and bool(found) and "refused" in found[-1] and not mark.exists(),
    )


def not_finite(place: Place) -> Outcome:
    opts = [*OPTS, "SOLVER.BASE_LR", 1e30, "SOLVER.CLIP_GRADIENTS.ENABLED", False, "ADAPTIVE_LOSS.ENABLED", False]
    status, found = run(command(place.output, *opts), place.log), errors(place.log)
    bundles = sorted((place.output / "diagnostics").glob("*/*"))
    skipped = place.log.read_text().count("step skipped")
    return Outcome(
        "a learning rate of 1e30",
        "steps that are not finite are skipped and named; after 10 in a row one line, and batch, config, weights saved",
        f"{skipped} skipped, exit status {status}, saved {', '.join(file.name for file in bundles)}",
        status == 1 and skipped == 10 and len(bundles) == 4 and len(found) == 1,
    )


PAIR = ["SOLVER.MAX_ITER", 12, "SOLVER.IMS_PER_BATCH", 4]
FLAGS = ("--resume", "--num-processes", 2, "--dist-url", "auto")


def whole_pair(place: Place) -> Path:
    output = place.output.parent / "whole"
    assert run(command(output, *PAIR, flags=FLAGS), place.log) == 0, place.log
    return output


def process_dies(place: Place) -> Outcome:
    whole = whole_pair(place)
    process = start(command(place.output, *PAIR, flags=FLAGS), place.log)
    wait_for_checkpoint(process, place.output, "")
    os.kill(processes_below(process.pid, "spawn_main")[-1], signal.SIGKILL)
    status, found = wait(process), errors(place.log)
    assert run(command(place.output, *PAIR, flags=FLAGS), place.log) == 0, place.log
    same = not differences(*(torch.load(o / "model_final.pth", weights_only=True) for o in (whole, place.output)))
    return Outcome(
        "one of two processes killed",
        f"the job ends with a line about it; resumed: {SAME}",
        f"exit status {status}, `{(found or ['no line'])[-1]}`; {'identical end' if same else 'another end'}",
        same and status == 1 and bool(found) and "SIGKILL" in found[-1],
    )


def stop_pair(place: Place) -> Outcome:
    whole = whole_pair(place)
    process = start(command(place.output, *PAIR, flags=FLAGS), place.log)
    wait_for_checkpoint(process, place.output, "")
    os.kill(process.pid, signal.SIGTERM)  # the launcher alone gets it
    status, messages = wait(process), place.log.read_text().count("SIGTERM: stopped after iteration")
    assert run(command(place.output, *PAIR, flags=FLAGS), place.log) == 0, place.log
    same = not differences(*(torch.load(o / "model_final.pth", weights_only=True) for o in (whole, place.output)))
    return Outcome(
        "SIGTERM to the launcher of two processes",
        f"both finish the step, state saved, exit status 0; resumed: {SAME}",
        f"exit status {status}, {messages} message; {'identical end' if same else 'another end'}",
        same and status == 0 and messages == 1,
    )


def process_dies_under_torchrun(place: Place) -> Outcome:
    whole = whole_pair(place)
    earlier = _starts(place)
    python = torchrun("--standalone", "--nproc-per-node", 2, "--max-restarts", 3)
    process = start(command(place.output, *PAIR, flags=(), python=python), place.log)
    wait_for_checkpoint(process, place.output, "")
    os.kill(processes_below(process.pid, "train_net")[-1], signal.SIGKILL)
    status = wait(process)
    same = not differences(*(torch.load(o / "model_final.pth", weights_only=True) for o in (whole, place.output)))
    starts = _starts(place) - earlier
    return Outcome(
        "one of two processes killed under `torchrun --max-restarts 3`",
        f"started again without being asked to; {SAME}",
        f"exit status {status}, {starts} starts; {'identical end' if same else 'another end'}",
        same and status == 0 and starts == 2,
    )


def _starts(place: Place) -> int:
    return place.log.read_text().count("Starting training from iteration")


CASES: dict[str, Callable[[Place], Outcome]] = {
    "sigkill": sigkill,
    "sigterm": sigterm,
    "disk_full": disk_full,
    "read_only": read_only,
    "flipped_bit": damaged("one bit flipped", flip_bit),
    "cut_off": damaged("cut off", lambda path: path.write_bytes(path.read_bytes()[:-1000])),
    "empty": damaged("empty", lambda path: path.write_bytes(b"")),
    "missing": damaged("deleted, so that `last_checkpoint` points at nothing", lambda path: path.unlink()),
    "all_damaged": all_damaged,
    "hostile": hostile,
    "not_finite": not_finite,
    "process_dies": process_dies,
    "stop_pair": stop_pair,
    "torchrun": process_dies_under_torchrun,
}
