// Stands for CUDA's header of this name, of which the launchers need one word.
#pragma once

using cudaStream_t = struct CUstream_st*;
