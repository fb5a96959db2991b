// The subcommands of `serval`, each returning its exit code (node/process.h lists them; 1: the
// thing asked for is not so).
#pragma once
#include <cstdint>
#include <string>

namespace cluster {

// Checks the cluster file; prints its effective form when `print`.
int show_config(const std::string& config, bool print);
int up(const std::string& config, bool detach);
int down(const std::string& config);
int status(const std::string& config, bool json);
// "decode=4": so many decode ranks in the running cluster; waits until they are there.
int scale(const std::string& config, const std::string& what);
int chat(const std::string& config, const std::string& prompt, uint32_t max_tokens);
int verify(const std::string& folder, const std::string& engine);

}  // namespace cluster
