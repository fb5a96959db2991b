#include "fake_gateway.h"

#include <chrono>

namespace coordinator {

FakeReactor::FakeReactor() : thread_([this] { loop(); }) {}

void FakeReactor::post(std::function<void()> run) {
  const std::lock_guard lock(mutex_);
  if (stopped_) return;
  queue_.push_back(std::move(run));
  changed_.notify_all();
}

void FakeReactor::sync(const std::function<void()>& run) {
  std::mutex done_mutex;
  std::condition_variable done_changed;
  bool done = false;
  post([&] {
    run();
    const std::lock_guard lock(done_mutex);
    done = true;
    done_changed.notify_all();
  });
  std::unique_lock lock(done_mutex);
  done_changed.wait(lock, [&] { return done; });
}

void FakeReactor::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void FakeReactor::hold(bool held) {
  const std::lock_guard lock(mutex_);
  held_ = held;
  changed_.notify_all();
}

void FakeReactor::loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopped_ || (!held_ && !queue_.empty()); });
    if (stopped_) return;
    const auto run = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    run();
    lock.lock();
  }
}

RequestId FakeGateway::submit(Submission submission, std::unique_ptr<TokenSink> sink) {
  const RequestId id{next_++};
  sinks_.emplace(id, std::move(sink));
  usage_[id].prompt_tokens = static_cast<uint32_t>(submission.prompt.size());
  usage_[id].attempts = 1;
  submissions_.push_back(submission);
  if (on_submit_) on_submit_(*this, id, submission);
  return sinks_.contains(id) ? id : RequestId{};
}

void FakeGateway::cancel(RequestId request) {
  cancelled_.push_back(request);
  sinks_.erase(request);
}

void FakeGateway::emit(RequestId request, const std::vector<TokenId>& tokens) {
  const auto it = sinks_.find(request);
  if (it == sinks_.end()) return;
  usage_[request].completion_tokens += static_cast<uint32_t>(tokens.size());
  it->second->tokens(tokens, {});
}

void FakeGateway::end(RequestId request, base::FinishReason reason) {
  const auto it = sinks_.find(request);
  if (it == sinks_.end()) return;
  it->second->end(reason, nullptr, usage_[request]);
  sinks_.erase(it);
}

void FakeGateway::refuse(RequestId request, base::Code code, const std::string& what) {
  const auto it = sinks_.find(request);
  if (it == sinks_.end()) return;
  const base::Error error{code, what};
  it->second->end(base::FinishReason::kError, &error, usage_[request]);
  sinks_.erase(it);
}

bool FakeGateway::wait(const std::function<bool(const FakeGateway&)>& holds) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  bool held = false;
  while (!held && std::chrono::steady_clock::now() < until) {
    reactor_.sync([&] { held = holds(*this); });
    if (!held) std::this_thread::yield();
  }
  return held;
}

}  // namespace coordinator
