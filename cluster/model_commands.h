// The subcommands of `serval` that make checkpoints or measure them; each returns its exit code.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace cluster {

struct ConvertCommand {
  std::string source, out;
  std::string weights;  // "int8" or "int4"
  uint32_t group = 64;
  bool report = false;
  std::vector<std::string> texts;  // of the report; none: the checkpoint's own
  uint32_t positions = 4096;       // of the report, at most
};
// Prints what was written and, when asked, how the converted model's logits differ.
int convert(const ConvertCommand& command);

struct QualityCommand {
  std::string folder;
  std::vector<std::string> texts;  // none: the checkpoint's own
  uint32_t positions = 4096, window = 256;
};
// Prints what KV in bf16 and in int8 changes in the logits, against KV in f32.
int quality(const QualityCommand& command);

struct MakeCheckpointCommand {
  std::string config, out;
  uint64_t seed = 1;
  std::string dtype = "bf16";  // or "f32"
};
int make_checkpoint(const MakeCheckpointCommand& command);

// Writes the digests of a checkpoint's tensors beside it (model/tensor_digests.h).
int write_digests(const std::string& folder);

}  // namespace cluster
