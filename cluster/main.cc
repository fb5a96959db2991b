// serval: the one command. The shell script beside README.md installs and builds, then comes here.
#include <CLI/CLI.hpp>
#include <string>

#include "cluster/bench.h"
#include "cluster/commands.h"
#include "cluster/model_commands.h"
#include "cluster/paths.h"
#include "node/process.h"

namespace {

void add_bench(CLI::App& app, cluster::BenchOptions& options) {
  auto* bench = app.add_subcommand(
      "bench", "Load a server and print latencies and throughput in the rows of vllm bench serve");
  bench->add_option("--url", options.url, "any OpenAI-compatible server (default: this cluster)");
  bench->add_option("--model", options.model,
                    "model name to ask for (default: the server's first)");
  bench->add_option("--requests", options.requests, "how many requests")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000));
  bench->add_option("--concurrency", options.concurrency, "requests in flight")
      ->capture_default_str()
      ->check(CLI::Range(1, 10000));
  bench->add_option("--input-tokens", options.input_tokens, "tokens of each prompt")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000));
  bench->add_option("--output-tokens", options.output_tokens, "tokens of each answer")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000000));
  bench->add_option("--seed", options.seed, "of the random prompts")->capture_default_str();
  bench->add_option("--json", options.json, "also write the result to this file");
}

void add_convert(CLI::App& app, cluster::ConvertCommand& options) {
  auto* convert = app.add_subcommand("convert", "Write a checkpoint with int8 or int4 weights");
  convert->add_option("folder", options.source, "the checkpoint")->required();
  convert->add_option("out", options.out, "the folder to make")->required();
  convert->add_option("--weights", options.weights, "int8, or int4 (experts and dense MLPs)")
      ->required()
      ->check(CLI::IsMember({"int8", "int4"}));
  convert->add_option("--group", options.group, "inputs that share an int4 scale")
      ->capture_default_str()
      ->check(CLI::IsMember({32, 64, 128}));
  auto* report = convert->add_flag("--report", options.report,
                                   "compare the logits with the source's over a text");
  convert->add_option("--text", options.texts, "text files for the report (default: the model's)")
      ->needs(report);
  convert->add_option("--positions", options.positions, "tokens of the report, at most")
      ->needs(report)
      ->capture_default_str()
      ->check(CLI::Range(2, 1000000));
}

void add_quality(CLI::App& app, cluster::QualityCommand& options) {
  auto* quality = app.add_subcommand("quality", "What KV in bf16 and int8 costs, against f32");
  quality->add_option("folder", options.folder, "the checkpoint")->required();
  quality->add_option("--text", options.texts, "text files (default: the model's)");
  quality->add_option("--positions", options.positions, "tokens, at most")
      ->capture_default_str()
      ->check(CLI::Range(2, 1000000));
  quality->add_option("--window", options.window, "tokens of a sequence; each starts anew")
      ->capture_default_str()
      ->check(CLI::Range(2, 1000000));
}

void add_make_checkpoint(CLI::App& app, cluster::MakeCheckpointCommand& options) {
  auto* make = app.add_subcommand("make-checkpoint", "Write random weights for a config.json");
  make->add_option("config", options.config, "the config.json")->required();
  make->add_option("out", options.out, "the folder to make")->required();
  make->add_option("--seed", options.seed, "of the weights")->capture_default_str();
  make->add_option("--dtype", options.dtype, "bf16 or f32")
      ->capture_default_str()
      ->check(CLI::IsMember({"bf16", "f32"}));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Serval serves LongCat-family models from a cluster of processes. One command brings it up: "
      "./serval up"};
  app.set_version_flag("--version", std::string("serval ") + SERVAL_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Also: ./serval test [tidy|unit|golden|sim|host|process|all], ./serval build, ./serval "
      "clean.\n"
      "--no-install anywhere: never install packages, say what is missing instead.");
  std::string config = cluster::default_config(), prompt, ranks, folder, engine = "local";
  bool detach = false, json = false, check = false, print = false;
  uint32_t max_tokens = 0;
  cluster::BenchOptions bench;

  auto* up = app.add_subcommand("up", "Start the cluster and wait until it serves");
  up->add_flag("--detach", detach, "return when ready; ./serval down stops it");
  up->add_flag("--check-config", check,
               "check the cluster file and exit: 0, or 3 with every mistake");
  up->add_flag("--print-config", print,
               "print the effective configuration with the origin of each value and exit");
  auto* down = app.add_subcommand("down", "Stop the cluster in order");
  auto* status = app.add_subcommand("status", "One line per node");
  status->add_flag("--json", json, "as JSON");
  auto* scale = app.add_subcommand("scale", "Add or remove decode ranks of the running cluster");
  scale->add_option("ranks", ranks, "decode=4: so many ranks")->required();
  auto* chat = app.add_subcommand("chat", "Chat in the terminal; without a prompt line by line");
  chat->add_option("prompt", prompt, "what to say");
  chat->add_option("--max-tokens", max_tokens, "at most this many tokens an answer");
  auto* verify = app.add_subcommand("verify", "Run a checkpoint against its reference outputs");
  verify
      ->add_option("folder", folder,
                   "the checkpoint, with golden.safetensors or reference.safetensors")
      ->required();
  verify->add_option("--engine", engine, "local or reference")
      ->capture_default_str()
      ->check(CLI::IsMember({"local", "reference"}));
  add_bench(app, bench);
  cluster::ConvertCommand convert;
  add_convert(app, convert);
  cluster::QualityCommand quality;
  add_quality(app, quality);
  cluster::MakeCheckpointCommand make;
  add_make_checkpoint(app, make);
  auto* digests =
      app.add_subcommand("digests", "Write the digests of a checkpoint's tensors beside it");
  digests->add_option("folder", folder, "the checkpoint")->required();
  for (CLI::App* command : {up, down, status, scale, chat, app.get_subcommand("bench")})
    command->add_option("--config", config, "the cluster file")->capture_default_str();

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : node::kExitUsage;
  }
  if (check || print) return cluster::show_config(config, print);
  if (up->parsed()) return cluster::up(config, detach);
  if (down->parsed()) return cluster::down(config);
  if (status->parsed()) return cluster::status(config, json);
  if (scale->parsed()) return cluster::scale(config, ranks);
  if (chat->parsed()) return cluster::chat(config, prompt, max_tokens);
  if (verify->parsed()) return cluster::verify(folder, engine);
  if (digests->parsed()) return cluster::write_digests(folder);
  if (app.got_subcommand("convert")) return cluster::convert(convert);
  if (app.got_subcommand("quality")) return cluster::quality(quality);
  if (app.got_subcommand("make-checkpoint")) return cluster::make_checkpoint(make);
  return cluster::bench(config, bench);
}
