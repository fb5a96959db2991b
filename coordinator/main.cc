// The coordinator process: the actor that runs the cluster, and the HTTP API in front of it.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "coordinator/coordinator_actor.h"
#include "coordinator/front_end.h"
#include "model/checkpoint.h"
#include "node/process.h"

namespace coordinator {
namespace {

constexpr base::Duration kDrain = std::chrono::seconds(30);

// What the API needs of a model folder; constant while the process lives.
struct ModelFiles {
  model::Tokenizer tokenizer;
  model::ChatFormat format;
  model::Shape shape;
  ApiModel api;
};

std::string served_name(const base::ClusterConfig& config) {
  if (!config.served_model_name.empty()) return config.served_model_name;
  std::filesystem::path folder(config.model);
  if (!folder.has_filename()) folder = folder.parent_path();  // "models/x/"
  return folder.filename().string();
}

base::Result<ModelFiles> open_model(const base::ClusterConfig& config) {
  const model::Checkpoint checkpoint = TRY(model::Checkpoint::open(config.model));
  model::Shape shape = TRY(model::shape_of(checkpoint, model::engine_options(config)));
  model::Tokenizer tokenizer = TRY(model::Tokenizer::load(config.model));
  model::ChatFormat format = TRY(model::ChatFormat::load(config.model, tokenizer));
  ApiModel api;
  TRY(load_generation_defaults(config.model, api));
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  api.created = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  api.name = served_name(config);
  api.vocab = shape.vocab;
  api.max_context =
      config.max_context == 0 ? shape.max_context : std::min(config.max_context, shape.max_context);
  api.eos = shape.eos;
  api.thinking = format.supports_thinking();
  const std::string bits = shape.arithmetic_digest.hex() + shape.layout_digest.hex();
  api.fingerprint = "serval-" + base::hash128(bits).hex().substr(0, 12);
  size_t longest = 1;
  for (TokenId id = 0; id < tokenizer.size(); ++id) {
    longest = std::max(longest, tokenizer.bytes(id).size());
  }
  api.longest_token = static_cast<uint32_t>(longest);
  return ModelFiles{std::move(tokenizer), format, std::move(shape), std::move(api)};
}

base::Log front_end_log(const base::ClusterConfig& config) {
  const auto format = config.log_format == "json" ? base::LogFormat::kJson : base::LogFormat::kText;
  const bool quiet = config.log_level == "warn" || config.log_level == "error";
  return base::Log::to_stderr("coordinator", format,
                              quiet ? base::Level::kWarn : base::Level::kInfo);
}

// The actor of this process: the CoordinatorActor, with a front end that lives as long.
class CoordinatorProcess final : public actor::Actor {
 public:
  CoordinatorProcess(ModelFiles files, CoordinatorOptions options)
      : files_(std::move(files)), actor_(std::make_unique<CoordinatorActor>(std::move(options))) {}
  // The host has stopped: the HTTP thread ends first, then go the sinks that the actor holds, and
  // last what they point to.
  ~CoordinatorProcess() override {
    if (front_end_) front_end_->stop();
    actor_.reset();
  }

  base::Status listen(node::ProcessInfo& info) {
    FrontEndOptions options;
    options.listen = info.config.http;
    options.model = files_.api;
    options.version = info.identity.version;
    options.seed = info.context.random();
    options.max_body_bytes = info.config.max_body_bytes;
    front_end_ = TRY(FrontEnd::start(std::move(options), files_.tokenizer, files_.format, *actor_,
                                     info.context.injector(), front_end_log(info.config)));
    return {};
  }

  void start(actor::Context& ctx) override { actor_->start(ctx); }
  void receive(actor::Context& ctx, actor::Envelope&& e) override {
    actor_->receive(ctx, std::move(e));
  }
  void peer_down(actor::Context& ctx, base::NodeId node) override { actor_->peer_down(ctx, node); }

  // Refuses new work, lets running requests end for at most kDrain, then stops.
  void drain(actor::Context& ctx) {
    actor_->drain();
    front_end_->drain();
    ctx.spawn(finish(ctx, *this));
  }

 private:
  static base::Task<void> finish(actor::Context& ctx, CoordinatorProcess& self) {
    const base::Time until = ctx.now() + kDrain;
    do {
      co_await ctx.sleep(std::chrono::milliseconds(50));
    } while (ctx.now() < until && self.front_end_->answering() > 0);
    ctx.stop(0);
  }

  ModelFiles files_;
  std::unique_ptr<CoordinatorActor> actor_;
  std::unique_ptr<FrontEnd> front_end_;
};

base::Result<std::unique_ptr<actor::Actor>> make(node::ProcessInfo& info) {
  CoordinatorOptions options;
  options.config = info.config;
  options.config.served_model_name = served_name(info.config);
  options.version = info.identity.version;
  options.pid = info.identity.pid;
  ModelFiles files = TRY(open_model(info.config));
  options.shape = files.shape;
  if (info.config.prefill_stages > files.shape.layers) {
    return base::fail(base::Code::kMismatch,
                      "prefill.stages is {}, but {} has only {} layers to divide over them",
                      info.config.prefill_stages, info.config.model, files.shape.layers);
  }
  auto process = std::make_unique<CoordinatorProcess>(std::move(files), std::move(options));
  TRY(process->listen(info));
  return process;
}

}  // namespace
}  // namespace coordinator

int main(int argc, char** argv) {
  return node::run_process(argc, argv, proto::Role::kCoordinator, coordinator::make,
                           [](actor::Context& ctx, actor::Actor& actor) {
                             static_cast<coordinator::CoordinatorProcess&>(actor).drain(ctx);
                           });
}
