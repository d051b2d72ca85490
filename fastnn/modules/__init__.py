"""fastnn's own layers; ``fastnn.modules`` has torch's other modules too."""

import torch.nn.modules as _modules

from fastnn._names import adopt as _adopt
from fastnn.modules import activation as _activation
from fastnn.modules import attention as _attention
from fastnn.modules import batchnorm as _batchnorm
from fastnn.modules import conv as _conv
from fastnn.modules import dropout as _dropout
from fastnn.modules import embedding as _embedding
from fastnn.modules import linear as _linear
from fastnn.modules import loss as _loss
from fastnn.modules import normalization as _normalization
from fastnn.modules import pooling as _pooling
from fastnn.modules import rnn as _rnn
from fastnn.modules import softmax as _softmax
from fastnn.modules.activation import *  # noqa: F403
from fastnn.modules.attention import *  # noqa: F403
from fastnn.modules.batchnorm import *  # noqa: F403
from fastnn.modules.conv import *  # noqa: F403
from fastnn.modules.dropout import *  # noqa: F403
from fastnn.modules.embedding import *  # noqa: F403
from fastnn.modules.linear import *  # noqa: F403
from fastnn.modules.loss import *  # noqa: F403
from fastnn.modules.normalization import *  # noqa: F403
from fastnn.modules.pooling import *  # noqa: F403
from fastnn.modules.rnn import *  # noqa: F403
from fastnn.modules.softmax import *  # noqa: F403

__all__ = [
    *_activation.__all__,
    *_attention.__all__,
    *_batchnorm.__all__,
    *_conv.__all__,
    *_dropout.__all__,
    *_embedding.__all__,
    *_linear.__all__,
    *_loss.__all__,
    *_normalization.__all__,
    *_pooling.__all__,
    *_rnn.__all__,
    *_softmax.__all__,
]

_adopt(globals(), _modules, "fastnn.modules")
