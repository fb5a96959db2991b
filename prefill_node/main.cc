// prefill_node: the process of one pipeline stage.
#include <atomic>
#include <optional>

#include "model/checkpoint.h"
#include "node/process.h"
#include "prefill_node/prefill_actor.h"

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

  prefill::PrefillConfig prefill;
  prefill.shape = TRY(model::shape_of(*loaded.checkpoint, options));
  prefill.identity = info.identity;
  prefill.identity.model = prefill.shape.model_digest;
  prefill.identity.layout = prefill.shape.layout_digest;
  prefill.identity.arithmetic = prefill.shape.arithmetic_digest;
  prefill.make_engine = [&loaded, options](model::LayerRange layers) {
    model::EngineOptions stage = options;
    stage.layers = layers;
    stage.embedding = layers.begin == 0;
    stage.head = layers.end == loaded.checkpoint->config().layers;
    stage.mtp = options.mtp && stage.head;
    return model::make_local_engine(*loaded.checkpoint, stage);
  };
  prefill.make_vocabulary = [folder = config.model, shape = prefill.shape] {
    return grammar::Vocabulary::load(folder, shape.vocab, shape.eos);
  };
  prefill.load_percent = &loaded.load_percent;
  prefill.read_bytes = [&loaded] { return loaded.checkpoint->bytes_read(); };
  prefill.kv_bytes = config.prefill_kv_bytes;
  prefill.chunk_tokens = config.chunk_tokens;
  prefill.scrub = std::chrono::milliseconds(config.scrub_ms);
  prefill.share_experts = config.share_experts;
  prefill.share_ngram = config.prefill_share_ngram;
  prefill.dynamic_chunks = config.chunk == "dynamic";
  prefill.faults = node::faults_of(info);
  return std::make_unique<prefill::PrefillActor>(std::move(prefill));
}

}  // namespace

int main(int argc, char** argv) {
  Model loaded;
  const node::MakeActor make = [&loaded](node::ProcessInfo& info) {
    return make_actor(loaded, info);
  };
  return node::run_process(argc, argv, proto::Role::kPrefill, make);
}
