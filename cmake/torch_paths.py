"""Prints, as one CMake list: version, CUDA version, C++ ABI, library folder, pybind11's and torch's includes."""

import os

import pybind11
import torch
from torch.utils.cpp_extension import include_paths

print(
    ";".join(
        [
            torch.__version__,
            torch.version.cuda or "",
            str(int(torch._C._GLIBCXX_USE_CXX11_ABI)),
            os.path.join(os.path.dirname(torch.__file__), "lib"),
            pybind11.get_include(),
            *include_paths(),
        ]
    )
)
