"""``torch.nn.functional`` with fastnn's kernels where there are any; the other names are torch's own functions."""

# mypy: disable-error-code="no-redef,assignment"
# ruff: noqa: F403
from typing import TYPE_CHECKING as _TYPE_CHECKING

import torch.nn.functional as _F

from fastnn._names import adopt as _adopt
from fastnn.functional.activation import *
from fastnn.functional.attention import *
from fastnn.functional.batchnorm import *
from fastnn.functional.conv import *
from fastnn.functional.dropout import *
from fastnn.functional.embedding import *
from fastnn.functional.linear import *
from fastnn.functional.loss import *
from fastnn.functional.normalization import *
from fastnn.functional.pooling import *
from fastnn.functional.rnn import *
from fastnn.functional.softmax import *

if _TYPE_CHECKING:  # at run time _adopt adds these names
    from torch.nn.functional import *

_adopt(globals(), _F, "fastnn.functional")
