// A Gateway without a cluster, and the reactor thread it lives on: what the front end sees of the
// actor side. A test decides what becomes of each submission.
#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "actor/context.h"
#include "coordinator/gateway.h"

namespace coordinator {

// The reactor: runs what is posted, in order, on its thread.
class FakeReactor final : public actor::Injector {
 public:
  FakeReactor();
  ~FakeReactor() override { stop(); }
  void post(std::function<void()> run) override;
  // Runs `run` on the reactor thread and waits for it.
  void sync(const std::function<void()>& run);
  void stop();
  // While held, nothing runs.
  void hold(bool held);

 private:
  void loop();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool held_ = false, stopped_ = false;
  std::thread thread_;
};

class FakeGateway final : public Gateway {
 public:
  // What to do with a submission, on the reactor thread, before submit() returns; it may use emit()
  // and end() at once.
  using OnSubmit = std::function<void(FakeGateway&, RequestId, const Submission&)>;

  explicit FakeGateway(FakeReactor& reactor) : reactor_(reactor) {}

  RequestId submit(Submission submission, std::unique_ptr<TokenSink> sink) override;
  void cancel(RequestId request) override;
  ClusterStatus status() const override { return status_; }
  void drain() override { status_.draining = true; }

  // Reactor thread.
  void emit(RequestId request, const std::vector<TokenId>& tokens);
  void end(RequestId request, base::FinishReason reason);
  void refuse(RequestId request, base::Code code, const std::string& what);
  ClusterStatus status_;
  OnSubmit on_submit_;

  // Test thread. Waits, for at most 20 s, until the condition holds on the reactor thread.
  bool wait(const std::function<bool(const FakeGateway&)>& holds);
  // Reactor thread or inside wait():
  size_t live() const { return sinks_.size(); }
  const std::vector<Submission>& submissions() const { return submissions_; }
  const std::vector<RequestId>& cancelled() const { return cancelled_; }

 private:
  FakeReactor& reactor_;
  std::map<RequestId, std::unique_ptr<TokenSink>> sinks_;
  std::map<RequestId, Usage> usage_;
  std::vector<Submission> submissions_;
  std::vector<RequestId> cancelled_;
  uint64_t next_ = 1;
};

}  // namespace coordinator
