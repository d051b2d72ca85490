"""The parity cases of pooling."""

from __future__ import annotations

from typing import Any

from fastnn.testing.cases import FLOATS, Case

# Spatial sizes per number of dimensions: odd, all different, and none a multiple of a vector.
SPATIAL: dict[int, tuple[int, ...]] = {1: (13,), 2: (9, 11), 3: (5, 6, 7)}


def pools(dims: int) -> list[Case]:
    shape, spatial = (2, 3, *SPATIAL[dims]), SPATIAL[dims]
    kernel, stride, padding = (3, 2, 4)[:dims], (2, 1, 3)[:dims], (1, 0, 2)[:dims]
    maximum: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((2,), {}),
        ((3, 2, 1), {}),
        ((3,), {"stride": 1}),
        ((3, 2, 1), {"dilation": 2}),
        ((3, 2, 1), {"ceil_mode": True}),
        ((2,), {"return_indices": True}),
        ((3, 1, 1), {"return_indices": True, "ceil_mode": True}),
        ((kernel,), {"stride": stride, "padding": padding}),
        ((5, 1, 2), {}),
    ]
    average: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((2,), {}),
        ((3, 2, 1), {}),
        ((3, 2, 1), {"ceil_mode": True}),
        ((3, 2, 1), {"count_include_pad": False}),
        ((3, 2, 1), {"ceil_mode": True, "count_include_pad": False}),
        ((kernel,), {"stride": stride, "padding": padding}),
    ]
    average += [((3, 2, 1), {"divisor_override": 5})] if dims > 1 else []
    cases = [Case("pooling", f"MaxPool{dims}d", args, kw, shape=shape, exact=True) for args, kw in maximum]
    cases += [Case("pooling", f"AvgPool{dims}d", args, kw, shape=shape) for args, kw in average]
    targets: list[Any] = [1, 4, tuple(s + 2 for s in spatial), spatial]
    targets += [(None, *((3,) * (dims - 1)))] if dims > 1 else []
    for target in targets:
        cases.append(Case("pooling", f"AdaptiveAvgPool{dims}d", (target,), shape=shape))
        cases.append(Case("pooling", f"AdaptiveMaxPool{dims}d", (target,), shape=shape, exact=True))
    cases.append(
        Case("pooling", f"AdaptiveMaxPool{dims}d", (3,), {"return_indices": True}, shape=shape, exact=True)
    )
    for norm in (1.0, 2.0, 3.0):
        cases.append(
            Case("pooling", f"LPPool{dims}d", (norm, 2), shape=shape, values="positive", dtypes=FLOATS)
        )
    cases.append(
        Case(
            "pooling",
            f"LPPool{dims}d",
            (2.0, 3, 2),
            {"ceil_mode": True},
            shape=shape,
            values="positive",
            dtypes=FLOATS,
        )
    )
    for layer in (f"MaxPool{dims}d", f"AvgPool{dims}d"):
        exact = layer.startswith("Max")
        cases += [
            Case("pooling", layer, (2,), shape=sizes, exact=exact)
            for sizes in [(3, *spatial), (0, 3, *spatial), (1, 1, *spatial)]
        ]
    special = ("contiguous", "channels_last")
    cases.append(
        Case(
            "pooling",
            f"MaxPool{dims}d",
            (3, 1, 1),
            shape=shape,
            exact=True,
            values="special",
            layouts=special,
        )
    )
    return cases + _unpool(dims)


def _unpool(dims: int) -> list[Case]:
    size = tuple(2 * s for s in SPATIAL[dims])
    layer, pooled = f"MaxUnpool{dims}d", (2, 3, *SPATIAL[dims])
    plain = {"pool": {"kernel_size": 2}, "shape": (2, 3, *size)}
    odd = tuple(s + 1 for s in size)
    larger = {"pool": {"kernel_size": 2}, "shape": (2, 3, *odd)}
    return [
        Case("pooling", layer, (2,), shape=pooled, unpool=plain, exact=True, dtypes=FLOATS),
        Case(
            "pooling",
            layer,
            (2,),
            shape=pooled,
            unpool=larger,
            call={"output_size": odd},
            exact=True,
            dtypes=FLOATS,
        ),
    ]
