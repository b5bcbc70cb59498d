// Holds the kernels of every instruction set that this CPU has to the portable ones: sizes, strides and numbers that are
// awkward, memory that ends where an array ends. Needs no Node.js, so that it runs under an emulator as well.
//
//   kernels_check [--cases N] [--seed N]
//
// Prints a line for each kernel of each variant: cases, and a digest of all that it computed, which is the same on any
// machine. Exits with 1 at the first difference, after a report; with 2 when a kernel leaves its memory.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "../dispatch.h"
#include "kernels_check.h"
#include "kernels_check_report.h"

namespace shardloom::check {
namespace report {
namespace {

char kernel_name[64];
char case_text[1024];

}  // namespace

void set_kernel(const char* kernel) {
  std::snprintf(kernel_name, sizeof kernel_name, "%s", kernel);
  set_case("no case yet");
}

void set_case(const std::string& text) {
  std::snprintf(case_text, sizeof case_text, "%s, %s", kernel_name, text.c_str());
}

const char* current_case() { return case_text; }

}  // namespace report

namespace {

// Only what a signal handler may call.
void on_fault(int) {
  constexpr char kText[] = "a kernel read or wrote outside its memory\n  ";
  const char* text = report::current_case();
  bool written = write(STDERR_FILENO, kText, sizeof kText - 1) >= 0;
  written = write(STDERR_FILENO, text, std::strlen(text)) >= 0 && written;
  written = write(STDERR_FILENO, "\n", 1) >= 0 && written;
  _exit(written ? 2 : 3);
}

struct Options {
  int cases = 300;
  std::uint64_t seed = 1;
};

Options options_of(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; i += 2) {
    const std::string name = arguments[i];
    const char* value = i + 1 < count ? arguments[i + 1] : "";
    char* end = nullptr;
    const unsigned long long number = std::strtoull(value, &end, 10);
    const bool whole = *value != '\0' && *end == '\0';
    if (name == "--cases" && whole && number > 0 && number <= 1'000'000) {
      options.cases = static_cast<int>(number);
    } else if (name == "--seed" && whole) {
      options.seed = number;
    } else {
      std::fprintf(stderr, "expected --cases N or --seed N but received %s %s\n", name.c_str(), value);
      std::exit(64);
    }
  }
  return options;
}

// Checks the kernel of the variant at `index`, unless a variant after it has the same one.
void run(const KernelCheck& kernel, const KernelTables& tables, int index, const Options& options) {
  const KernelTable& variant = *tables.tables[index];
  const KernelTable& portable = *tables.tables[tables.count - 1];
  for (int i = index + 1; i < tables.count; i++) {
    if (!kernel.same(variant, *tables.tables[i])) continue;
    std::printf("%-12s %-16s that of %s\n", variant.isa, kernel.kernel, tables.tables[i]->isa);
    return;
  }
  report::set_kernel(kernel.kernel);
  const int cases = options.cases / kernel.divisor;
  Check check(variant, portable, options.seed, cases > 0 ? cases : 1);
  kernel.work(check);
  std::printf("%-12s %-16s %6d cases  digest %016llx\n", variant.isa, kernel.kernel, check.cases_run(),
              static_cast<unsigned long long>(check.digest()));
  std::fflush(stdout);
}

}  // namespace
}  // namespace shardloom::check

int main(int count, char** arguments) {
  using namespace shardloom;
  using namespace shardloom::check;
  struct sigaction action = {};
  action.sa_handler = on_fault;
  for (const int fault : {SIGSEGV, SIGBUS, SIGILL}) sigaction(fault, &action, nullptr);

  const Options options = options_of(count, arguments);
  std::vector<KernelCheck> checks;
  add_linear_checks(checks);
  add_arranged_checks(checks);
  add_row_checks(checks);
  add_payload_checks(checks);
  add_attention_checks(checks);
  const KernelTables tables = supported_kernels();
  // The portable variant is held to itself: any number of rows and any split give the same bits.
  for (int i = 0; i < tables.count; i++) {
    for (const KernelCheck& kernel : checks) run(kernel, tables, i, options);
  }
  return 0;
}
