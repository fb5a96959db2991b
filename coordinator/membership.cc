#include "coordinator/membership.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "base/check.h"

namespace coordinator {

using proto::Hello;
using proto::HelloReply;
using proto::NodeState;
using proto::Role;
using std::chrono::milliseconds;

namespace {
constexpr base::Duration kTellTheDead = std::chrono::seconds(60);
constexpr base::Duration kSpareAsks = std::chrono::seconds(5);  // it asks again every second
constexpr size_t kStrangers = 1024;
constexpr size_t kFormerNames = 4096;
constexpr size_t kNameBytes = 200, kEndpointBytes = 1000;

std::string key_of(const Hello& hello) {
  return fmt::format("{}/{}", role_name(hello.role), hello.name);
}
}  // namespace

const char* role_name(Role role) {
  switch (role) {
    case Role::kCoordinator:
      return "coordinator";
    case Role::kPrefill:
      return "prefill";
    case Role::kDecode:
      return "decode";
    case Role::kKvstore:
      return "kvstore";
    case Role::kNone:
      break;
  }
  return "none";
}

const char* state_name(NodeState state) {
  switch (state) {
    case NodeState::kLoading:
      return "loading";
    case NodeState::kReady:
      return "ready";
    case NodeState::kDraining:
      return "draining";
  }
  return "unknown";
}

Membership::Membership(MembershipOptions options) : options_(std::move(options)) {
  CHECK(options_.stages > 0 && options_.sequence_ranks > 0 && options_.ranks > 0 &&
        options_.heartbeat_ms > 0);
  CHECK(options_.stage_layers.size() == options_.stages, "layers for {} of {} stages",
        options_.stage_layers.size(), options_.stages);
}

uint32_t Membership::positions(Role role) const {
  if (role == Role::kPrefill) return options_.stages * options_.sequence_ranks;
  if (role == Role::kKvstore) return options_.stores;
  if (role != Role::kDecode) return 0;
  uint32_t count = options_.ranks;
  for (const auto& [id, member] : members_)
    if (member.role == role) count = std::max(count, member.position + 1);
  return count;
}

uint32_t Membership::positions_most(Role role) const {
  return role == Role::kDecode ? std::max(options_.ranks, options_.ranks_most) : positions(role);
}

std::optional<std::string> Membership::why_refused(NodeId from, const Hello& hello) const {
  if (!from || from == NodeId{1}) return "a node may not use the coordinator's id";
  if (hello.protocol_min > proto::kProtocolMax || hello.protocol_max < proto::kProtocolMin) {
    return fmt::format("the node speaks protocol {} to {}, the coordinator {} to {}",
                       hello.protocol_min, hello.protocol_max, proto::kProtocolMin,
                       proto::kProtocolMax);
  }
  const bool has_model = hello.role == Role::kPrefill || hello.role == Role::kDecode;
  if (!has_model && hello.role != Role::kKvstore) {
    return fmt::format("role {} is not one of prefill, decode, kvstore",
                       static_cast<int>(hello.role));
  }
  if (hello.name.empty() || hello.name.size() > kNameBytes) {
    return fmt::format("the node's name has {} bytes, it must have 1 to {}", hello.name.size(),
                       kNameBytes);
  }
  if (hello.endpoint.empty() || hello.endpoint.size() > kEndpointBytes) {
    return fmt::format("the node's endpoint has {} bytes, it must have 1 to {}",
                       hello.endpoint.size(), kEndpointBytes);
  }
  if (!has_model) return std::nullopt;
  const auto differs = [](const char* what, const base::Hash128& node,
                          const base::Hash128& cluster) {
    return fmt::format("the node's {} digest {} is not the coordinator's {}", what, node.hex(),
                       cluster.hex());
  };
  if (hello.model != options_.model) return differs("model", hello.model, options_.model);
  if (hello.layout != options_.layout) return differs("KV layout", hello.layout, options_.layout);
  if (hello.arithmetic != options_.arithmetic) {
    return differs("arithmetic", hello.arithmetic, options_.arithmetic);
  }
  return std::nullopt;
}

namespace {

// 1 for "prefill-1": the position its operator has in mind.
std::optional<uint32_t> named_position(const std::string& name) {
  const size_t dash = name.rfind('-');
  uint32_t position = 0;
  if (dash == std::string::npos) return std::nullopt;
  const char* end = name.data() + name.size();
  const auto [rest, failed] = std::from_chars(name.data() + dash + 1, end, position);
  if (failed != std::errc{} || rest != end) return std::nullopt;
  return position;
}

}  // namespace

std::optional<uint32_t> Membership::free_position(const Hello& hello) const {
  std::set<uint32_t> taken;
  for (const auto& [id, member] : members_) {
    if (member.role == hello.role) taken.insert(member.position);
  }
  const uint32_t count = positions_most(hello.role);
  const auto former = former_position_.find(key_of(hello));
  if (former != former_position_.end() && former->second < count &&
      !taken.contains(former->second)) {
    return former->second;
  }
  const std::optional<uint32_t> named = named_position(hello.name);
  if (named && *named < count && !taken.contains(*named)) return named;
  for (uint32_t position = 0; position < count; ++position) {
    if (!taken.contains(position)) return position;
  }
  return std::nullopt;
}

HelloReply Membership::welcome(const Member& member) const {
  HelloReply reply;
  reply.verdict = HelloReply::Verdict::kWelcome;
  reply.position = member.position;
  reply.positions = std::max(positions(member.role), member.position + 1);
  if (member.role == Role::kPrefill) {
    const model::LayerRange layers = options_.stage_layers.at(stage_of(member));
    reply.layer_begin = layers.begin;
    reply.layer_end = layers.end;
  }
  reply.coordinator_life = options_.coordinator_life;
  reply.heartbeat_ms = options_.heartbeat_ms;
  return reply;
}

Membership::HelloAnswer Membership::hello(NodeId from, const Hello& hello, Time now) {
  HelloAnswer answer;
  HelloReply& reply = answer.reply;
  reply.coordinator_life = options_.coordinator_life;
  reply.heartbeat_ms = options_.heartbeat_ms;
  if (const auto known = members_.find(from); known != members_.end()) {
    known->second.heard = now;
    reply = welcome(known->second);
    return answer;
  }
  if (const auto stranger = strangers_.find(from);
      stranger != strangers_.end() && stranger->second.dead) {
    reply.verdict = HelloReply::Verdict::kNewLife;
    reply.reason = "this life was declared dead";
    return answer;
  }
  if (auto why = why_refused(from, hello)) {
    ++refusals_;
    reply.verdict = HelloReply::Verdict::kRefused;
    reply.reason = std::move(*why);
    remember(from, now + kTellTheDead, /*dead=*/false, answer.change);
    return answer;
  }
  const auto same_name = std::find_if(members_.begin(), members_.end(), [&](const auto& entry) {
    return entry.second.role == hello.role && entry.second.name == hello.name;
  });
  if (same_name != members_.end()) end_life(same_name->first, now, answer.change);

  const std::optional<uint32_t> position = free_position(hello);
  if (!position) {
    reply.verdict = HelloReply::Verdict::kNoPosition;
    reply.positions = positions(hello.role);
    remember(from, now + kSpareAsks, /*dead=*/false, answer.change);
    return answer;
  }
  Member member;
  member.node = from;
  member.role = hello.role;
  member.position = *position;
  member.name = hello.name;
  member.endpoint = hello.endpoint;
  member.version = hello.version;
  member.pid = hello.pid;
  member.heard = now;
  reply = welcome(member);
  if (former_position_.size() < kFormerNames) former_position_[key_of(hello)] = *position;
  members_.emplace(from, std::move(member));
  strangers_.erase(from);
  ++epoch_;
  answer.change.epoch_raised = true;
  return answer;
}

Membership::BeatAnswer Membership::heartbeat(NodeId from, const proto::Heartbeat& beat, Time now) {
  BeatAnswer answer;
  answer.reply.coordinator_life = options_.coordinator_life;
  answer.reply.view_epoch = epoch_;
  const auto known = members_.find(from);
  if (known == members_.end()) {
    // A spare has no position but its life is as good as any.
    const auto stranger = strangers_.find(from);
    answer.reply.known = stranger != strangers_.end() && !stranger->second.dead;
    return answer;
  }
  Member& member = known->second;
  const NodeState before = member.state();
  member.heard = now;
  member.connection_down = false;
  // One that was overtaken on its way tells of the past.
  if (beat.progress >= member.beat.progress) member.beat = beat;
  if (member.state() != before) {
    ++epoch_;
    answer.change.epoch_raised = true;
  }
  answer.reply.known = true;
  answer.reply.view_epoch = epoch_;
  answer.send_view = !answer.change.epoch_raised && beat.view_epoch < epoch_;
  return answer;
}

void Membership::connection_down(NodeId node) {
  const auto known = members_.find(node);
  if (known != members_.end()) known->second.connection_down = true;
}

Time Membership::dead_at(const Member& member) const {
  const uint32_t intervals = member.connection_down ? 2 : options_.misses + 1;
  return member.heard + milliseconds(uint64_t{intervals} * options_.heartbeat_ms);
}

Membership::Change Membership::tick(Time now) {
  Change change;
  const base::Duration still = last_tick_ ? now - *last_tick_ : base::Duration{0};
  last_tick_ = now;
  if (still > milliseconds(options_.heartbeat_ms)) {
    for (auto& [id, member] : members_) member.heard = std::min(member.heard + still, now);
  }
  std::vector<NodeId> silent;
  for (const auto& [id, member] : members_) {
    if (now > dead_at(member)) silent.push_back(id);
  }
  for (NodeId id : silent) end_life(id, now, change);
  std::erase_if(strangers_, [&](const auto& entry) {
    if (now <= entry.second.until) return false;
    change.unlink.push_back(entry.first);
    return true;
  });
  return change;
}

void Membership::end_life(NodeId node, Time now, Change& change) {
  auto entry = members_.extract(node);
  CHECK(!entry.empty(), "node {} has no life to end", node.value);
  change.died.push_back(std::move(entry.mapped()));
  remember(node, now + kTellTheDead, /*dead=*/true, change);
  ++deaths_;
  ++epoch_;
  change.epoch_raised = true;
}

void Membership::remember(NodeId node, Time until, bool dead, Change& change) {
  strangers_[node] = {until, dead};
  if (strangers_.size() <= kStrangers) return;
  const auto oldest = std::min_element(
      strangers_.begin(), strangers_.end(),
      [](const auto& a, const auto& b) { return a.second.until < b.second.until; });
  change.unlink.push_back(oldest->first);
  strangers_.erase(oldest);
}

proto::ClusterView Membership::view() const {
  proto::ClusterView view;
  view.coordinator_life = options_.coordinator_life;
  view.epoch = epoch_;
  for (const auto& [id, member] : members_) {
    proto::ViewNode node;
    node.node = id;
    node.role = member.role;
    node.position = member.position;
    node.state = member.state();
    node.name = member.name;
    node.endpoint = member.endpoint;
    view.nodes.push_back(std::move(node));
  }
  return view;
}

const Member* Membership::find(NodeId node) const {
  const auto known = members_.find(node);
  return known == members_.end() ? nullptr : &known->second;
}

const Member* Membership::ready_at(Role role, uint32_t position) const {
  for (const auto& [id, member] : members_) {
    if (member.role == role && member.position == position && member.ready()) return &member;
  }
  return nullptr;
}

std::vector<const Member*> Membership::ready(Role role) const {
  std::vector<const Member*> found;
  for (const auto& [id, member] : members_) {
    if (member.role == role && member.ready()) found.push_back(&member);
  }
  std::sort(found.begin(), found.end(),
            [](const Member* a, const Member* b) { return a->position < b->position; });
  return found;
}

std::vector<const Member*> Membership::ready_in_stage(uint32_t stage) const {
  std::vector<const Member*> found = ready(Role::kPrefill);
  std::erase_if(found, [&](const Member* member) { return stage_of(*member) != stage; });
  return found;
}

std::vector<std::string> Membership::missing() const {
  std::vector<std::string> missing;
  for (uint32_t stage = 0; stage < options_.stages; ++stage) {
    if (ready_in_stage(stage).empty()) missing.push_back(fmt::format("no prefill stage {}", stage));
  }
  if (ready(Role::kDecode).empty()) missing.push_back("no decode rank");
  return missing;
}

}  // namespace coordinator
