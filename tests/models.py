"""Models that several tests share, each a function of the library that has the classes."""

import torch


def all_families(nn):
    """Every family once, without dropout: input N x 3 x 16 x 16, output N x 5.

    No bias before a norm of each channel: its gradient is 0 plus rounding, which says nothing.
    """
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.ConvTranspose2d(8, 6, 2, stride=2, bias=False),
        nn.InstanceNorm2d(6, affine=True),
        nn.LeakyReLU(0.1),
        nn.AvgPool2d(2),
        nn.PReLU(6),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(54, 16, bias=False),
        nn.BatchNorm1d(16),
        nn.ELU(),
        nn.LayerNorm(16),
        nn.RMSNorm(16),
        nn.Linear(16, 5),
        nn.LogSoftmax(1),
    )


def with_dropout(nn):
    """all_families with a dropout before the last layers."""
    layers = list(all_families(nn))
    return nn.Sequential(*layers[:19], nn.Dropout(0.5), *layers[19:])


def twins(seed=0, dropout=False):
    """(torch's model, fastnn's model) with the same weights."""
    import fastnn

    build = with_dropout if dropout else all_families
    torch.manual_seed(seed)
    theirs = build(torch.nn)
    ours = build(fastnn)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def images(n=16, dtype=torch.float32, seed=1):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )
