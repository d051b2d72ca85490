"""fastnn: torch.nn with other engines under it.

``import fastnn as nn`` gives every name of ``torch.nn``. Names with kernels of fastnn's own are its own
subclasses of torch's classes, with the same arguments and the same ``state_dict``; the rest are torch's own objects.
``fastnn.accelerate(model)`` swaps the layers of a model that exists, ``fastnn.explain(model, x)`` tells what ran.
"""

import os as _os

# torch first: it brings the one OpenMP runtime of the process, which fastnn's kernels share.
import torch as _torch

from fastnn._build_check import check_build as _check_build

_check_build()

from fastnn import _C as _C  # noqa: E402

_C.set_enabled(_os.environ.get("FASTNN_DISABLE", "0") in ("", "0"))

from fastnn import _cuda as _cuda  # noqa: E402
from fastnn import backends as backends  # noqa: E402
from fastnn import functional as functional  # noqa: E402
from fastnn import memory as memory  # noqa: E402
from fastnn import modules as modules  # noqa: E402
from fastnn._names import adopt as _adopt  # noqa: E402
from fastnn.accelerate import Report as Report  # noqa: E402
from fastnn.accelerate import accelerate as accelerate  # noqa: E402
from fastnn.accelerate import revert as revert  # noqa: E402
from fastnn.explain import explain as explain  # noqa: E402
from fastnn.explain import strict as strict  # noqa: E402
from fastnn.fuse import FuseReport as FuseReport  # noqa: E402
from fastnn.fuse import fuse as fuse  # noqa: E402
from fastnn.fuse import unfuse as unfuse  # noqa: E402
from fastnn.info import info as info  # noqa: E402
from fastnn.modules import *  # noqa: E402, F403
from fastnn.version import __version__ as __version__  # noqa: E402

_adopt(globals(), _torch.nn, "fastnn")
