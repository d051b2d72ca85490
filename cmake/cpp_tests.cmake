# One executable per tests/cpp/test_*.cpp, on the kernels alone: no torch, no Python.
file(GLOB test_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/cpp/test_*.cpp)
add_library(cpp_harness OBJECT ${CMAKE_SOURCE_DIR}/tests/cpp/harness.cpp)
target_link_libraries(cpp_harness PUBLIC fastnn_flags)

foreach(source IN LISTS test_sources)
  get_filename_component(test ${source} NAME_WE)
  add_executable(${test} ${source})
  target_include_directories(${test} PRIVATE ${CMAKE_SOURCE_DIR}/tests/cpp)
  target_link_libraries(${test} PRIVATE cpp_harness fastnn_cpu gomp)
  add_test(NAME ${test} COMMAND ${test})
endforeach()
