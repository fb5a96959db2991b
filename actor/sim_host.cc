#include "actor/sim_host.h"

#include <algorithm>

#include "actor/sim_internal.h"

namespace actor {
namespace {

constexpr size_t kRecentLines = 400;

class SimInjector final : public Injector {
 public:
  using Post = std::function<void(std::function<void()>)>;
  explicit SimInjector(Post post) : post_(std::move(post)) {}
  void post(std::function<void()> run) override { post_(std::move(run)); }

 private:
  Post post_;
};

}  // namespace

// --- lives and events

SimHost::State::State(SimHost& h)
    : host(h), network_rng(h.options_.seed, 1), compute_rng(h.options_.seed, 2) {}

SimHost::Node& SimHost::State::node(const std::string& name) {
  const auto found = nodes.find(name);
  CHECK(found != nodes.end(), "no simulated node is called {}", name);
  return *found->second;
}

void SimHost::State::start(Node& node) {
  const uint64_t life = ++node.life;
  node.context = std::make_unique<SimContext>(*this, node);
  node.injectors.push_back(
      std::make_unique<SimInjector>([this, &node, life](std::function<void()> run) {
        if (node.life == life) add_input(node, host.now_, std::move(run));
      }));
  node.actor = node.factory();
  add_input(node, host.now_, [&node] { node.actor->start(*node.context); });
}

void SimHost::State::destroy(Node& node) {
  node.doomed = false;
  node.held.clear();
  node.paused_until = Time{};
  const NodeId id = node.context->id();
  // Coroutines refer to the actor, and both to the context.
  node.context->end();
  node.actor.reset();
  node.context.reset();
  report_peer_down(node, id);
}

void SimHost::State::kill(Node& node) {
  if (node.context == nullptr) return;
  if (running == &node) {
    node.doomed = true;
  } else {
    destroy(node);
  }
}

void SimHost::State::enter(Node& node, const std::function<void()>& run) {
  if (running == &node) return run();
  CHECK(running == nullptr, "{} runs code of {}", running->name, node.name);
  running = &node;
  run();
  node.context->reap();
  running = nullptr;
  if (node.doomed) destroy(node);
}

void SimHost::State::add_input(Node& node, Time at, std::function<void()> run) {
  events.add(at, [this, &node, life = node.life, run = std::move(run)]() mutable {
    take_input(node, life, std::move(run));
  });
}

void SimHost::State::take_input(Node& node, uint64_t life, std::function<void()> run) {
  if (node.context == nullptr || node.life != life) return;
  if (host.now_ < node.paused_until || !node.held.empty()) {
    node.held.push_back(std::move(run));
  } else {
    enter(node, run);
  }
}

void SimHost::State::drain_held(Node& node) {
  while (!node.held.empty() && host.now_ >= node.paused_until) {
    const std::function<void()> run = std::move(node.held.front());
    node.held.pop_front();
    enter(node, run);
  }
}

void SimHost::State::report_peer_down(Node& dead, NodeId id) {
  for (const auto& [name, peer] : nodes) {
    if (peer->context == nullptr || peer->context->linked(id) != &dead) continue;
    Node& to = *peer;
    events.add(host.now_ + host.options_.peer_down_after, [this, &dead, &to, id, life = to.life] {
      const bool back = dead.context != nullptr;  // its endpoint answers again
      if (back || blocked(dead, to) || network_rng.chance(host.options_.network.loss)) return;
      take_input(to, life, [&dead, &to, id] {
        if (to.context->linked(id) == &dead) to.actor->peer_down(*to.context, id);
      });
    });
  }
}

void SimHost::State::watch_silence(Duration d) {
  const Duration silence = host.options_.peer_silence;
  if (d > silence) events.add(host.now_ + silence, [this] { report_silence(); });
}

void SimHost::State::report_silence() {
  for (const auto& [name, owned] : nodes) {
    Node& node = *owned;
    if (node.context == nullptr) continue;
    for (const NodeId id : node.context->links()) {
      Node* peer = node.context->linked(id);
      if (peer == nullptr || peer->context == nullptr || peer->context->id() != id) continue;
      const bool paused = host.now_ < peer->paused_until;
      if (!paused && !blocked(node, *peer) && !blocked(*peer, node)) continue;
      take_input(node, node.life, [&node, id] {
        if (node.context->linked(id) != nullptr) node.actor->peer_down(*node.context, id);
      });
    }
  }
}

void SimHost::State::log_line(base::Level level, std::string_view line) {
  if (level == base::Level::kError) {
    ++host.error_logs_;
    host.error_lines_.emplace_back(line);
  }
  recent_log.emplace_back(line);
  if (recent_log.size() > kRecentLines) recent_log.pop_front();
  if (host.options_.log) host.options_.log(level, line);
}

// --- SimHost

SimHost::SimHost(SimOptions options)
    : options_(std::move(options)), rng_(options_.seed), state_(std::make_unique<State>(*this)) {}

SimHost::~SimHost() {
  for (const auto& [name, node] : state_->nodes) state_->kill(*node);
}

void SimHost::add(const std::string& name, uint16_t actor_id, Factory factory, NodeId fixed) {
  CHECK(!state_->nodes.contains(name), "two simulated nodes are called {}", name);
  auto node = std::make_unique<Node>();
  node->name = name;
  node->index = static_cast<uint32_t>(state_->nodes.size());
  node->actor_id = actor_id;
  node->factory = std::move(factory);
  node->fixed = fixed;
  Node& added = *node;
  state_->nodes.emplace(name, std::move(node));
  state_->start(added);
}

Actor* SimHost::actor(const std::string& name) { return state_->node(name).actor.get(); }

Context* SimHost::context(const std::string& name) { return state_->node(name).context.get(); }

size_t SimHost::open_calls(const std::string& name) {
  const Node& node = state_->node(name);
  return node.context != nullptr ? node.context->open_calls() : 0;
}

void SimHost::kill(const std::string& name) { state_->kill(state_->node(name)); }

void SimHost::restart(const std::string& name) {
  Node& node = state_->node(name);
  CHECK(state_->running != &node, "{} cannot restart itself", name);
  state_->kill(node);
  state_->start(node);
}

void SimHost::pause(const std::string& name, Duration d) {
  Node& node = state_->node(name);
  if (node.context == nullptr) return;
  node.paused_until = std::max(node.paused_until, now_ + d);
  state_->watch_silence(d);
  // In another life there is nothing held from this one, and what is held then waits by itself.
  state_->events.add(now_ + d, [this, &node] { state_->drain_held(node); });
}

void SimHost::partition(const std::set<std::string>& side, Duration d) {
  for (const std::string& name : side) state_->node(name);  // CHECKs the names
  std::erase_if(state_->partitions, [this](const auto& p) { return p.until <= now_; });
  state_->partitions.push_back({side, now_ + d});
  state_->watch_silence(d);
}

void SimHost::cut(const std::string& from, const std::string& to, Duration d) {
  Time& until = state_->cuts[{state_->node(from).index, state_->node(to).index}];
  until = std::max(until, now_ + d);
  state_->watch_silence(d);
}

void SimHost::clog(const std::string& from, const std::string& to, Duration d) {
  Time& until = state_->clogs[{state_->node(from).index, state_->node(to).index}];
  until = std::max(until, now_ + d);
}

void SimHost::throttle(const std::string& from, const std::string& to, double bytes_per_second) {
  const State::Pair pair{state_->node(from).index, state_->node(to).index};
  if (bytes_per_second > 0) {
    state_->limits[pair] = bytes_per_second;
  } else {
    state_->limits.erase(pair);
  }
}

void SimHost::at(Duration after_start, std::function<void()> run) {
  state_->events.add(std::max(now_, Time(after_start)), std::move(run));
}

bool SimHost::run_until(const std::function<bool()>& done, Duration limit) {
  CHECK(state_->running == nullptr, "the simulation is run from within itself");
  const Time end = std::max(now_, Time(limit));
  while (!done()) {
    const auto next = state_->events.next();
    if (!next || *next > end) {
      now_ = end;
      return done();
    }
    now_ = std::max(now_, *next);
    state_->events.run_due(now_, 1);
  }
  return true;
}

void SimHost::run_for(Duration d) {
  run_until([] { return false; }, (now_ + d).time_since_epoch());
}

std::string SimHost::recent_log() const {
  std::string out;
  for (const std::string& line : state_->recent_log) {
    out += line;
    out += '\n';
  }
  return out;
}

}  // namespace actor
