// kvstore_trace FILE [--policy NAME] [--blocks N…]: hit rates of a trace through the store's own
// index and eviction code.
#include <fmt/core.h>

#include <CLI/CLI.hpp>

#include "kvstore/replay.h"

int main(int argc, char** argv) {
  std::string path, only;
  std::vector<uint64_t> sizes{1000, 5859, 10'000, 30'000, 50'000, 97'656, 0};
  CLI::App app{"Replays a trace of prompts through the kvstore's index."};
  app.add_option("file", path, "the trace (tests/data/traces)")->required();
  app.add_option("--policy", only, "one policy; default: each");
  app.add_option("--blocks", sizes, "sizes of the store, 0: infinite")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const auto trace = kvstore::read_trace(path);
  if (!trace) {
    fmt::print(stderr, "{}\n", trace.error().what);
    return 1;
  }
  fmt::print("{:<11} {:>8} {:>9} {:>9} {:>9} {:>9}\n", "policy", "blocks", "plain", "saved",
             "leased", "saved");
  for (const kvstore::Policy& policy : kvstore::policies()) {
    if (!only.empty() && only != policy.name) continue;
    for (const uint64_t blocks : sizes) {
      const auto plain = kvstore::replay(*trace, {blocks, &policy, false});
      const auto leased = kvstore::replay(*trace, {blocks, &policy, true});
      fmt::print("{:<11} {:>8} {:>9.4f} {:>9.4f} {:>9.4f} {:>9.4f}\n", policy.name, blocks,
                 plain.hit_rate(), plain.saved_rate(), leased.hit_rate(), leased.saved_rate());
    }
  }
  return 0;
}
