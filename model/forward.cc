#include "model/forward.h"

#include <algorithm>
#include <optional>

#include "base/check.h"
#include "model/sharded_attention.h"

namespace model {

namespace {

// Sets pass.faulty of rows that are not finite. One pass over h a layer: nothing beside the layer.
void note_faulty(Pass& pass, uint32_t layer) {
  if (pass.rows() == 0) return;
  const size_t hidden = pass.h.size() / pass.rows();
  for (uint32_t row = 0; row < pass.rows(); ++row) {
    const std::span<const float> h = std::span<const float>(pass.h).subspan(row * hidden, hidden);
    if (pass.faulty[row] == 0 && !all_finite(h)) pass.faulty[row] = layer + 1;
  }
}

// One layer of a pass on its way; what the jobs of forward() are made of.
struct LayerStep {
  Engine& engine;
  Pass& pass;
  const uint32_t layer;
  const bool first;  // of the range

  void arrive() const {
    if (layer == 0) engine.embed(pass);
    if (!first) engine.combine(layer - 1, pass);
  }
  void finish() const {
    engine.mlp(layer, 1, pass);
    note_faulty(pass, layer);  // before the layer's KV leaves
  }
};

// The site's compute side, unless there is nothing to compute: a rank may have no row of a chunk.
base::Task<void> compute(Site& site, std::function<void()> job, uint32_t rows) {
  if (rows == 0) co_return;
  base::Task<void> run = site.compute(std::move(job), rows);
  co_await std::move(run);
}

// As whole_layer(), but the KV rows of both attentions are exchanged with who has the other rows.
base::Task<bool> shared_layer(LayerStep step, Site& site) {
  auto& [engine, pass, layer, begins] = step;
  const uint32_t rows = pass.rows();
  if (!site.has_kv(layer)) {
    base::Task<void> here = site.await_kv(layer);
    co_await std::move(here);
  }
  std::function<void()> arrive = [step] {
    step.arrive();
    step.engine.begin_attend(step.layer, 0, step.pass);
    note_faulty(step.pass, step.layer);  // before its KV rows leave
  };
  base::Task<void> first = compute(site, std::move(arrive), rows);
  co_await std::move(first);
  base::Task<bool> gather = site.gather(layer, 0, pass);
  if (!co_await std::move(gather)) co_return false;
  std::function<void()> attend = [step] {
    step.engine.end_attend(step.layer, 0, step.pass);
    step.engine.route(step.layer, step.pass);
  };
  base::Task<void> second = compute(site, std::move(attend), rows);
  co_await std::move(second);

  std::optional<base::Future<bool>> shortcut;
  if (rows > 0) shortcut.emplace(base::start(site.run_experts(layer, pass)));

  std::function<void()> dense = [step] {
    step.engine.mlp(step.layer, 0, step.pass);
    step.engine.begin_attend(step.layer, 1, step.pass);
    note_faulty(step.pass, step.layer);
  };
  base::Task<void> third = compute(site, std::move(dense), rows);
  co_await std::move(third);
  base::Task<bool> again = site.gather(layer, 1, pass);
  const bool gathered = co_await std::move(again);
  if (gathered) {
    std::function<void()> rest = [step] {
      step.engine.end_attend(step.layer, 1, step.pass);
      step.finish();
    };
    base::Task<void> fourth = compute(site, std::move(rest), rows);
    co_await std::move(fourth);
    site.kv_ready(layer, pass);
  }
  const bool home = !shortcut || co_await *shortcut;
  co_return home&& gathered;
}

// As whole_layer(), but some segments' KV is on other ranks too: an attention ends when they have
// said their part of it. The experts' rows are away meanwhile, as ever.
base::Task<bool> sharded_layer(LayerStep step, Site& site) {
  const uint32_t rows = step.pass.rows();
  std::function<void()> arrive = [step] {
    step.arrive();
    step.engine.begin_attend(step.layer, 0, step.pass);
  };
  base::Task<void> first = site.compute(std::move(arrive), rows);
  co_await std::move(first);
  base::Task<bool> attend = site.attend_shards(step.layer, 0, step.pass);
  if (!co_await std::move(attend)) co_return false;
  std::function<void()> route = [step] { step.engine.route(step.layer, step.pass); };
  base::Task<void> second = site.compute(std::move(route), rows);
  co_await std::move(second);

  base::Future<bool> shortcut = base::start(site.run_experts(step.layer, step.pass));

  std::function<void()> dense = [step] {
    step.engine.mlp(step.layer, 0, step.pass);
    step.engine.begin_attend(step.layer, 1, step.pass);
  };
  base::Task<void> third = site.compute(std::move(dense), rows);
  co_await std::move(third);
  base::Task<bool> again = site.attend_shards(step.layer, 1, step.pass);
  const bool attended = co_await std::move(again);
  if (attended) {
    std::function<void()> rest = [step] { step.finish(); };
    base::Task<void> fourth = site.compute(std::move(rest), rows);
    co_await std::move(fourth);
    site.kv_ready(step.layer, step.pass);
  }
  const bool home = co_await shortcut;
  co_return home&& attended;
}

// Two hops to the computing side per layer: a layer's combine waits for the next layer's first job,
// and MLP 1 goes with attention 1. So a layer's KV leaves before its experts are home and before
// anything of the next layer computes.
base::Task<bool> whole_layer(LayerStep step, Site& site) {
  const uint32_t rows = step.pass.rows();
  if (!site.has_kv(step.layer)) {
    base::Task<void> here = site.await_kv(step.layer);
    co_await std::move(here);
  }
  std::function<void()> first_half = [step] {
    step.arrive();
    step.engine.attend(step.layer, 0, step.pass);
    step.engine.route(step.layer, step.pass);
  };
  base::Task<void> first = site.compute(std::move(first_half), rows);
  co_await std::move(first);

  base::Future<bool> shortcut = base::start(site.run_experts(step.layer, step.pass));  // rows leave

  std::function<void()> second_half = [step] {
    step.engine.mlp(step.layer, 0, step.pass);
    step.engine.attend(step.layer, 1, step.pass);
    step.finish();
  };
  base::Task<void> second = site.compute(std::move(second_half), rows);
  co_await std::move(second);
  site.kv_ready(step.layer, step.pass);

  const bool home = co_await shortcut;  // and come home here
  co_return home;
}

}  // namespace

bool has_shards(const Pass& pass) {
  return std::ranges::any_of(pass.segments,
                             [](const Segment& segment) { return !segment.away.empty(); });
}

base::Task<bool> Site::gather(uint32_t, uint32_t, Pass&) { co_return true; }

base::Task<bool> Site::attend_shards(uint32_t, uint32_t, Pass&) {
  CHECK(false, "a pass with KV away where nobody is asked for it");
  co_return false;
}

base::Task<bool> forward(Engine& engine, LayerRange layers, Pass& pass, Site& site) {
  pass.faulty.assign(pass.rows(), 0);
  if (layers.begin == 0) {
    base::Task<void> rows = site.look_up(pass);
    co_await std::move(rows);
  }
  const auto one_layer = has_shards(pass)         ? sharded_layer
                         : site.shares_sequence() ? shared_layer
                                                  : whole_layer;
  for (uint32_t layer = layers.begin; layer < layers.end; ++layer) {
    const LayerStep step{engine, pass, layer, layer == layers.begin};
    base::Task<bool> run = one_layer(step, site);
    if (!co_await std::move(run)) co_return false;
  }
  if (layers.count() > 0) {
    std::function<void()> last_half = [&engine, &pass, layer = layers.end - 1] {
      engine.combine(layer, pass);
      note_faulty(pass, layer);
    };
    base::Task<void> last = compute(site, std::move(last_half), pass.rows());
    co_await std::move(last);
  }
  co_return true;
}

base::Task<void> Site::look_up(Pass&) { co_return; }

base::Task<void> Site::await_kv(uint32_t layer) {
  (void)layer;
  co_return;
}

base::Task<void> InlineSite::compute(std::function<void()> job, uint32_t rows) {
  (void)rows;
  job();
  co_return;
}

base::Task<bool> InlineSite::run_experts(uint32_t layer, Pass& pass) {
  engine_.routed_experts(layer, pass);
  co_return true;
}

}  // namespace model
