#include "base/cluster_config.h"

#include <gtest/gtest.h>

#include <fstream>

namespace base {
namespace {

std::string error_of(const std::string& text) {
  const Result<ClusterConfig> config = ClusterConfig::parse(text, "c.toml");
  return config ? "" : config.error().what;
}

TEST(ClusterConfig, AnEmptyFileIsTheDefaultCluster) {
  const Result<ClusterConfig> config = ClusterConfig::parse("", "c.toml");
  ASSERT_TRUE(config) << config.error().what;
  EXPECT_EQ(config->prefill_stages, 2u);
  EXPECT_EQ(config->decode_ranks, 2u);
  EXPECT_EQ(config->served_model_name, "serval-tiny");
  EXPECT_EQ(config->kvstore_ram_bytes, 256u << 20);
  EXPECT_EQ(config->request_deadline_ms, 600'000u);
}

// The names are a contract with users: this text must be read for ever.
constexpr const char* kEveryKey = R"([cluster]
name = "rack"
model = "/models/lite/"
served_model_name = "lite"
http = "0.0.0.0:80"
coordinator = "head:8100"
[prefill]
stages = 4
sequence_parallel = 1
chunk = "fixed"
chunk_tokens = 16
kv_ram = "1GiB"
[decode]
ranks = 8
kv_parallel = 1
redundant_experts = 4
eplb = "on"
eplb_window = "10s"
eplb_interval = "2m"
eplb_min_gain = 0.1
max_batch = 8
micro_batches = 2
mtp_steps = 3
steps_per_schedule = 1
kv_ram = "2GiB"
[kvstore]
nodes = 0
ram = "1MiB"
policy = "cost_aware"
disk = "/var/kv"
disk_bytes = "2TiB"
[numerics]
mode = "invariant"
kv = "int8"
weights = "as_stored"
threads = 2
[transport]
bind = "10.0.0.1"
same_host = "ipc"
max_message = "1MiB"
[timing]
heartbeat = "50ms"
heartbeat_misses = 3
[limits]
max_requests = 4
max_body = "1KiB"
request_deadline = "2s"
max_context = 512
[placement]
policy = "round_robin"
[log]
format = "json"
level = "debug"
)";

TEST(ClusterConfig, ReadsEveryKey) {
  const Result<ClusterConfig> config = ClusterConfig::parse(kEveryKey, "c.toml");
  ASSERT_TRUE(config) << config.error().what;
  EXPECT_EQ(config->name, "rack");
  EXPECT_EQ(config->served_model_name, "lite");
  EXPECT_EQ(config->http, "0.0.0.0:80");
  EXPECT_EQ(config->coordinator, "head:8100");
  EXPECT_EQ(config->prefill_stages, 4u);
  EXPECT_EQ(config->chunk, "fixed");
  EXPECT_EQ(config->chunk_tokens, 16u);
  EXPECT_EQ(config->prefill_kv_bytes, 1ull << 30);
  EXPECT_EQ(config->decode_ranks, 8u);
  EXPECT_EQ(config->max_batch, 8u);
  EXPECT_EQ(config->decode_kv_bytes, 2ull << 30);
  EXPECT_EQ(config->kvstore_nodes, 0u);
  EXPECT_EQ(config->kvstore_ram_bytes, 1u << 20);
  EXPECT_EQ(config->kvstore_policy, "cost_aware");
  EXPECT_EQ(config->kvstore_disk, "/var/kv");
  EXPECT_EQ(config->kvstore_disk_bytes, 2ull << 40);
  EXPECT_EQ(config->numerics_kv, "int8");
  EXPECT_EQ(config->threads, 2u);
  EXPECT_EQ(config->bind, "10.0.0.1");
  EXPECT_EQ(config->same_host, "ipc");
  EXPECT_EQ(config->max_message_bytes, 1u << 20);
  EXPECT_EQ(config->heartbeat_ms, 50u);
  EXPECT_EQ(config->heartbeat_misses, 3u);
  EXPECT_EQ(config->max_requests, 4u);
  EXPECT_EQ(config->max_body_bytes, 1024u);
  EXPECT_EQ(config->request_deadline_ms, 2000u);
  EXPECT_EQ(config->redundant_experts, 4u);
  EXPECT_EQ(config->eplb, "on");
  EXPECT_EQ(config->eplb_window_ms, 10'000u);
  EXPECT_EQ(config->eplb_interval_ms, 120'000u);
  EXPECT_EQ(config->eplb_min_gain, 0.1);
  EXPECT_EQ(config->max_context, 512u);
  EXPECT_EQ(config->placement, "round_robin");
  EXPECT_EQ(config->log_format, "json");
  EXPECT_EQ(config->log_level, "debug");
}

TEST(ClusterConfig, TheServedNameIsTheModelFoldersByDefault) {
  EXPECT_EQ(ClusterConfig::parse("[cluster]\nmodel = \"/m/lite/\"\n", "c")->served_model_name,
            "lite");
}

TEST(ClusterConfig, WhatIsNotOfferedIsRefusedByNameWithWhatIs) {
  const struct {
    const char* text;
    const char* error;
  } cases[] = {
      {"[prefill]\nsequence_parallel = 0\n", "c.toml:2:21: prefill.sequence_parallel"},
      {"[prefill]\nchunk_tokens = 0\n", "c.toml:2:16: prefill.chunk_tokens"},
      {"[prefill]\nchunk = \"small\"\n", "c.toml:2:9: prefill.chunk"},
      {"[decode]\nkv_parallel = 3\n",
       "c.toml:2:15: decode.kv_parallel: 3 ranks cannot share a sequence where there are 2"},
      {"[decode]\nkv_parallel = 2\n[numerics]\nhierarchical_index = true\n",
       "c.toml:2:15: decode.kv_parallel: sequences in shards are not offered with"},
      {"[decode]\neplb = \"sometimes\"\n", "c.toml:2:8: decode.eplb"},
      {"[decode]\neplb_min_gain = 2.0\n", "c.toml:2:17: decode.eplb_min_gain"},
      {"[decode]\nmicro_batches = 3\n", "c.toml:2:17: decode.micro_batches"},
      {"[decode]\nmtp_steps = 17\n", "c.toml:2:13: decode.mtp_steps"},
      {"[decode]\nsteps_per_schedule = 0\n", "c.toml:2:22: decode.steps_per_schedule"},
      {"[decode]\nreserve = \"none\"\n", "c.toml:2:11: decode.reserve"},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(error_of(c.text).substr(0, std::string_view(c.error).size()), c.error);
  }
}

TEST(ClusterConfig, FaultsAreNodePointAndPasses) {
  const auto config = ClusterConfig::parse(
      "[faults]\ninject = \"decode-1:weight:40, prefill-0:hidden_nan:0\"\n", "c.toml");
  ASSERT_TRUE(config.has_value()) << config.error().what;
  ASSERT_EQ(config->faults.size(), 2u);
  EXPECT_EQ(config->faults[0].node, "decode-1");
  EXPECT_EQ(config->faults[0].point, FaultPoint::kWeightBit);
  EXPECT_EQ(config->faults[0].after, 40u);
  EXPECT_EQ(config->faults[1].node, "prefill-0");
  EXPECT_EQ(config->faults[1].point, FaultPoint::kHiddenNan);
  for (const char* bad : {"decode-1", "decode-1:weight", "decode-1:weight:", "decode-1:weight:x",
                          ":weight:1", "decode-1:nothing:1", "a:weight:1,,b:weight:2", " "}) {
    EXPECT_NE(error_of(fmt::format("[faults]\ninject = \"{}\"\n", bad)), "") << bad;
  }
}

TEST(ClusterConfig, AddressesAreHostAndPort) {
  for (const char* bad : {"", "8000", "host", "host:", ":8000", "host:70000", "host:80x", "::1:80",
                          "http://host:80", "host:-1"}) {
    EXPECT_NE(error_of(fmt::format("[cluster]\nhttp = \"{}\"\n", bad)), "") << bad;
  }
  for (const char* good : {"host:1", "[::1]:8000", "127.0.0.1:0"}) {
    EXPECT_EQ(error_of(fmt::format("[cluster]\nhttp = \"{}\"\n", good)), "") << good;
  }
  EXPECT_NE(error_of("[cluster]\ncoordinator = \"host:0\"\n"), "");
  EXPECT_EQ(error_of("[cluster]\nhttp = \"a:1\"\ncoordinator = \"a:1\"\n"),
            "c.toml:3:15: cluster.coordinator: a:1 is the address of the API already");
}

TEST(ClusterConfig, DescribesTheEffectiveFileWithOrigins) {
  const std::string path = testing::TempDir() + "cluster_config_test.toml";
  std::ofstream(path) << "[decode]\nranks = 3\n";
  const Result<std::string> text = ClusterConfig::describe(path);
  ASSERT_TRUE(text) << text.error().what;
  EXPECT_NE(text->find("ranks = 3  # " + path + ":2\n"), std::string::npos);
  EXPECT_NE(text->find("served_model_name = \"serval-tiny\"  # default\n"), std::string::npos);
  const Result<ClusterConfig> again = ClusterConfig::parse(*text, "again");
  ASSERT_TRUE(again) << again.error().what;
  EXPECT_EQ(again->decode_ranks, 3u);
  EXPECT_FALSE(ClusterConfig::load("/nowhere.toml"));
}

}  // namespace
}  // namespace base
