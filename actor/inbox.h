// Inbox: the one way from other threads to the reactor thread. Compute threads hand back finished
// jobs and the HTTP thread injects closures through it.
//
// Thread safety: post() from any thread, everything else on the reactor thread.
#pragma once
#include <functional>
#include <mutex>
#include <vector>

#include "actor/context.h"

namespace actor {

class Inbox final : public Injector {
 public:
  // An Inbox is closed but never freed, so that a thread that still holds an Injector of a host
  // long gone posts into nothing. A process makes few hosts.
  static Inbox& create();

  void post(std::function<void()> run) override;
  // A descriptor that is readable while there is something to take.
  int fd() const { return fd_; }
  // All that was posted, in order.
  std::vector<std::function<void()>> take();
  // Drops what is queued and all that is posted from now on.
  void close();

 private:
  Inbox();
  std::mutex mutex_;
  std::vector<std::function<void()>> queue_;  // guarded by mutex_
  bool closed_ = false;                       // guarded by mutex_
  int fd_;
};

}  // namespace actor
