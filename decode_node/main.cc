// decode_node: the process of one decode rank.
#include <atomic>
#include <optional>

#include "decode_node/decode_actor.h"
#include "model/checkpoint.h"
#include "node/process.h"

namespace {

// What the actor's engine points into; outlives it.
struct Model {
  std::optional<model::Checkpoint> checkpoint;
  std::atomic<uint32_t> load_percent{0};
};

base::Result<std::unique_ptr<actor::Actor>> make_actor(Model& loaded, node::ProcessInfo& info) {
  const base::ClusterConfig& config = info.config;
  loaded.checkpoint = TRY(model::Checkpoint::open(config.model));
  model::EngineOptions options = model::engine_options(config);
  options.progress = [&loaded](double part) {
    loaded.load_percent = static_cast<uint32_t>(100 * part);
  };

  decode::DecodeConfig decode;
  decode.shape = TRY(model::shape_of(*loaded.checkpoint, options));
  if (decode::DecodeActor::blocks_in(config.decode_kv_bytes, decode.shape) == 0) {
    return base::fail(base::Code::kConfig,
                      "[decode] kv_bytes: {} bytes do not hold one KV block of {} tokens",
                      config.decode_kv_bytes, model::kBlockTokens);
  }
  if (config.mtp_steps > 0 && decode.shape.mtp_steps == 0) {
    return base::fail(base::Code::kConfig,
                      "[decode] mtp_steps: {} has no drafting block (model.mtp.*); only 0 works",
                      config.model);
  }
  decode.identity = info.identity;
  decode.identity.model = decode.shape.model_digest;
  decode.identity.layout = decode.shape.layout_digest;
  decode.identity.arithmetic = decode.shape.arithmetic_digest;
  decode.make_engine = [&loaded, options] {
    return model::make_local_engine(*loaded.checkpoint, options);
  };
  decode.make_vocabulary = [folder = config.model, shape = decode.shape] {
    return grammar::Vocabulary::load(folder, shape.vocab, shape.eos);
  };
  decode.load_percent = &loaded.load_percent;
  decode.read_bytes = [&loaded] { return loaded.checkpoint->bytes_read(); };
  decode.kv_bytes = config.decode_kv_bytes;
  decode.max_batch = config.max_batch;
  decode.share_ngram = config.decode_share_ngram;
  decode.mtp_steps = config.mtp_steps;
  decode.micro_batches = config.micro_batches;
  decode.max_rows = config.max_rows;
  decode.steps_per_schedule = config.steps_per_schedule;
  decode.experts.on = config.eplb == "on" || config.redundant_experts > 0;
  decode.experts.window = std::chrono::milliseconds(config.eplb_window_ms);
  decode.scrub = std::chrono::milliseconds(config.scrub_ms);
  decode.faults = node::faults_of(info);
  return std::make_unique<decode::DecodeActor>(std::move(decode));
}

}  // namespace

int main(int argc, char** argv) {
  Model loaded;
  const node::MakeActor make = [&loaded](node::ProcessInfo& info) {
    return make_actor(loaded, info);
  };
  return node::run_process(argc, argv, proto::Role::kDecode, make,
                           [](actor::Context& ctx, actor::Actor& actor) {
                             static_cast<decode::DecodeActor&>(actor).leave(ctx);
                           });
}
