# fastnn_cpu: the torch-free CPU side. csrc/cpu/kernels is compiled once per instruction set.
file(GLOB cpu_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/cpu/*.cpp ${CMAKE_SOURCE_DIR}/csrc/cpu/*/*.cpp)
file(GLOB kernel_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/cpu/kernels/*.cpp)
list(REMOVE_ITEM cpu_sources ${kernel_sources})

add_library(fastnn_flags INTERFACE)
target_include_directories(fastnn_flags INTERFACE ${CMAKE_SOURCE_DIR}/csrc ${CMAKE_SOURCE_DIR}/csrc/include)
# No errno and no traps let sqrt and comparisons vectorise; fused multiply-add only where a kernel says so.
target_compile_options(fastnn_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-unknown-pragmas -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=off>)

set(isas portable)
set(isa_portable_flags "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_compile_definitions(fastnn_flags INTERFACE FASTNN_X86)
  list(APPEND isas avx2 avx512)
  set(isa_avx2_flags -mavx2 -mfma -mf16c -mtune=haswell)
  # gcc 12 sees an uninitialised value inside its own AVX-512 headers.
  set(isa_avx512_flags -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512
      -Wno-uninitialized -Wno-maybe-uninitialized)
endif()

# Objects compiled for one instruction set.
# -Wno-psabi, -Wno-ignored-attributes: gcc's notes on passing registers between functions that are inlined anyway.
function(add_kernels target isa)
  add_library(${target} OBJECT ${ARGN})
  target_link_libraries(${target} PRIVATE fastnn_flags)
  target_compile_options(${target} PRIVATE ${isa_${isa}_flags} -Wno-psabi -Wno-ignored-attributes -Wno-unused-function)
  target_compile_definitions(${target} PRIVATE FASTNN_ISA=${isa})
endfunction()

set(isa_objects "")
foreach(isa IN LISTS isas)
  add_kernels(fastnn_${isa} ${isa} ${kernel_sources})
  list(APPEND isa_objects $<TARGET_OBJECTS:fastnn_${isa}>)
endforeach()

add_library(fastnn_cpu STATIC ${cpu_sources} ${isa_objects})
target_link_libraries(fastnn_cpu PUBLIC fastnn_flags)
