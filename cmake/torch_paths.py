"""Prints, as one CMake list: version, CUDA version, C++ ABI, library folder, includes (pybind11 is among torch's)."""

import os

import torch
from torch.utils.cpp_extension import include_paths

print(
    ";".join(
        [
            torch.__version__,
            torch.version.cuda or "",
            str(int(torch._C._GLIBCXX_USE_CXX11_ABI)),
            os.path.join(os.path.dirname(torch.__file__), "lib"),
            *include_paths(),
        ]
    )
)
