"""Every command of the documentation is run at tiny size, or says here why not; every path and link in it exists.

A page's blocks run in their order in a folder of their own: the checkout's files as links, and beside them what the
pages take for granted, such as ``my/train.json``, ``photos/`` and the quick starts' output.
"""

import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from d2x.data.sets.shapes import ShapesSpec, generate_shapes
from tests import fork_server
from tests.test_imports import ROOMS

pytestmark = pytest.mark.xdist_group("docs")  # all pages start from the same quick starts

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/*.md")))]
PAGES += [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("projects/**/*.md"))]
LINKED = [*PAGES, "CHANGELOG.md", "benchmarks/README.md", "benchmarks/big_data.md"]

# Of commands that are not run, a part of their text and the reason. One that matches no command any more is an error.
NOT_RUN = {
    "git clone": "downloads the project",
    "pip install": "downloads packages; tests/test_packaging.py builds and installs the wheel",
    "python -m d2x.tools.quickstart": "of an installed wheel, which tests/test_packaging.py makes and starts",
    "run.sh setup": "downloads packages; this environment is what it makes",
    "run.sh test": "is this suite",
    "-m pytest": "is a part of this suite",
    "torchrun --nnodes 2": "needs two machines; tests/e2e/test_processes.py plays them",
    "sbatch": "needs a cluster; tests/e2e/test_slurm_script.py plays one",
}
PAGES_RUN_ELSEWHERE = {"projects/CenterX/two_data_sets.md": "tests/e2e/test_two_data_sets.py"}
SLOW = {  # seconds by starts of further processes; not in the default run
    "--num-processes 2": "tests/e2e/test_processes.py is in the default run",
    "torchrun --standalone": "tests/e2e/test_processes.py is in the default run",
    "tools/benchmark_export.py": "tests/deploy/test_benchmark.py is in the default run",
}

SHORT = (
    "MODEL.DEVICE cpu DATASETS.TRAIN ('shapes_tiny_train',) DATASETS.TEST ('shapes_tiny_val',) "
    "DATALOADER.NUM_WORKERS 0 SOLVER.UNIT iterations SOLVER.MAX_ITER 2 SOLVER.WARMUP_ITERS 1 SOLVER.CHECKPOINT_PERIOD "
    "2 SOLVER.IMS_PER_BATCH 2 TEST.EVAL_PERIOD 0"
).split()
SMALL = ["MODEL.BACKBONE.WEIGHTS", "", "INPUT.MIN_SIZE_TRAIN", "[64]"]
SMALL_PLAIN_DETR = [*SMALL, "INPUT.MIN_SIZE_TEST", "64", "INPUT.PLAIN_DETR.CROP_PROBABILITY", "0.0"] + (
    "MODEL.SWIN_V2.EMBED_DIM 16 MODEL.SWIN_V2.DEPTHS (1,1,1,1) MODEL.SWIN_V2.NUM_HEADS (1,1,2,2) "
    "MODEL.SWIN_V2.WINDOW_SIZE 4 MODEL.SWIN_V2.PRETRAINED_WINDOW_SIZES (0,0,0,0) "
    "MODEL.PLAIN_DETR.DECODER_LAYERS 2 MODEL.PLAIN_DETR.NUM_QUERIES 8 MODEL.PLAIN_DETR.ONE_TO_MANY.QUERIES 8"
).split()
MORE_WORDS = {"tools/benchmark_export.py": "--rounds 1 --repeats 1 --subjects onnx".split()}

COMMAND = re.compile(r"^(tools/\w+\.\w+|\./run\.sh \w|python |benchmarks/\w+\.py|torchrun |sbatch )", re.M)
PATH_IN_TEXT = re.compile(r"`((?:tools|d2x|centerx|plain_detr|projects|configs|tests|benchmarks|docs)/[\w./{},*-]*)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(.*?)\n(.*?)^```", re.M | re.S)


class Block(NamedTuple):
    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}, line {self.line}"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    text = read(page)
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1].strip(), m[2]) for m in FENCE.finditer(text)]


def commands(block: Block) -> list[str]:
    """Logical lines of a bash block, without comments."""
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in block.text.replace("\\\n", " ").splitlines()]
    return [line.strip() for line in lines if line.strip()]


def reason_not_to_run(command: str) -> str | None:
    return next((reason for part, reason in NOT_RUN.items() if part in command), None)


def is_slow(command: str) -> bool:
    return any(part in command for part in SLOW)


ALL_COMMANDS = [(block, command) for page in PAGES for block in blocks(page) if block.kind == "bash"
                for command in commands(block)]  # fmt: skip
SLOW_COMMANDS = [
    pytest.param(block, command, id=f"{Path(block.page).stem}:{block.line}")
    for block, command in ALL_COMMANDS
    if is_slow(command) and not reason_not_to_run(command)
]


class Shell:
    """Runs the documentation's commands in a folder, each in a process forked from one that has everything imported."""

    def __init__(self, folder: Path, exported: dict[str, Path] | None = None):
        self.folder = folder
        self.below, self.environment = ".", {}
        self.exported = {} if exported is None else exported

    def run(self, command: str) -> None:
        words = shlex.split(command)
        if words[0] == "cd":
            self.below = words[1]
            return
        if words[0] == "export":
            self.environment |= dict(word.split("=", 1) for word in words[1:])
            return
        words = shrink(as_run_sh_does(words))
        if " ".join(words) in self.exported:  # on another page, from the same checkpoint: 14 s of one core
            output = words[words.index("--output") + 1]
            shutil.copytree(self.exported[" ".join(words)], self.folder / output)
            return
        self.call(run_words, words)
        self.require_results(words)
        if words[0] == "tools/export_model.py":
            self.exported[" ".join(words)] = self.folder / words[words.index("--output") + 1]

    def call(self, function, *args) -> None:
        """Call a function of this module in the folder; fails with what it printed."""
        place = self.folder / self.below
        searched = [str(place / path) for path in self.environment.get("PYTHONPATH", "").split(os.pathsep) if path]
        environment = {**self.environment, "PYTHONPATH": os.pathsep.join([*searched, str(ROOT)])}
        code = f"import os; from tests.test_docs import {function.__name__} as call\n"
        code += f"os.chdir({str(place)!r}); call(*{args!r})"
        done = fork_server.run("-c", code, **environment)
        printed = done.stdout[-2000:] + done.stderr[-4000:]
        assert done.returncode == 0, f"{args} ended with {done.returncode}:\n{printed}"

    def require_results(self, words: list[str]) -> None:
        for option, value in zip(words, words[1:]):
            if option in ("--output", "OUTPUT_DIR", "--report", "--write-clean"):
                assert (self.folder / self.below / value).exists(), f"{option} {value} is not there"


def as_run_sh_does(words: list[str]) -> list[str]:
    """``./run.sh train ...`` as the words that run.sh starts."""
    if words[0] != "./run.sh":
        return words[1:] if words[0] == "python" else words
    rules = re.findall(r'^ +(\w+)\) setup && exec "\$PY" (.*) "\$@" ;;', read("run.sh"), re.M)
    name, *rest = words[1:] or ["quickstart", "centerx"]
    return [*dict(rules)[name].split(), *rest]


def shrink(words: list[str]) -> list[str]:
    """The command at tiny size: no GPUs, and small models where a config of the checkout would make a large one."""
    if "--num-gpus" in words:
        place = words.index("--num-gpus")
        words = words[:place] + words[place + 2 :]
    words = words + MORE_WORDS.get(words[0], [])
    if words[0] == "tools/quickstart.py":
        return [*words, "--num-processes", "1", *SHORT]
    config = words[words.index("--config-file") + 1] if "--config-file" in words else ""
    if words[0] == "tools/profile_model.py" or not config.startswith(("projects/", "tests/")):
        return words
    if "quickstart" in config or config.startswith("tests/"):
        return [*words, *SHORT]
    return [*words, *SHORT, *(SMALL_PLAIN_DETR if "PlainDETR" in config else SMALL)]


def run_words(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "torchrun":
        sys.argv = words
        runpy.run_module("torch.distributed.run", run_name="__main__")
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def run_python(text: str) -> None:
    """A python block; what it takes for granted is there, and its training is as short as all others here."""
    text = text.replace('"OUTPUT_DIR", "output/hook"', f'"OUTPUT_DIR", "output/hook", *{SHORT!r}')
    exec(compile(text, "block", "exec"), {"image": np.zeros((64, 96, 3), np.uint8), "__name__": "__main__"})


def make_released(config: str, package: str, file: str) -> None:
    """A checkpoint with a released program's names, of the small model that the pages' commands build."""
    import importlib

    import torch

    from d2x.config.load import load_cfg
    from d2x.data.prepare import prepare_data
    from d2x.engine.trainer import Trainer

    words = shrink(["tools/train_net.py", "--config-file", config])
    model = Trainer.build_model(prepare_data(load_cfg(config, words[3:])))
    keys = importlib.import_module(f"{package}.checkpoint_keys")
    torch.save({"model": keys.convert(model.state_dict(), reverse=True).state}, file)


def make_dinov3_files() -> None:
    import torch

    torch.save({"model": {"head": torch.zeros(1)}}, "dinov3_vit7b16_coco2017_detr_head-b0235ff7.pth")
    torch.save({"blocks": torch.zeros(1)}, "dinov3_vit7b16_pretrain_lvd1689m.pth")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """What the pages take for granted: data, pictures, a video, released weights, both quick starts' output."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("my", "photos", "output"):
        (folder / name).mkdir()
    for split, seed in (("train", 1), ("val", 2)):
        json_file = generate_shapes(ShapesSpec(4, seed=seed), folder / "drawn" / split)
        shutil.copy(json_file, folder / "my" / f"{split}.json")
        shutil.copytree(json_file.parent / "images", folder / "my" / split)
    pictures = sorted((folder / "my" / "val").iterdir())
    shutil.copy(pictures[0], folder / "photos")
    cv2.imwrite(str(folder / "photo.jpg"), cv2.imread(str(pictures[1])))
    video = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (96, 64))
    for _ in range(2):
        video.write(np.full((64, 96, 3), 90, np.uint8))
    video.release()
    for entry in ROOT.iterdir():
        if entry.name[0] != "." and entry.name != "output":
            (folder / entry.name).symlink_to(entry)
    shell = Shell(folder)
    shell.run("./run.sh quickstart centerx")
    shell.run("./run.sh quickstart plain_detr")
    teachers = ("centernet_R_50_70ep", "swinv2_l_encoder12_objects365_24ep")
    for source, name in zip(("quickstart", "quickstart_plain_detr"), teachers):
        shutil.copytree(folder / "output" / source, folder / "output" / name)
    centerx = "projects/CenterX/configs/centernet_R_18_70ep.yaml"
    plain_detr = "projects/PlainDETR/configs/released/swinv2_s_mim_boxrpb_delta.yaml"
    shell.call(make_released, centerx, "centerx", "released_centerx.pth")
    shell.call(make_released, plain_detr, "plain_detr", "swinv2_small_mim_pt_boxrpe_reparam.pth")
    shell.call(make_dinov3_files)
    return folder


@pytest.fixture(scope="module")
def exported() -> dict[str, Path]:
    return {}


@pytest.fixture
def shell(prepared, exported, tmp_path) -> Shell:
    """A folder with all of that for one page, which may write into it."""
    for entry in prepared.iterdir():
        if entry.name == "output":
            shutil.copytree(entry, tmp_path / "output")
        else:
            (tmp_path / entry.name).symlink_to(entry)
    return Shell(tmp_path, exported)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in PAGES_RUN_ELSEWHERE])
def test_the_commands_of_a_page_run(page, shell):
    for block in blocks(page):
        shell.below, shell.environment = ".", {}
        try:
            if block.kind == "python":
                shell.environment = {"PYTHONPATH": str(ROOT / "tests" / "plugin")}
                shell.call(run_python, block.text)
            for command in commands(block) if block.kind == "bash" else ():
                if not reason_not_to_run(command) and not is_slow(command):
                    shell.run(command)
        except Exception as error:
            raise AssertionError(f"{block}: {error}") from error


@pytest.mark.slow
@pytest.mark.parametrize("block, command", SLOW_COMMANDS)
def test_a_slow_command_runs(block, command, shell):
    shell.run(command)


@pytest.mark.parametrize("page, test", PAGES_RUN_ELSEWHERE.items())
def test_a_page_run_elsewhere_is_read_there(page, test):
    assert Path(page).name in read(test)


def test_every_fence_says_what_it_is():
    known = {"bash", "bash settings", "python", "cpp", "text"}
    for page in PAGES:
        for block in blocks(page):
            assert block.kind in known, f"{block}: '{block.kind}' is none of {sorted(known)}"
            if block.kind == "text":
                assert not COMMAND.search(block.text), f"{block}: a command, but text is not run: make it bash"


def test_every_reason_still_has_a_command():
    texts = [command for _, command in ALL_COMMANDS]
    for part in (*NOT_RUN, *SLOW):
        assert any(part in text for text in texts), f"no command has '{part}' any more"


@pytest.mark.parametrize("page", LINKED)
def test_every_link_and_path_of_a_page_exists(page):
    text, folder = read(page), (ROOT / page).parent
    for target in LINK.findall(text):
        if not target.startswith(("http://", "https://")):
            file, _, anchor = target.partition("#")
            linked = (folder / file) if file else ROOT / page
            assert linked.exists(), f"{page} links to {target}"
            if anchor:
                assert anchor in anchors(linked.read_text(encoding="utf-8")), (
                    f"{page} links to {target}: no such heading"
                )
    if page != "CHANGELOG.md":  # which names what is gone
        for name in PATH_IN_TEXT.findall(text):
            for path in expand(name):
                assert any([*ROOT.glob(path), *folder.glob(path)]), f"{page} names {path}"


def test_every_path_of_a_command_exists():
    inside = tuple(f"{name}/" for name in ("tools", "projects", "configs", "benchmarks", "tests"))
    for block, command in ALL_COMMANDS:
        for word in command.split():
            if word.startswith(inside):
                assert (ROOT / word).exists(), f"{block}: {word}"


def anchors(text: str) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def expand(name: str) -> list[str]:
    """Shell braces, ``a/{b,c}`` is two paths, and words in capitals, which stand for any name."""
    name = re.sub(r"\b[A-Z]{3,}\b", "*", name)
    match = re.search(r"\{([^}]*)\}", name)
    if not match:
        return [name.rstrip("/")]
    return [path for part in match[1].split(",") for path in expand(name[: match.start()] + part + name[match.end() :])]


def test_readme_is_short_and_its_scripts_can_be_run():
    text = read("README.md")
    assert len(text.splitlines()) <= 130
    for page in PAGES:
        for name in set(re.findall(r"\btools/\w+\.py", read(page))):
            assert os.access(ROOT / name, os.X_OK), f"{page} calls {name}, which is not executable"


def test_the_architecture_page_names_every_room():
    picture = blocks("docs/architecture.md")[0].text
    for package in ("d2x", "centerx", "plain_detr"):
        for entry in sorted((ROOT / package).iterdir()):
            if entry.is_dir() and (entry / "__init__.py").exists():
                assert f"{entry.name}/" in picture, f"docs/architecture.md: {package}/{entry.name}"
    below = picture[picture.index("\nd2x/") :]
    places = [below.index(f" {room}/" if (ROOT / "d2x" / room).is_dir() else f" {room}.py") for room in ROOMS]
    assert places == sorted(places), f"docs/architecture.md: the rooms of d2x are, from bottom to top, {ROOMS}"
