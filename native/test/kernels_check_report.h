// The case that is being checked, in memory that a signal handler may read.
#pragma once

#include <string>

namespace shardloom::check::report {

void set_kernel(const char* kernel);
void set_case(const std::string& text);
const char* current_case();

}  // namespace shardloom::check::report
