"""``torch.nn.functional`` with fastnn's kernels where there are any; the other names are torch's own functions."""

import torch.nn.functional as _F

from fastnn._names import adopt as _adopt
from fastnn.functional.activation import *  # noqa: F403
from fastnn.functional.batchnorm import *  # noqa: F403
from fastnn.functional.conv import *  # noqa: F403
from fastnn.functional.dropout import *  # noqa: F403
from fastnn.functional.linear import *  # noqa: F403
from fastnn.functional.pooling import *  # noqa: F403
from fastnn.functional.softmax import *  # noqa: F403

_adopt(globals(), _F, "fastnn.functional")
