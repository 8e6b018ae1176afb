"""The claims benchmark: order, caching keys, table and picture without its trainings, and one run of two steps."""

import json

import pytest

from benchmarks.claims.__main__ import main
from benchmarks.claims.runner import Claims
from benchmarks.claims.runs import Run
from benchmarks.claims.table import TABLES, draw, write_table
from d2x.engine.trainer import Trainer


@pytest.fixture
def claims(tmp_path):
    return Claims(tmp_path, "tiny")


def test_needed_runs_come_first(claims):
    assert claims.wanted(["two_teachers"]) == ["teacher_a", "teacher_b", "two_teachers"]


def test_a_result_belongs_to_its_settings_and_to_those_of_its_teachers(claims):
    before = claims.folder("student_kd", 0)
    claims.runs["teacher"] = Run("teacher", ("SOLVER.BASE_LR", 1.0))
    assert claims.folder("student_kd", 0) != before
    assert claims.folder("student_kd", 1) != claims.folder("student_kd", 0)


def test_every_row_of_the_tables_is_a_run(claims):
    assert {name for _, rows in TABLES for name, _ in rows} == set(claims.runs)


def write(claims, name, seed, scores, diverged=False):
    folder = claims.folder(name, seed)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"seed": seed, "diverged": diverged, "AP": scores}))


def test_table_has_mean_spread_and_collapses(claims):
    for seed, value in ((0, 10.0), (1, 14.0)):
        write(claims, "student", seed, {"claims_val_1234": value})
        write(claims, "two_teachers", seed, {"claims_a_val_1": value, "claims_b_val_1": 2 * value})
        write(claims, "sgd_0.1_plain", seed, {"claims_val_1234": 0.0}, diverged=seed == 0)
    text = write_table(claims, [0, 1], list(claims.runs)).read_text()
    assert "| student, small, alone | 12.0 ± 2.8 |  |  | 0 of 2 |" in text
    assert "| student on A + B, two teachers, no labels |  | 12.0 ± 2.8 | 24.0 ± 5.7 | 0 of 2 |" in text
    assert "| rate 0.1, plain loss | 0.0 ± 0.0 |  |  | 2 of 2 |" in text
    assert "--scale tiny --seeds 0 1" in text
    text = write_table(claims, [0, 1, 2], list(claims.runs)).read_text()
    assert "| student, small, alone (2 of 3 seeds) | 12.0 ± 2.8 |" in text
    draw(claims, [0, 1], claims.output / "claims.png")
    assert (claims.output / "claims.png").stat().st_size > 1000


def test_done_runs_are_not_run_again(claims, monkeypatch):
    started = []

    def train(name, seed):
        started.append((name, seed))
        write(claims, name, seed, {"claims_val_1": 1.0})

    monkeypatch.setattr(claims, "_subprocess", train)
    write(claims, "teacher", 0, {"claims_val_1": 5.0})
    claims.run_all(["student_kd"], [0])
    assert started == [("student_kd", 0)]


def test_runs_start_when_their_teachers_are_done_seed_by_seed(claims, monkeypatch):
    started = []

    def train(name, seed):
        assert all(claims.result(other, seed) for other in claims.runs[name].needs), "a teacher is not done"
        started.append((name, seed))
        write(claims, name, seed, {"claims_val_1": 1.0})

    monkeypatch.setattr(claims, "_subprocess", train)
    claims.run_all(["student_kd", "two_teachers"], [3, 4])
    assert [seed for _, seed in started] == [3] * 5 + [4] * 5 and len(set(started)) == 10


def test_two_steps_end_in_the_folder_asked_for(claims):
    main(["--scale", "tiny", "--seeds", "5", "--runs", "student", "--output", str(claims.output)])
    (score,) = claims.result("student", 5)["AP"].values()
    assert 0 <= score <= 100
    assert "student, small, alone" in (claims.output / "claims.md").read_text()


def test_a_run_that_diverges_is_a_result(claims):
    too_much = ("HEALTH.MAX_NON_FINITE", 1, "SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 1e30)
    claims.runs["student"] = Run("student", (*claims.runs["student"].opts, *too_much))
    result = claims.run_one("student", 6)
    assert result["diverged"] and list(result["AP"].values()) == [0.0] and "not finite" in result["message"]


def test_a_run_that_a_signal_stops_is_no_result(claims, monkeypatch):
    train = Trainer.train

    def stop_at_once(trainer):
        trainer.request_stop("SIGTERM")
        train(trainer)

    monkeypatch.setattr(Trainer, "train", stop_at_once)
    with pytest.raises(ValueError, match="goes on"):
        claims.run_one("student", 7)
    assert claims.result("student", 7) is None
