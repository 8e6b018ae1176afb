"""From the last layer to detections."""

import torch

from plain_detr.box_coder import DeltaCoder, SigmoidCoder
from plain_detr.decode import decode
from plain_detr.predictions import BoxSetPrediction


def test_best_pairs_first_one_query_may_have_several_classes():
    logits = torch.tensor([[[0.0, 3.0], [2.0, 1.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 1.0, 0.5]]])
    (found,) = decode(BoxSetPrediction(logits, boxes, boxes, boxes), [(100, 200)], coder=SigmoidCoder(), topk=3)
    assert found.pred_classes.tolist() == [1, 0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 1.0]).sigmoid())
    # The second query reaches from -50 to 150 pixels and is clipped.
    assert found.pred_boxes.tensor.tolist() == [[50, 25, 150, 75], [0, 25, 150, 75], [0, 25, 150, 75]]
    assert found.image_size == (100, 200)


def test_each_image_is_clipped_to_its_own_size_and_few_queries_give_few_detections():
    boxes = torch.tensor([[[30.0, 30.0, 60.0, 60.0]]] * 2)
    prediction = BoxSetPrediction(torch.zeros(2, 1, 2), boxes, boxes, boxes)
    small, large = decode(prediction, [(40, 50), (100, 100)], coder=DeltaCoder(), topk=100)
    assert len(small) == 2 and small.pred_boxes.tensor[0].tolist() == [0, 0, 50, 40]
    assert large.pred_boxes.tensor[0].tolist() == [0, 0, 60, 60]
