"""What every trainer checks: a loss that is a number at each step, weights that are numbers before they are written."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from builders.training.errors import TrainingError

ADVICE = (
    "nothing was written and a checkpoint of before is as it was; lower the learning rate in [training] of the recipe, "
    "or look at the data's numbers for very large ones"
)


def check_loss(loss: Tensor | float, title: str, step: int, steps: int, epochs: int = 1) -> float:
    """The loss of one step as a float.

    Args:
        title: what is trained, for the message.
        step: from 1.
        steps: in all ``epochs``.

    Raises:
        TrainingError: it is NaN or infinite.
    """
    found = loss.item() if isinstance(loss, Tensor) else loss
    if math.isfinite(found):
        return found
    of_epoch = f" (epoch {1 + (step - 1) * epochs // steps} of {epochs})" if epochs > 1 else ""
    raise TrainingError(
        f"{title}: training diverged, the loss is {found} at step {step} of {steps}{of_epoch}; {ADVICE}"
    )


def check_weights(network: nn.Module, title: str, dtype: torch.dtype = torch.float32) -> None:
    """Before a network is written.

    Args:
        title: as for :func:`check_loss`.
        dtype: of the weights in the checkpoint.

    Raises:
        TrainingError: a tensor of it is not finite in ``dtype``.
    """
    broken = [
        name
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not torch.isfinite(tensor.to(dtype)).all()
    ]
    if broken:
        rest = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise TrainingError(
            f"{title}: training diverged, after the last step {', '.join(broken[:3])}{rest} are not finite as "
            f"{str(dtype).removeprefix('torch.')}; {ADVICE}"
        )
