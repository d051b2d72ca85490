# libfastnn_cuda.so: the CUDA kernels and their registration, loaded by fastnn/_cuda.py where torch has CUDA.
# FASTNN_CUDA=AUTO builds it where torch has CUDA and nvcc of the same major version is found; ON insists.
# Sets cuda_reason: empty when it is built, else one clause that says why not.
set(cuda_reason "")
if(NOT FASTNN_CUDA OR FASTNN_CUDA STREQUAL "OFF")
  set(cuda_reason "switched off by FASTNN_CUDA=${FASTNN_CUDA}")
elseif(torch_cuda STREQUAL "")
  set(cuda_reason "torch ${torch_version} is built without CUDA")
elseif(CMAKE_VERSION VERSION_LESS 3.31)
  set(cuda_reason "cmake ${CMAKE_VERSION} doesn't know this nvcc's C++20: pip install cmake")
else()
  include(CheckLanguage)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 90)  # H100; others: CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES="80;90;100"
  endif()
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(cuda_reason "no nvcc was found")
  else()
    enable_language(CUDA)
    string(REGEX MATCH "^[0-9]+" nvcc_major ${CMAKE_CUDA_COMPILER_VERSION})
    string(REGEX MATCH "^[0-9]+" torch_cuda_major ${torch_cuda})
    if(NOT nvcc_major STREQUAL torch_cuda_major)
      set(cuda_reason "nvcc is ${CMAKE_CUDA_COMPILER_VERSION}, torch is built with CUDA ${torch_cuda}")
    endif()
  endif()
endif()

if(cuda_reason)
  set(cuda_architectures "")
  if(FASTNN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FASTNN_CUDA=ON, but ${cuda_reason}")
  endif()
  message(STATUS "fastnn: no CUDA kernels: ${cuda_reason}")
  return()
endif()

set(cuda_architectures ${CMAKE_CUDA_ARCHITECTURES})
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)  # torch's own copy: it is loaded before this library
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")

file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/cuda/*.cu ${CMAKE_SOURCE_DIR}/csrc/cuda/*/*.cu)
file(GLOB cuda_ops_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/ops/cuda/*.cpp)

# The kernels know nothing of torch.
add_library(fastnn_cuda OBJECT ${cuda_sources})
target_link_libraries(fastnn_cuda PRIVATE fastnn_flags)
# A kernel whose registers spill to memory does not build: give it fewer values or a larger bound.
target_compile_options(fastnn_cuda PRIVATE -Xcompiler=-Wall -Xptxas=-warn-spills,-Werror --expt-relaxed-constexpr)

add_library(_cuda MODULE ${cuda_ops_sources} $<TARGET_OBJECTS:fastnn_cuda>)
target_include_directories(_cuda SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(_cuda PRIVATE fastnn_flags torch_headers
  ${torch_lib}/libc10.so ${torch_lib}/libc10_cuda.so ${torch_lib}/libtorch.so ${torch_lib}/libtorch_cpu.so
  ${torch_lib}/libtorch_cuda.so)
set_target_properties(_cuda PROPERTIES PREFIX "" OUTPUT_NAME libfastnn_cuda SKIP_BUILD_RPATH ON LINKER_LANGUAGE CXX)
target_link_options(_cuda PRIVATE "LINKER:-rpath,$ORIGIN/../torch/lib" LINKER:--no-undefined)
install(TARGETS _cuda LIBRARY DESTINATION .)
