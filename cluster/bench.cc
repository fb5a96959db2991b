#include "cluster/bench.h"

#include <curl/curl.h>
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "cluster/bench_load.h"
#include "cluster/bench_report.h"
#include "cluster/http.h"
#include "cluster/paths.h"

namespace cluster {

using nlohmann::json;
using std::chrono::steady_clock;

namespace {

// One request in flight: its transfer and what has come of it.
struct Stream {
  CURL* curl = nullptr;
  std::string body;  // posted
  std::string head;  // the first bytes of the answer, for an error's text
  EventParser parser;
  BenchSample sample;
  double previous = 0;
  bool done = false;  // [DONE] was seen
  steady_clock::time_point begun;

  double now() const { return std::chrono::duration<double>(steady_clock::now() - begun).count(); }
  void on_event(std::string_view payload);
};

void Stream::on_event(std::string_view payload) {
  if (payload == "[DONE]") {
    done = true;
    return;
  }
  const json chunk = json::parse(payload, nullptr, /*allow_exceptions=*/false);
  if (!chunk.is_object()) return;
  if (chunk.contains("error")) sample.error = chunk["error"].dump();
  if (chunk.contains("usage") && chunk["usage"].is_object()) {
    sample.input_tokens = chunk["usage"].value("prompt_tokens", sample.input_tokens);
    sample.output_tokens = chunk["usage"].value("completion_tokens", sample.output_tokens);
  }
  const json choices = chunk.value("choices", json::array());
  if (choices.empty()) return;
  // An event carries tokens when it has text or, where text is held back, token ids.
  const json& choice = choices[0];
  const bool text = choice.contains("text") && choice["text"].is_string() &&
                    !choice["text"].get_ref<const std::string&>().empty();
  const bool ids = choice.contains("token_ids") && choice["token_ids"].is_array() &&
                   !choice["token_ids"].empty();
  if (!text && !ids) return;
  const double at = now();
  if (sample.first == 0) {
    sample.first = at;
  } else {
    sample.gaps.push_back(at - previous);
  }
  previous = at;
  sample.last = at;
}

size_t receive(char* bytes, size_t, size_t count, void* user) {
  auto& stream = *static_cast<Stream*>(user);
  if (stream.head.size() < 512) stream.head.append(bytes, std::min<size_t>(count, 512));
  stream.parser.push({bytes, count}, [&](std::string_view payload) { stream.on_event(payload); });
  return count;
}

class Load {
 public:
  Load(const BenchOptions& options, std::string url, std::string model)
      : options_(options), url_(std::move(url)), multi_(curl_multi_init()) {
    result_.url = url_;
    result_.model = std::move(model);
    result_.concurrency = options.concurrency;
    headers_ = curl_slist_append(nullptr, "Content-Type: application/json");
    curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, static_cast<long>(options.concurrency));
  }
  ~Load() {
    curl_multi_cleanup(multi_);
    curl_slist_free_all(headers_);
  }
  BenchResult run();

 private:
  void start(uint32_t index);
  void finish(CURL* curl, CURLcode code);

  const BenchOptions& options_;
  const std::string url_;
  CURLM* multi_;
  curl_slist* headers_;
  steady_clock::time_point begun_ = steady_clock::now();
  std::vector<std::unique_ptr<Stream>> running_;
  BenchResult result_;
};

void Load::start(uint32_t index) {
  auto stream = std::make_unique<Stream>();
  stream->begun = begun_;
  const json request = {{"model", result_.model},
                        {"prompt", bench_prompt(options_.seed, index, options_.input_tokens)},
                        {"max_tokens", options_.output_tokens},
                        {"temperature", 0},
                        {"ignore_eos", true},
                        {"return_token_ids", true},
                        {"stream", true},
                        {"stream_options", {{"include_usage", true}}}};
  stream->body = request.dump();
  stream->sample.input_tokens = options_.input_tokens;
  stream->curl = curl_easy_init();
  CURL* curl = stream->curl;
  curl_easy_setopt(curl, CURLOPT_URL, (url_ + "/v1/completions").c_str());
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers_);
  curl_easy_setopt(curl, CURLOPT_POSTFIELDS, stream->body.c_str());
  curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(stream->body.size()));
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, receive);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, stream.get());
  curl_easy_setopt(curl, CURLOPT_PRIVATE, stream.get());
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_TCP_NODELAY, 1L);
  stream->sample.sent = stream->now();
  curl_multi_add_handle(multi_, curl);
  running_.push_back(std::move(stream));
}

void Load::finish(CURL* curl, CURLcode code) {
  Stream* stream = nullptr;
  long status = 0;
  curl_easy_getinfo(curl, CURLINFO_PRIVATE, &stream);
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
  BenchSample& sample = stream->sample;
  if (code != CURLE_OK) {
    sample.error = curl_easy_strerror(code);
  } else if (status != 200) {
    sample.error = fmt::format("HTTP {}: {}", status, stream->head);
  } else if (sample.error.empty() && (!stream->done || sample.first == 0)) {
    sample.error = "the stream ended without [DONE] or without a token";
  }
  sample.ok = sample.error.empty();
  // A server without usage: one token an event.
  if (sample.ok && sample.output_tokens == 0)
    sample.output_tokens = static_cast<uint32_t>(sample.gaps.size() + 1);
  result_.samples.push_back(std::move(sample));
  curl_multi_remove_handle(multi_, curl);
  curl_easy_cleanup(curl);
  std::erase_if(running_, [&](const auto& other) { return other.get() == stream; });
}

BenchResult Load::run() {
  uint32_t started = 0;
  begun_ = steady_clock::now();
  while (result_.samples.size() < options_.requests) {
    while (started < options_.requests && running_.size() < options_.concurrency) start(started++);
    int active = 0, left = 0;
    curl_multi_perform(multi_, &active);
    while (CURLMsg* message = curl_multi_info_read(multi_, &left)) {
      if (message->msg == CURLMSG_DONE) finish(message->easy_handle, message->data.result);
    }
    if (active > 0) curl_multi_poll(multi_, nullptr, 0, 100, nullptr);
  }
  result_.duration = std::chrono::duration<double>(steady_clock::now() - begun_).count();
  return std::move(result_);
}

// The server's first model, and a vocabulary bound that its tokenizer surely has.
base::Result<std::string> first_model(const std::string& url) {
  const HttpAnswer answer = TRY(http_get(url + "/v1/models"));
  const json body = json::parse(answer.body, nullptr, false);
  if (!body.is_object() || !body.contains("data") || body["data"].empty()) {
    return base::fail(base::Code::kUnavailable, "{}/v1/models lists no model (HTTP {})", url,
                      answer.status);
  }
  return body["data"][0].value("id", "");
}

}  // namespace

int bench(const std::string& config, const BenchOptions& options) {
  std::string url = options.url;
  if (url.empty()) {
    auto cluster = LocalCluster::open(config);
    if (!cluster) {
      fmt::print(stderr, "serval: {}\n", cluster.error().what);
      return 1;
    }
    url = cluster->url();
  }
  while (url.ends_with('/')) url.pop_back();
  if (url.ends_with("/v1")) url.resize(url.size() - 3);
  auto model = options.model.empty() ? first_model(url) : base::Result<std::string>(options.model);
  if (!model) {
    fmt::print(stderr, "serval: {}\n", model.error().what);
    return 1;
  }
  Load load(options, url, *model);
  const BenchResult result = load.run();
  fmt::print("{}", bench_table(result));
  const bool all_ok = std::all_of(result.samples.begin(), result.samples.end(),
                                  [](const BenchSample& s) { return s.ok; });
  for (const BenchSample& sample : result.samples) {
    if (sample.ok) continue;
    fmt::print(stderr, "serval: a request failed: {}\n", sample.error);
    break;
  }
  if (!options.json.empty()) {
    std::ofstream out(options.json);
    out << bench_json(result);
    out.flush();
    if (!out) {
      fmt::print(stderr, "serval: cannot write {}\n", options.json);
      return 1;
    }
  }
  return all_ok ? 0 : 1;
}

}  // namespace cluster
