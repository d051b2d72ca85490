"""What the drop-in tests share: both models in float64, and how their results are compared."""

import models
import torch

CLOSE = {"rtol": 1e-7, "atol": 1e-9}


def twins(seed=0, dropout=False):
    """In float64, so that a chain of batch norms does not blur what is compared."""
    return tuple(model.double() for model in models.twins(seed, dropout))


def images(n=4, dtype=torch.float64, seed=1):
    return models.images(n, dtype, seed)


def close(a, b):
    torch.testing.assert_close(a, b, **CLOSE)


def loss_and_gradients(model, x):
    model.zero_grad(set_to_none=True)
    y = model(x)
    loss = torch.nn.functional.nll_loss(y, torch.arange(len(x)) % 5)
    loss.backward()
    return [y.detach(), loss.detach(), *(p.grad.clone() for p in model.parameters()), *model.buffers()]
