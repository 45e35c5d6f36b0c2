"""Regression on the attributes of an answer."""

import torch
from torch import Tensor

from alignflow.training.losses.summed import SummedLoss


def attribute_loss(predictions_RK: Tensor, labels_RK: Tensor) -> SummedLoss:
    """Sum over known attributes of (prediction - label)^2, as in arXiv:2406.08673.

    A unit is an attribute that is known of a row. Among the metrics, `error` is the absolute
    difference, and `variance` the squared label: where labels are counted from their means, the
    loss of a model that predicts nothing but these.

    Args:
        predictions_RK: [R, K] float32, carrying gradient.
        labels_RK: [R, K] float32; NaN where an attribute of a row isn't known.

    Raises:
        ValueError: The two differ in shape.
    """
    if predictions_RK.shape != labels_RK.shape:
        raise ValueError(f"{predictions_RK.shape=} but {labels_RK.shape=}")
    is_known_RK = ~labels_RK.isnan()
    labels_RK = labels_RK.nan_to_num(0.0)
    difference_RK = torch.where(is_known_RK, predictions_RK - labels_RK, 0.0)
    return SummedLoss(
        total=difference_RK.square().sum(),
        units=is_known_RK.sum(),
        metrics={
            "error": difference_RK.detach().abs().sum(),
            "variance": labels_RK.square().sum(),
        },
    )
