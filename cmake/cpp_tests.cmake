# One executable per tests/cpp/test_*.cpp, on the kernels alone: no torch, no Python.
file(GLOB test_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/cpp/test_*.cpp)
add_library(cpp_harness OBJECT ${CMAKE_SOURCE_DIR}/tests/cpp/harness.cpp)
target_link_libraries(cpp_harness PUBLIC fastnn_flags)

# tests/cpp/kernels: probes that see the vector types, built once per instruction set like the kernels.
file(GLOB probe_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/cpp/kernels/*.cpp)
set(probe_objects "")
foreach(isa IN LISTS isas)
  add_kernels(probe_${isa} ${isa} ${probe_sources})
  target_include_directories(probe_${isa} PRIVATE ${CMAKE_SOURCE_DIR}/tests/cpp)
  list(APPEND probe_objects $<TARGET_OBJECTS:probe_${isa}>)
endforeach()
add_library(cpp_probes STATIC ${probe_objects})
set_target_properties(cpp_probes PROPERTIES LINKER_LANGUAGE CXX)

foreach(source IN LISTS test_sources)
  get_filename_component(test ${source} NAME_WE)
  add_executable(${test} ${source} ${CMAKE_SOURCE_DIR}/tests/cpp/capabilities.cpp)
  target_include_directories(${test} PRIVATE ${CMAKE_SOURCE_DIR}/tests/cpp)
  target_link_libraries(${test} PRIVATE cpp_harness cpp_probes fastnn_cpu gomp)
  add_test(NAME ${test} COMMAND ${test})
endforeach()
