#!/usr/bin/env python3
"""Train or evaluate a detector: CenterX, Plain-DETR, or any registered one."""

import logging
import os
import sys

from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm

from d2x.atomic_files import require_writable
from d2x.checkpoint.files import Checkpointer
from d2x.config.load import load_cfg
from d2x.config.plugins import add_plugin_argument
from d2x.data.prepare import prepare_data
from d2x.engine.launch import is_restart, launch
from d2x.engine.logs import setup_logs
from d2x.engine.trainer import Trainer
from d2x.inference.fold import for_inference

EPILOG = """examples:
  train       tools/train_net.py --config-file projects/CenterX/configs/quickstart.yaml
  own data    tools/train_net.py --config-file projects/CenterX/configs/centernet_R_18_70ep.yaml \\
                --train-json a.json --train-images a/ --val-json b.json --val-images b/
  resume      ... --resume
  evaluate    ... --eval-only MODEL.WEIGHTS output/model_final.pth
  override    ... SOLVER.BASE_LR 0.01 SOLVER.MAX_ITER 1000
  processes   ... --num-processes 2                                (on the CPU; on GPUs: --num-gpus 2)
              torchrun --standalone --nproc-per-node 2 --max-restarts 3 tools/train_net.py ...

SIGTERM and SIGINT end a training after the current step, with a checkpoint and exit status 0; --resume goes on from it.
"""


def parser():
    """detectron2's arguments plus the user's own data."""
    result = default_argument_parser(EPILOG)
    result.description = __doc__
    result.add_argument(
        "--num-processes", type=int, metavar="N", help="processes on this machine; what --num-gpus is called on a CPU"
    )
    add_plugin_argument(result)
    data = result.add_argument_group("own data", "COCO json and image folder; classes follow from the json")
    data.add_argument("--train-json", metavar="JSON")
    data.add_argument("--train-images", metavar="FOLDER")
    data.add_argument("--val-json", metavar="JSON")
    data.add_argument("--val-images", metavar="FOLDER")
    return result


def setup(args):
    """The complete, frozen config of a run; logs and a copy of the config go to ``OUTPUT_DIR``."""
    opts = list(args.opts)
    for name in ("train_json", "train_images", "val_json", "val_images"):
        value = getattr(args, name)
        if value:
            opts += [f"DATASETS.{name.upper()}", value]
    cfg = prepare_data(load_cfg(args.config_file, opts, plugins=args.plugin))
    cfg.freeze()
    if comm.is_main_process():
        require_writable(cfg.OUTPUT_DIR)
    comm.synchronize()
    setup_logs(cfg.OUTPUT_DIR)
    default_setup(cfg, args)
    return cfg


def main(args):
    """Run one process; returns the evaluation results."""
    args.resume = args.resume or is_restart()
    cfg = setup(args)
    if args.eval_only:
        if not cfg.MODEL.WEIGHTS and not args.resume:
            raise ValueError("--eval-only needs MODEL.WEIGHTS (or --resume, for the last checkpoint of OUTPUT_DIR)")
        model = Trainer.build_model(cfg)
        Checkpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return Trainer.test(cfg, for_inference(cfg, model))
    if not args.resume and os.path.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")) and comm.is_main_process():
        raise ValueError(f"{cfg.OUTPUT_DIR} already holds a run: add --resume, or choose another OUTPUT_DIR")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    return getattr(trainer, "_last_eval_results", {})


if __name__ == "__main__":
    arguments = parser().parse_args()
    launch(
        main,
        (arguments,),
        processes=arguments.num_processes or arguments.num_gpus,
        machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
    )
    logging.shutdown()
    sys.exit(0)
