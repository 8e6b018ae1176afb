"""The whole released detector: outputs, detections, losses and gradients, in a padded batch and alone."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from plain_detr.box_coder import cxcywh_to_xyxy
from plain_detr.hybrid import match_tasks
from plain_detr.plain_detr import PlainDETR
from plain_detr.predictions import BoxSetPrediction
from tests.parity.golden import Golden, cases, load
from tests.parity.plain_detr_parts import (
    check,
    check_gradient,
    groups_for,
    load_official,
    our_name,
    packed_targets,
    recorded,
    refined_boxes,
    released_config,
)

OUR_PARTS = {"loss_ce": "loss_class", "loss_bbox": "loss_box", "loss_giou": "loss_giou"}
parametrize = pytest.mark.parametrize("name", cases("plain_detr", "model"))


def build(case: Golden) -> PlainDETR:
    model = PlainDETR(released_config(case.info["options"]))
    load_official(model, case.state)
    return model.eval()


def images_of(case: Golden) -> list[torch.Tensor]:
    return [case.tensors[f"input.image{index}"] for index in range(case.info["options"]["num_images"])]


def runs_of(case: Golden) -> dict[str, list[int]]:
    options = case.info["options"]
    return {"batch": list(range(options["num_images"])), "single": [options["single_index"]]}


def records_of(case: Golden, coder, empty: int | None = None) -> list[dict]:
    """Detectron2's input format, with the normalised image as the image."""
    records = []
    for index, image in enumerate(images_of(case)):
        height, width = image.shape[1:]
        keep = slice(0, 0) if index == empty else slice(None)
        boxes = case.tensors[f"input.targets.{index}.boxes"][keep]
        pixels = coder.to_pixels(boxes, boxes.new_tensor([width, height]))
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(cxcywh_to_xyxy(pixels))
        instances.gt_classes = case.tensors[f"input.targets.{index}.labels"][keep]
        original = case.info["options"]["original_sizes"][index]
        records.append({"image": image, "instances": instances, "height": original[0], "width": original[1]})
    return records


def check_set(name: str, ours: BoxSetPrediction, wanted: dict, tolerance: dict, suffix: str = "") -> None:
    values = {"pred_logits": ours.logits, "pred_boxes": ours.boxes}
    values |= {"pred_deltas": ours.raw, "pred_boxes_old": ours.reference}
    for key, value in values.items():
        if key + suffix in wanted:
            kind = "boxes" if "boxes" in key else "output"
            check(f"{name} {key}{suffix}", value, wanted[key + suffix], tolerance[kind])


def below(wanted: dict, prefix: str) -> dict:
    return {key.removeprefix(prefix): value for key, value in wanted.items() if key.startswith(prefix)}


@torch.no_grad()
@parametrize
def test_outputs_equal_the_released_ones(name):
    case = load("plain_detr", name)
    model, tolerance, options = build(case), case.info["tolerance"], case.info["options"]
    for run, members in runs_of(case).items():
        wanted = case.group(f"output.{run}")
        inner = below(wanted, "intermediate.")
        with recorded(model.upsample) as upsampled, recorded(model.decoder.final_norm) as outputs:
            memory = model.encode([images_of(case)[index] for index in members])
            layers, selection = model.predict(memory, training=True)
        parts = [layer.split(options["num_queries_one2one"]) for layer in layers]
        check_set(f"{run} last", parts[-1][0], wanted, tolerance)
        check_set(f"{run} last", parts[-1][1], wanted, tolerance, "_one2many")
        check_set(f"{run} proposals", selection.prediction, below(wanted, "enc_outputs."), tolerance)
        for index, (first, rest) in enumerate(parts[:-1]):
            check_set(f"{run} {index}", first, below(wanted, f"aux_outputs.{index}."), tolerance)
            check_set(f"{run} {index}", rest, below(wanted, f"aux_outputs_one2many.{index}."), tolerance)
        ours = {
            "features": (upsampled[0], "output"),
            "src": (memory.features, "output"),
            "hs": (torch.stack(outputs), "output"),
            "init_reference": (selection.reference, "boxes"),
            "inter_references": (refined_boxes(layers, model.coder, selection.extent), "boxes"),
            "max_shape_w": (selection.extent[..., :1], "boxes"),
            "max_shape_h": (selection.extent[..., 1:], "boxes"),
        }
        for key, (value, kind) in ours.items():
            if key in inner:
                check(f"{run} {key}", value, inner[key], tolerance[kind])
        assert torch.equal(memory.grid.padding(torch.device("cpu")), inner["mask"])
        assert torch.equal(selection.index, inner["topk_proposals"])


@torch.no_grad()
@parametrize
def test_detections_equal_the_released_ones(name):
    case = load("plain_detr", name)
    model, tolerance = build(case), case.info["tolerance"]
    records = records_of(case, model.coder)
    for run, members in runs_of(case).items():
        wanted = case.group(f"output.{run}_inference")
        layers, selection = model.predict(model.encode([images_of(case)[index] for index in members]), training=False)
        check_set(run, layers[-1], wanted, tolerance)
        check(f"{run} proposals", selection.reference, wanted["intermediate.init_reference"], tolerance["boxes"])
        assert torch.equal(selection.index, wanted["intermediate.topk_proposals"])
        found = model([records[index] for index in members])
        for index, (result, member) in enumerate(zip(found, members)):
            ours, theirs = result["instances"], below(wanted, f"postprocess.{index}.")
            # Ours are clipped to the image, and those that nothing is left of are dropped.
            boxes = Boxes(theirs["boxes"])
            boxes.clip((records[member]["height"], records[member]["width"]))
            keep = boxes.nonempty()
            check("boxes", ours.pred_boxes.tensor, boxes.tensor[keep], tolerance["postprocess_boxes"])
            check("scores", ours.scores, theirs["scores"][keep], tolerance["output"])
            assert torch.equal(ours.pred_classes, theirs["labels"][keep])


def our_loss(official: str, layers: int) -> str:
    """Our name of an entry of the official loss dict."""
    part = "_".join(official.split("_")[:2])
    rest = official.removeprefix(part)
    group = "_o2m" if rest.endswith("_one2many") else ""
    place = rest.removesuffix("_one2many").removeprefix("_") or str(layers - 1)
    return OUR_PARTS[part] + ("_enc" if place == "enc" else f"_d{place}") + group


@parametrize
def test_losses_and_gradients_equal_the_released_ones(name):
    case = load("plain_detr", name)
    options, tolerance, weights = case.info["options"], case.info["tolerance"], case.info["weight_dict"]
    for ending, empty in (("", None), ("_one_empty", options["empty_index"])):
        if f"output.loss_total{ending}" not in case.tensors:
            continue
        model = build(case).train()
        losses = model(records_of(case, model.coder, empty))
        total = 0
        for key, value in case.group(f"output.loss{ending}").items():
            if key not in weights:
                continue
            ours = losses[our_loss(key, options["dec_layers"])]
            check(key + ending, ours, value * weights[key], tolerance["losses"])
            total = total + ours
        check(f"total{ending}", total, case.tensors[f"output.loss_total{ending}"], tolerance["losses"])
        total.backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = torch.stack([grad.norm() for grad in grads]).norm()
        check(f"gradient norm{ending}", norm, case.tensors[f"output.grad_norm{ending}"], tolerance["grad_norm"])
        if ending:
            continue
        parameters = dict(model.named_parameters())
        for key, value in case.group("grad").items():
            grad = parameters[our_name(key, case.state)].grad
            check_gradient(case, f"grad.{key}", torch.zeros_like(value) if grad is None else grad)


@torch.no_grad()
@parametrize
def test_assignments_equal_the_released_ones(name):
    case = load("plain_detr", name)
    model, options, wanted = build(case), case.info["options"], case.group("output.match")
    layers, selection = model.predict(model.encode(images_of(case)), training=True)
    targets = packed_targets(case, options["num_images"])
    tasks = match_tasks(layers, selection.prediction, groups_for(options))
    first = [sum(targets.counts[:index]) for index in range(len(targets.counts))]
    for task, found in zip(tasks, model.criterion.matcher(tasks, targets)):
        place = task.suffix.removesuffix("_o2m")
        last = place == f"_d{options['dec_layers'] - 1}"
        place = "main" if last else "enc" if place == "_enc" else place.replace("_d", "aux")
        group = "one2many" if task.suffix.endswith("_o2m") else "one2one"
        for image, count in enumerate(targets.counts):
            key = f"{group}.{place}.{image}"
            if f"{key}.src" not in wanted:
                continue
            mine = found.image == image
            ours = sorted(zip(found.query[mine].tolist(), (found.target[mine] - first[image]).tolist()))
            theirs = zip(wanted[f"{key}.src"].tolist(), (wanted[f"{key}.tgt"] % max(count, 1)).tolist())
            assert ours == sorted(theirs), key


@torch.no_grad()
@parametrize
def test_in_any_batch_an_image_gives_what_the_released_code_gives_for_it_alone(name):
    """The setting for released checkpoints: the released valid area, and independence of the batch."""
    case = load("plain_detr", name)
    cfg, tolerance = released_config(case.info["options"]), case.info["tolerance"]
    cfg.MODEL.PLAIN_DETR.BATCH_INDEPENDENT = True
    model = PlainDETR(cfg)
    load_official(model, case.state)
    layers, _ = model.eval().predict(model.encode(images_of(case)), training=False)
    index, wanted = case.info["options"]["single_index"], case.group("output.single_inference")
    check("logits", layers[-1].logits[[index]], wanted["pred_logits"], tolerance["output"])
    check("boxes", layers[-1].boxes[[index]], wanted["pred_boxes"], tolerance["boxes"])
