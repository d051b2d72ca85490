"""Makes a fastnn module look like the torch module that it stands in for."""

import sys
from types import ModuleType
from typing import Any


def adopt(namespace: dict[str, Any], torch_module: ModuleType, name: str) -> None:
    """Add each public name of ``torch_module`` that ``namespace`` lacks, as torch's own object.

    Submodules (``torch.nn.init``, ``torch.nn.utils.rnn``) become importable under the new name too:
    ``import fastnn.utils.rnn`` finds torch's own module.
    """
    prefix = torch_module.__name__ + "."
    for key, module in list(sys.modules.items()):
        if key.startswith(prefix):
            sys.modules.setdefault(f"{name}.{key[len(prefix) :]}", module)
    for key, value in vars(torch_module).items():
        if not key.startswith("_"):
            namespace.setdefault(key, value)
