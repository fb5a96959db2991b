// The requests of the rank tests and how they reach the fake cluster.
#include "tests/decode_node/rank_fixture.h"

namespace decode {

Request RankTest::plain_request(uint64_t id, uint32_t prompt, uint32_t max_tokens) {
  Request request;
  request.id = RequestId{id};
  for (uint32_t i = 0; i < prompt; ++i) {
    request.prompt.push_back(static_cast<TokenId>(3 + (id * 37 + i * 11) % 500));
  }
  request.sampling.temperature = 0;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  return request;
}

std::vector<Request> RankTest::mixed_requests(uint32_t count, uint32_t max_tokens) {
  std::vector<Request> requests;
  for (uint32_t i = 1; i <= count; ++i) {
    Request request = plain_request(i, 1 + (i * 29) % 150, 1 + (i * 7) % max_tokens);
    request.chunk = i % 2 == 0 ? 16 : 64;
    request.sampling.ignore_eos = i % 3 == 0;
    request.sampling.temperature = i % 2 == 0 ? 1.0f : 0.0f;
    request.sampling.repetition_penalty = i % 4 == 0 ? 1.2f : 1.0f;
    request.sampling.frequency_penalty = i % 5 == 0 ? 0.5f : 0.0f;
    request.sampling.top_logprobs = i % 4 == 1 ? 2 : -1;
    request.sampling.seed = i;
    requests.push_back(std::move(request));
  }
  return requests;
}

void RankTest::submit_at(base::Duration at, Request request) {
  sim->at(at, [this, request = std::move(request)]() mutable {
    actor::Context* ctx = sim->context("coordinator");
    ctx->injector().post([this, ctx, request = std::move(request)]() mutable {
      cluster().submit(*ctx, std::move(request));
    });
  });
}

void RankTest::submit_plain(uint32_t count, uint32_t prompt, uint32_t max_tokens) {
  for (uint32_t id = 1; id <= count; ++id) submit_at(kReady, plain_request(id, prompt, max_tokens));
}

void RankTest::disturb_network() {
  actor::SimNetwork& network = sim->network();
  network.loss = network.duplicate = network.reorder = 0.1;
}

void RankTest::cancel_at(base::Duration at, uint64_t id) {
  sim->at(at, [this, id] {
    actor::Context* ctx = sim->context("coordinator");
    ctx->injector().post([this, ctx, id] { cluster().cancel(*ctx, RequestId{id}); });
  });
}

}  // namespace decode
