"""What runs on fastnn's kernels on a GPU.

``fastnn.backends.cuda.products = True`` gives ``Linear`` and convolutions on CUDA to fastnn's kernels too (float32, float64,
bfloat16, float16; float32 in tf32 where ``torch.backends`` says so). Default False, or True where the environment
variable ``FASTNN_CUDA_PRODUCTS`` is 1: no GPU has measured them yet, and by reckoning they take up to twice the time of
cuBLAS and cuDNN. All other layers with CUDA kernels run them without being asked. The switch holds for the whole
process.
"""

import sys
from types import ModuleType

from fastnn import _C

products: bool


class _Switches(ModuleType):
    @property
    def products(self) -> bool:
        return _C.cuda_products()

    @products.setter
    def products(self, on: bool) -> None:
        _C.set_cuda_products(bool(on))


sys.modules[__name__].__class__ = _Switches
