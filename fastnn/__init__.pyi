# What a type checker sees: torch.nn, with fastnn's classes in place of torch's where there are kernels. The first
# definition of a name counts.
# mypy: disable-error-code="no-redef,assignment"
# ruff: noqa: F403, I001
from fastnn import backends as backends
from fastnn import functional as functional
from fastnn import memory as memory
from fastnn import modules as modules
from fastnn.accelerate import Report as Report
from fastnn.accelerate import accelerate as accelerate
from fastnn.accelerate import revert as revert
from fastnn.explain import explain as explain
from fastnn.explain import strict as strict
from fastnn.fuse import FuseReport as FuseReport
from fastnn.fuse import fuse as fuse
from fastnn.fuse import unfuse as unfuse
from fastnn.info import info as info
from fastnn.modules.activation import *
from fastnn.modules.attention import *
from fastnn.modules.batchnorm import *
from fastnn.modules.conv import *
from fastnn.modules.dropout import *
from fastnn.modules.linear import *
from fastnn.modules.loss import *
from fastnn.modules.normalization import *
from fastnn.modules.pooling import *
from fastnn.modules.rnn import *
from fastnn.modules.softmax import *
from fastnn.version import __version__ as __version__

from torch.nn import *
from torch.nn import init as init
from torch.nn import utils as utils
