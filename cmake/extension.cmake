# fastnn._C (and _cuda): the torch extension. torch is asked for its own paths: find_package(Torch) aborts
# when torch was built for CUDA and the toolkit here is slim.
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(
  COMMAND ${Python_EXECUTABLE} ${CMAKE_SOURCE_DIR}/cmake/torch_paths.py
  OUTPUT_VARIABLE torch_paths OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "torch is not visible to ${Python_EXECUTABLE}: install it there and build with "
                      "`pip install --no-build-isolation .`")
endif()
list(GET torch_paths 0 torch_version)
list(GET torch_paths 1 torch_cuda)
list(GET torch_paths 2 torch_cxx11_abi)
list(GET torch_paths 3 torch_lib)
list(SUBLIST torch_paths 4 -1 torch_includes)

add_library(torch_headers INTERFACE)
target_include_directories(torch_headers SYSTEM INTERFACE ${torch_includes} ${Python_INCLUDE_DIRS})
target_compile_definitions(torch_headers INTERFACE _GLIBCXX_USE_CXX11_ABI=${torch_cxx11_abi})

# OpenMP is torch's: the linker is given torch's libgomp by name, and nothing ships a second one.
file(GLOB torch_gomp ${torch_lib}/libgomp*.so*)
if(torch_gomp)
  list(GET torch_gomp 0 openmp_runtime)
else()
  set(openmp_runtime gomp)
endif()

file(GLOB ops_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/ops/*.cpp)
add_library(_C MODULE ${ops_sources})
target_precompile_headers(_C PRIVATE ${CMAKE_SOURCE_DIR}/csrc/ops/torch.h)
target_link_libraries(_C PRIVATE fastnn_cpu torch_headers
  ${torch_lib}/libc10.so ${torch_lib}/libtorch.so ${torch_lib}/libtorch_cpu.so ${torch_lib}/libtorch_python.so
  ${openmp_runtime})
target_compile_definitions(_C PRIVATE TORCH_EXTENSION_NAME=_C FASTNN_TORCH_VERSION="${torch_version}"
  FASTNN_TORCH_CUDA="${torch_cuda}")
execute_process(COMMAND ${Python_EXECUTABLE} -c "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"
  OUTPUT_VARIABLE python_suffix OUTPUT_STRIP_TRAILING_WHITESPACE)
set_target_properties(_C PROPERTIES PREFIX "" SUFFIX "${python_suffix}" SKIP_BUILD_RPATH ON)
target_link_options(_C PRIVATE "LINKER:-rpath,$ORIGIN/../torch/lib")
install(TARGETS _C LIBRARY DESTINATION .)

include(cmake/cuda.cmake)

configure_file(${CMAKE_SOURCE_DIR}/cmake/build_info.py.in ${CMAKE_BINARY_DIR}/_build_info.py @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/_build_info.py DESTINATION .)
