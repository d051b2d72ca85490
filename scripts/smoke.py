"""Does an installed fastnn work? One training step beside torch.nn; run it outside the source tree."""

from __future__ import annotations

import torch

import fastnn


def model() -> torch.nn.Module:
    nn = torch.nn
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 8 * 8, 10),
    )


def step(net: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, gradient of the input and of every parameter."""
    x = x.clone().requires_grad_()
    y = net(x)
    y.square().mean().backward()
    return [y.detach(), *(p.grad for p in (x, *net.parameters()) if p.grad is not None)]


def main() -> None:
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    mine = model()
    report = fastnn.accelerate(mine)
    for ours, theirs in zip(step(mine, x), step(model(), x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    print(report)
    print(
        f"fastnn {fastnn.__version__} from {fastnn.__file__}: one step as torch {torch.__version__} does it"
    )


if __name__ == "__main__":
    main()
