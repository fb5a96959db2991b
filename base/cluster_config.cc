#include "base/cluster_config.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "base/config_reader.h"

namespace base {
namespace {

constexpr uint64_t kMiB = 1u << 20;
constexpr uint64_t kTiB = uint64_t{1} << 40;
constexpr uint32_t kAny = std::numeric_limits<uint32_t>::max();

struct NamedFault {
  std::string_view name;
  FaultPoint point;
};
constexpr NamedFault kFaultPoints[] = {{"weight", FaultPoint::kWeightBit},
                                       {"product", FaultPoint::kProductBit},
                                       {"weight_low", FaultPoint::kWeightLowBit},
                                       {"hidden_nan", FaultPoint::kHiddenNan}};

// Reads one ClusterConfig from one file. Each field is described in exactly one line of fields().
class ClusterFile {
 public:
  explicit ClusterFile(Reader* reader) : reader_(*reader) {}

  ClusterConfig read() {
    cluster_and_nodes();
    process();
    check_together();
    return std::move(c_);
  }

 private:
  void cluster_and_nodes();
  void process();
  void check_together();
  void check_address(const char* key, const std::string& value, uint16_t least_port);
  void read_faults();

  Reader& reader_;
  ClusterConfig c_;
};

std::string last_name(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path.substr(path.rfind('/') + 1);
}

void ClusterFile::cluster_and_nodes() {
  Section cluster = reader_.section("cluster");
  cluster.text("name", &c_.name, "name of the cluster, for people");
  cluster.text("model", &c_.model, "Hugging Face style folder, relative to the working directory");
  c_.served_model_name = last_name(c_.model);
  cluster.text("served_model_name", &c_.served_model_name,
               "the model's name in the API, by default its folder's");
  cluster.text("http", &c_.http, "address of the API");
  cluster.text("coordinator", &c_.coordinator, "address that nodes register at");

  Section prefill = reader_.section("prefill");
  prefill.integer("stages", &c_.prefill_stages, {1, 64, "pipeline stages (CPP depth)"});
  prefill.integer("sequence_parallel", &c_.sequence_parallel,
                  {1, 64, "ranks (processes) of a stage, which share each chunk's tokens"});
  prefill.boolean("share_experts", &c_.share_experts,
                  "each rank of a stage has its share of the experts packed, for all of them");
  prefill.boolean("share_ngram", &c_.prefill_share_ngram,
                  "each rank of the first stage reads its share of the n-gram tables, for all");
  prefill.choice("chunk", &c_.chunk,
                 {{"dynamic", "fixed"},
                  "dynamic: chunks shrink as the context grows, so that each costs the same"});
  prefill.integer("chunk_tokens", &c_.chunk_tokens,
                  {1, 32768, "tokens of a prompt per pipeline step; of the first where dynamic"});
  prefill.bytes("kv_ram", &c_.prefill_kv_bytes, {kMiB, kTiB, "KV of prompts in flight, per stage"});

  Section decode = reader_.section("decode");
  decode.integer("ranks", &c_.decode_ranks, {1, 256, "decode ranks (EP degree)"});
  decode.integer("kv_parallel", &c_.kv_parallel,
                 {1, 64, "ranks that a long prompt's KV may be spread over"});
  decode.integer("redundant_experts", &c_.redundant_experts,
                 {0, 65536, "more copies of busy experts, in each layer, spread over the ranks"});
  decode.choice("eplb", &c_.eplb,
                {{"off", "on"}, "on: experts and copies move to where the load makes them wanted"});
  decode.duration_ms("eplb_window", &c_.eplb_window_ms,
                     {100, 24 * 3'600'000, "the load of an expert is that of this last time"});
  decode.duration_ms("eplb_interval", &c_.eplb_interval_ms,
                     {100, 24 * 3'600'000, "between two plans for the experts"});
  decode.real("eplb_min_gain", &c_.eplb_min_gain,
              {0, 1,
               "a plan that betters the balance (mean over largest load of a rank) by less "
               "is skipped"});
  decode.boolean("share_ngram", &c_.decode_share_ngram,
                 "each rank reads its share of the n-gram tables, for all");
  decode.integer("max_batch", &c_.max_batch, {1, 4096, "sequences per step and rank"});
  decode.integer("micro_batches", &c_.micro_batches,
                 {1, 2, "passes of a step under way at once, where its rows suffice"});
  decode.integer("mtp_steps", &c_.mtp_steps,
                 {0, 16, "tokens drafted per sequence and step, at most; 0: no MTP"});
  decode.integer("max_rows", &c_.max_rows,
                 {0, 65535, "rows of a step, drafts included; 0: twice max_batch, 32 at least"});
  decode.integer("steps_per_schedule", &c_.steps_per_schedule,
                 {1, 64, "decode steps between two choices of who runs"});
  decode.choice("reserve", &c_.reserve,
                {{"grow", "full"},
                 "grow: KV is taken as an answer grows, and when it is short a later request gives "
                 "way; full: for the longest answer at once"});
  decode.bytes("kv_ram", &c_.decode_kv_bytes, {kMiB, kTiB, "KV of running sequences, per rank"});

  Section kvstore = reader_.section("kvstore");
  kvstore.integer("nodes", &c_.kvstore_nodes, {0, 64, "kvstore processes; 0: no prefix cache"});
  kvstore.bytes("ram", &c_.kvstore_ram_bytes, {kMiB, kTiB, "RAM tier, per process"});
  kvstore.choice("policy", &c_.kvstore_policy,
                 {{"lru", "lfu", "cost_aware"}, "which blocks leave when room is needed"});
  kvstore.text("disk", &c_.kvstore_disk,
               "folder of the disk tier, relative to the working directory; empty: none");
  kvstore.bytes("disk_bytes", &c_.kvstore_disk_bytes,
                {16 * kMiB, 256 * kTiB, "disk tier, per process, garbage included"});
}

void ClusterFile::process() {
  Section numerics = reader_.section("numerics");
  numerics.choice("mode", &c_.numerics_mode, {{"invariant", "fast"}, "kernels"});
  numerics.choice("kv", &c_.numerics_kv, {{"bf16", "f32", "int8"}, "type of KV"});
  numerics.choice("weights", &c_.numerics_weights,
                  {{"as_stored", "bf16", "int8", "int4"}, "type of weights"});
  numerics.integer("threads", &c_.threads, {1, 256, "compute threads per process"});
  numerics.boolean("hierarchical_index", &c_.hierarchical_index,
                   "sparse attention recalls blocks of tokens before it scores tokens");
  numerics.boolean("verify_products", &c_.verify_products,
                   "row checksums catch bit flips in memory and arithmetic");
  numerics.duration_ms("scrub", &c_.scrub_ms,
                       {0, 24 * 3'600'000,
                        "weights in memory are compared with their digests once in this time; "
                        "0: never"});

  Section faults = reader_.section("faults");
  faults.text(
      "inject", &c_.faults_text,
      "for tests: node:point:passes, … with point weight, weight_low, product or hidden_nan");
  read_faults();

  Section transport = reader_.section("transport");
  transport.text("bind", &c_.bind, "address nodes listen on; the system chooses the port");
  transport.choice("same_host", &c_.same_host,
                   {{"tcp", "ipc"}, "how nodes of one host talk to each other"});
  transport.bytes("max_message", &c_.max_message_bytes,
                  {kMiB, uint64_t{1} << 30, "largest message"});

  Section timing = reader_.section("timing");
  timing.duration_ms("heartbeat", &c_.heartbeat_ms, {10, 60'000, "interval of heartbeats"});
  timing.integer("heartbeat_misses", &c_.heartbeat_misses,
                 {1, 100, "a node is dead after one more interval than this without a heartbeat"});

  Section limits = reader_.section("limits");
  limits.integer("max_requests", &c_.max_requests,
                 {1, 1u << 20, "requests admitted at once; more are refused with 429"});
  uint64_t max_body = c_.max_body_bytes;
  limits.bytes("max_body", &max_body, {1024, 1u << 30, "largest HTTP request body"});
  c_.max_body_bytes = static_cast<uint32_t>(max_body);
  limits.duration_ms("request_deadline", &c_.request_deadline_ms,
                     {100, 24 * 3'600'000, "a request that takes longer ends with an error"});
  limits.integer("max_context", &c_.max_context,
                 {0, 1u << 24, "tokens of prompt and answer; 0: the model's"});

  Section placement = reader_.section("placement");
  placement.choice("policy", &c_.placement,
                   {{"kv_aware", "least_loaded", "round_robin", "random"}, "where requests run"});

  Section log = reader_.section("log");
  log.choice("format", &c_.log_format, {{"text", "json"}, "one line an event in either"});
  log.choice("level", &c_.log_level,
             {{"debug", "info", "warn", "error"}, "the least that is told"});
}

// "decode-1:weight:40, prefill-0:hidden_nan:3"
void ClusterFile::read_faults() {
  std::string_view rest = c_.faults_text;
  while (!rest.empty()) {
    const std::string_view item = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), item.size() + 1));
    const size_t from = item.find_first_not_of(' ');
    const size_t first = item.find(':'), second = item.find(':', first + 1);
    NodeFault fault;
    bool good = from != item.npos && first != item.npos && second != item.npos && from < first;
    if (good) {
      fault.node = item.substr(from, first - from);
      const std::string_view point = item.substr(first + 1, second - first - 1);
      const auto named = std::ranges::find(kFaultPoints, point, &NamedFault::name);
      good = named != std::end(kFaultPoints);
      if (good) fault.point = named->point;
      const char* const end = item.data() + item.find_last_not_of(' ') + 1;
      const auto [parsed, problem] = std::from_chars(item.data() + second + 1, end, fault.after);
      good = good && problem == std::errc() && parsed == end;
    }
    if (!good) {
      reader_.complain("faults", "inject",
                       fmt::format("\"{}\" is no fault; expected node:point:passes, such as "
                                   "decode-1:weight:40, with point weight, weight_low, product or "
                                   "hidden_nan",
                                   item));
      return;
    }
    c_.faults.push_back(std::move(fault));
  }
}

// host:port with a port in range; the host may be a name, an IPv4 address or [IPv6].
void ClusterFile::check_address(const char* key, const std::string& value, uint16_t least_port) {
  const size_t colon = value.rfind(':');
  const std::string_view host = std::string_view(value).substr(0, colon);
  uint16_t port = 0;
  bool good = colon != std::string::npos && colon > 0;
  if (good) {
    const char* end = value.data() + value.size();
    const auto [rest, problem] = std::from_chars(value.data() + colon + 1, end, port);
    good = problem == std::errc() && rest == end && port >= least_port;
    const bool bracketed = host.front() == '[' && host.back() == ']';
    good = good && (bracketed || host.find(':') == host.npos) && host.find('/') == host.npos;
  }
  if (!good) {
    reader_.complain("cluster", key,
                     fmt::format("\"{}\" is no address; expected host:port, such as "
                                 "127.0.0.1:8000",
                                 value));
  }
}

void ClusterFile::check_together() {
  if (c_.kv_parallel > c_.decode_ranks) {
    reader_.complain("decode", "kv_parallel",
                     fmt::format("{} ranks cannot share a sequence where there are {}",
                                 c_.kv_parallel, c_.decode_ranks));
  }
  if (c_.kv_parallel > 1 && c_.hierarchical_index) {
    reader_.complain("decode", "kv_parallel",
                     "sequences in shards are not offered with numerics.hierarchical_index");
  }
  check_address("http", c_.http, 0);
  check_address("coordinator", c_.coordinator, 1);
  if (c_.http == c_.coordinator) {
    reader_.complain("cluster", "coordinator",
                     fmt::format("{} is the address of the API already", c_.coordinator));
  }
  if (c_.model.empty()) reader_.complain("cluster", "model", "a folder is needed");
  if (c_.name.empty()) reader_.complain("cluster", "name", "a name is needed");
  if (c_.served_model_name.empty()) {
    reader_.complain("cluster", "served_model_name", "a name is needed");
  }
  if (c_.bind.empty() || c_.bind.find("://") != std::string::npos) {
    reader_.complain("transport", "bind", "expected an address without protocol and port");
  }
}

Result<ClusterConfig> finish(Reader* reader) {
  ClusterConfig config = ClusterFile(reader).read();
  TRY(reader->finish());
  return config;
}

}  // namespace

Result<ClusterConfig> ClusterConfig::load(const std::string& path) {
  Reader reader = TRY(Reader::open(path));
  return finish(&reader);
}

Result<ClusterConfig> ClusterConfig::parse(const std::string& text, const std::string& path) {
  Reader reader = TRY(Reader::parse(text, path));
  return finish(&reader);
}

Result<std::string> ClusterConfig::describe(const std::string& path) {
  Reader reader = TRY(Reader::open(path));
  TRY(finish(&reader));
  return reader.print();
}

}  // namespace base
