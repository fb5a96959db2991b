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
int chat(const std::string& config, const std::string& prompt, uint32_t max_tokens);
int verify(const std::string& folder, const std::string& engine);

}  // namespace cluster
