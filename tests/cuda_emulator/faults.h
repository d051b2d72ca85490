// What a test asks of a kernel that is broken on purpose.
#pragma once
#include <functional>
#include <string>

namespace fastnn::emulator {

// The message of the Error that f() throws, "" if it throws none.
std::string error_of(const std::function<void()>& f);

// Whether f(), in a process of its own, ends that process: a fault, or a sanitizer's report.
bool dies(const std::function<void()>& f);

inline bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace fastnn::emulator
