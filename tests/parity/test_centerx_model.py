"""Layers and whole models against the original's numbers, loaded with its weights."""

import json

import pytest
import torch
from detectron2.structures import Boxes, Instances

from centerx.checkpoint_keys import convert
from centerx.config import add_centerx_config
from centerx.deform_conv import SelfDeformConv
from centerx.recipe import CenterXRecipe
from centerx.upsample_neck import UpsampleStage, make_upsampler
from d2x.backbones.torchvision import TorchvisionResNet
from d2x.config.keys import get_base_cfg

from .centerx_parts import (
    PRECISIONS,
    STRIDE,
    allowed,
    check_whole,
    load_released,
    model_for,
    released_regnet,
    released_state,
)
from .golden import Golden, cases, folder, load

in_either_precision = pytest.mark.parametrize("dtype", PRECISIONS, ids=["float64", "float32"])


def neck_name(name: str) -> str:
    """A name inside the original's up-sampling layer in ours."""
    return convert({f"upsample.deconv1.{name}": torch.zeros(1)}).renamed[f"upsample.deconv1.{name}"][
        len("backbone.neck.stages.0.") :
    ]


@pytest.mark.parametrize("case", cases("centerx", "deconv_layer"))
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_upsampling_layer(case, mode):
    golden = load("centerx", case)
    options = golden.info["options"]
    layer = UpsampleStage(options["in"], options["out"], conv="plain", up_kernel=options["kernel"])
    layer.load_state_dict({neck_name(name): value for name, value in released_state(golden).items()})
    layer.train(mode == "train")
    x = golden.tensors["input.x"].clone().requires_grad_()
    y = layer(x)
    expected = golden.tensors[f"output.{mode}.y"]
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    (y * golden.tensors["input.probe"]).sum().backward()
    ours = {"x": x.grad, **{name: parameter.grad for name, parameter in layer.named_parameters()}}
    for name, expected in golden.group(f"grad.{mode}").items():
        found = ours["x" if name == "x" else neck_name(name)]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("case", cases("centerx", "deconv_init"))
def test_released_start_of_the_transposed_convolution(case):
    golden = load("centerx", case)
    options = golden.info["options"]
    layer = make_upsampler("transposed", options["out"], options["kernel"], "bilinear_to_first_channel")
    expected = golden.tensors["output.up_sample_kernel_to_channel0"]
    torch.testing.assert_close(layer.weight[:, 0].detach(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("case", cases("centerx", "deform_layer") + cases("centerx", "modulated_deform_layer"))
def test_deformable_layer(case):
    golden = load("centerx", case)
    options = golden.info["options"]
    modulated = golden.info["kind"] == "modulated_deform_layer"
    layer = SelfDeformConv(options["in"], options["out"], modulated=modulated)
    short = {name: neck_name(f"dcn.{name}")[len("conv.") :] for name in released_state(golden)}
    layer.load_state_dict({short[name]: value for name, value in released_state(golden).items()})
    x = golden.tensors["input.x"].clone().requires_grad_()
    raw = layer.offset(x)
    y = layer(x)
    for found, expected in ((raw[:, :18], golden.tensors["output.offset"]), (y, golden.tensors["output.y"])):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    if not golden.group("grad"):
        return
    (y * golden.tensors["input.probe"]).sum().backward()
    ours = {"x": x.grad, **{name: parameter.grad for name, parameter in layer.named_parameters()}}
    for name, expected in golden.group("grad").items():
        torch.testing.assert_close(ours["x" if name == "x" else short[name]], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", cases("centerx", "preprocess"))
def test_normalisation_and_padding(case):
    golden = load("centerx", case)
    options = golden.info["options"]
    opts = {"MODEL.PIXEL_MEAN": options["PIXEL_MEAN"], "MODEL.PIXEL_STD": options["PIXEL_STD"]}
    model = model_for({"opts": {**opts, "MODEL.CENTERNET.USE_DEFORM": False}})
    images = golden.group("input.image")
    out = model.preprocess_image([{"image": images[str(i)]} for i in range(len(images))])
    # 4 roundings of float32; the factor 255 sits elsewhere in ours
    expected = golden.tensors["output.batch"]
    torch.testing.assert_close(out.tensor, expected, rtol=0, atol=4 * 2**-23 * expected.abs().max().item())
    assert [list(size) for size in out.image_sizes] == golden.tensors["output.image_sizes"].tolist()


def batch(golden):
    """The case's images and boxes as detectron2 input."""
    options, inputs = golden.info["options"], []
    for i in range(options["n_images"]):
        image = golden.tensors[f"input.image.{i}"]
        instances = Instances(tuple(image.shape[1:]))
        instances.gt_boxes = Boxes(golden.tensors[f"input.boxes.{i}"].clone())
        instances.gt_classes = golden.tensors[f"input.classes.{i}"]
        height, width = options["original_sizes"][i]
        inputs.append({"image": image, "instances": instances, "height": height, "width": width})
    return inputs


def check_maps(predictions, golden: Golden, prefix: str, dtype: torch.dtype) -> None:
    tolerance = allowed(golden, f"{prefix}.head", dtype)
    maps = {"cls": predictions.heatmap_logits.sigmoid(), "wh": predictions.size, "reg": predictions.offset}
    for name, found in maps.items():
        check_whole(f"{prefix} {name}", found, golden.tensors[f"{prefix}.head.{name}"], tolerance)


def check_gradients(model, golden: Golden, names: dict[str, str], norm: torch.Tensor, group: str, dtype: torch.dtype):
    """Gradients of those parameters that the golden has, by their released ``names``, and the ``norm`` of all.

    Entry by entry in float64. In float32 one unit that a rounding takes across its kink, on one machine and not on
    another, moves entries by more than any rounding, so there the whole is compared.
    """
    ours = dict(model.named_parameters())
    for name, expected in golden.group("grad").items():
        found = ours[names[name.removeprefix("train.")]].grad
        if dtype == torch.float64:
            check_whole(name, found, expected, allowed(golden, "grad", dtype))
        else:
            assert (found - expected).norm() <= 1e-2 * expected.norm(), name
    total = torch.stack([p.grad.double().norm() for p in model.parameters() if p.grad is not None]).norm()
    check_whole("gradient norm", total, norm, allowed(golden, group, dtype, stated=1e-2))


@in_either_precision
@pytest.mark.parametrize("case", cases("centerx", "model"))
def test_whole_model_in_training(case, dtype):
    golden = load("centerx", case)
    options, tensors = golden.info["options"], golden.tensors
    if "train" not in options.get("modes", ["train"]):
        pytest.skip("the case has no training part")
    model = model_for(options["model"])
    load_released(model, released_state(golden))
    model.to(dtype).train()
    kept = {}
    model.head.register_forward_hook(lambda module, args, out: kept.update(predictions=out))
    model.backbone.bottom_up.register_forward_hook(lambda module, args, out: kept.update(features=out))
    losses = model(batch(golden))
    assert list(losses) == ["loss_cls", "loss_box_wh", "loss_off_reg"]
    losses["total"] = sum(losses.values())
    for name, value in losses.items():
        check_whole(name, value, tensors[f"output.train.{name}"], allowed(golden, f"output.train.{name}", dtype))
    check_maps(kept["predictions"], golden, "output.train", dtype)
    tolerance = allowed(golden, "output.train.backbone", dtype)
    check_whole("backbone", kept["features"]["res5"], tensors["output.train.backbone"], tolerance)
    losses["total"].backward()
    names = convert(released_state(golden)).renamed
    group = "output.train.grad_norm"
    check_gradients(model, golden, names, tensors[group], group, dtype)
    buffers, tolerance = dict(model.named_buffers()), allowed(golden, "output.train.buffer", dtype)
    for name, expected in golden.group("output.train.buffer").items():
        check_whole(name, buffers[names[name]], expected, tolerance)


@in_either_precision
@pytest.mark.parametrize("case", cases("centerx", "model"))
def test_whole_model_in_evaluation(case, dtype):
    golden = load("centerx", case)
    options, tensors = golden.info["options"], golden.tensors
    if "eval" not in options.get("modes", ["eval"]):
        pytest.skip("the case has no evaluation part")
    model = model_for(options["model"])
    load_released(model, released_state(golden))
    model.to(dtype).eval()
    inputs = batch(golden)
    with torch.no_grad():
        images = model.preprocess_image(inputs)
        assert list(images.tensor.shape[2:]) == options["padded_size"]
        check_maps(model.predict(images.tensor), golden, "output.eval", dtype)
        results = model(inputs)
    score_tolerance = allowed(golden, "output.eval.head", dtype, stated=1e-5)
    largest = tensors["output.eval.head.wh"].abs().max().item()
    for i, result in enumerate(results):
        found = result["instances"]
        ours = (found.pred_boxes.tensor, found.scores, found.pred_classes.float())
        expected = [tensors[f"output.eval.inference.{i}.{n}"] for n in ("boxes", "scores", "classes")]
        scale = max(o / n for o, n in zip(options["original_sizes"][i], options["image_sizes"][i]))
        # half a size's error and that of the centre; 0.01 px is what the README states
        pixels = max(1e-2, STRIDE * scale * score_tolerance * largest)
        check_detections([value.double() for value in ours], [e.double() for e in expected], score_tolerance, pixels)


def check_detections(ours, expected, score_tolerance: float, pixels: float) -> None:
    """Scores one by one; a box has to be found among those whose scores may have been in each other's place."""
    torch.testing.assert_close(ours[1], expected[1], rtol=0, atol=score_tolerance)
    last = expected[1][-1]
    for box, score, kind in zip(*expected):
        if score == 0 or score - last < 2 * score_tolerance:
            continue
        near = (ours[1] - score).abs() < 2 * score_tolerance
        off = (ours[0][near] - box).abs().amax(1) + 1e3 * (ours[2][near] != kind)
        assert off.min() <= pixels


@pytest.mark.parametrize("case", cases("centerx", "checkpoint_keys"))
def test_checkpoint_names_and_shapes(case):
    info = json.loads((folder("centerx") / f"{case}.json").read_text())
    for name, entry in info["models"].items():
        opts = entry["info"]["options"]
        released = {key: torch.empty(shape, device="meta") for key, shape in entry["tensors"].items()}
        if opts["BACKBONE.NAME"] == "build_torch_backbone":
            # An early backbone of the original, cut into nameless stages; only its size can be compared.
            ours = TorchvisionResNet(depth=opts["RESNETS.DEPTH"]).state_dict()
            assert sorted(map(tuple, (v.shape for v in ours.values()))) == sorted(
                map(tuple, entry["tensors"].values())
            ), name
            continue
        centernet = ("DECONV_CHANNEL", "DECONV_KERNEL", "NUM_CLASSES", "MODULATE_DEFORM", "USE_DEFORM")
        model_opts = {f"MODEL.CENTERNET.{key}": opts[key] for key in centernet if key in opts}
        model_opts |= {f"MODEL.{key}": value for key, value in opts.items() if key.startswith("BACKBONE.")}
        with torch.device("meta"):
            model = model_for({"opts": model_opts})
        conversion = convert(released)
        assert conversion.unmatched == [], name
        ours = {key: value.shape for key, value in model.state_dict().items()}
        assert {key: value.shape for key, value in conversion.state.items()} == ours, name
        back = convert(conversion.state, reverse=True)
        assert list(back.state) == list(released) and back.unmatched == [], name


def test_released_regnet_names():
    assert [released_regnet(name) for name in ("400x", "4000y", "1600x")] == ["x_400mf", "y_4gf", "x_1_6gf"]


@pytest.mark.parametrize("case", cases("centerx", "optimizer_groups"))
def test_learning_rate_and_decay_of_every_parameter(case):
    info = json.loads((folder("centerx") / f"{case}.json").read_text())
    golden = load("centerx", info["model"].rsplit(" ", 1)[-1].removesuffix(".json"))
    model = model_for(golden.info["options"]["model"])
    cfg = get_base_cfg()
    add_centerx_config(cfg)
    for key, value in info["solver"].items():
        cfg.SOLVER[key] = value
    names = convert(released_state(golden)).renamed
    of = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in CenterXRecipe().param_groups(cfg, model)
        for parameter in group["params"]
    }
    parameters = dict(model.named_parameters())
    assert len(of) == len(parameters) == len(info["groups"])
    for name, *expected in info["groups"]:
        assert of[id(parameters[names[name]])] == tuple(expected), name
