// Task<T>: a lazy coroutine for one thread, and Future<T>: a Task already running.
//
//   Task<int> answer(Context& ctx) { co_await ctx.sleep(1s); co_return 42; }
//   Future<int> f = start(answer(ctx));      // runs until it first suspends
//   …
//   int x = co_await f;                      // comes home
//
// Ownership: the Task or Future owns the frame. Destroying it destroys the frame and everything the
// frame waits in; whatever it waited for must not resume it afterwards (Slot below takes care of
// that). No exception leaves a coroutine: one that does ends the process.
#pragma once
#include <coroutine>
#include <cstdlib>
#include <exception>
#include <memory>
#include <optional>
#include <utility>

#include "base/check.h"

namespace base {

template <class T>
class Task;

namespace detail {

// Resumption is by plain calls, not by symmetric transfer: g++ 12 turns the latter into a tail call
// only from -O2 on, so that a loop over awaits that never suspend would exhaust the stack of a
// debug build. With plain calls the stack is as deep as the chain of awaiting coroutines and no
// deeper.
struct FinalAwaiter {
  bool await_ready() const noexcept { return false; }
  // The awaiting coroutine may destroy this frame before resume() returns; nothing here is touched
  // after it.
  template <class Promise>
  void await_suspend(std::coroutine_handle<Promise> h) noexcept {
    if (auto next = h.promise().continuation) next.resume();
  }
  void await_resume() const noexcept {}
};

struct PromiseBase;

// Between a Future's frame and the coroutine that awaits it: either may be destroyed first.
struct AwaiterLink {
  explicit AwaiterLink(PromiseBase* p) noexcept : promise(p) {}
  AwaiterLink(const AwaiterLink&) = delete;
  AwaiterLink& operator=(const AwaiterLink&) = delete;
  inline ~AwaiterLink();
  PromiseBase* promise;  // null when its frame is gone
};

struct PromiseBase {
  PromiseBase() = default;
  PromiseBase(const PromiseBase&) = delete;
  PromiseBase& operator=(const PromiseBase&) = delete;
  ~PromiseBase() {
    if (link != nullptr) link->promise = nullptr;
  }
  std::coroutine_handle<> continuation;
  AwaiterLink* link = nullptr;  // who waits, when it is a Future that is awaited
  std::suspend_always initial_suspend() noexcept { return {}; }
  FinalAwaiter final_suspend() noexcept { return {}; }
  [[noreturn]] void unhandled_exception() noexcept { std::terminate(); }
};

AwaiterLink::~AwaiterLink() {
  if (promise == nullptr || promise->link != this) return;
  promise->link = nullptr;
  promise->continuation = {};
}

template <class T>
struct Promise : PromiseBase {
  std::optional<T> value;
  Task<T> get_return_object();
  template <class U>
  void return_value(U&& v) {
    value.emplace(std::forward<U>(v));
  }
  T take() { return std::move(*value); }
};
template <>
struct Promise<void> : PromiseBase {
  Task<void> get_return_object();
  void return_void() noexcept {}
  void take() {}
};

}  // namespace detail

template <class T = void>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::Promise<T>;
  using Handle = std::coroutine_handle<promise_type>;

  explicit Task(Handle handle) : handle_(handle) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  Task& operator=(Task&& other) noexcept {
    if (this != &other) {
      destroy();
      handle_ = std::exchange(other.handle_, {});
    }
    return *this;
  }
  ~Task() { destroy(); }

  // Runs it to its end, then goes on in the awaiting coroutine.
  auto operator co_await() && noexcept {
    struct Awaiter {
      Handle handle;
      bool await_ready() const noexcept { return false; }
      // False when the task ended without suspending: the caller goes on at once.
      bool await_suspend(std::coroutine_handle<> caller) noexcept {
        handle.resume();
        if (handle.done()) return false;
        handle.promise().continuation = caller;
        return true;
      }
      T await_resume() { return handle.promise().take(); }
    };
    return Awaiter{handle_};
  }

  Handle handle() const { return handle_; }

 private:
  void destroy() {
    if (handle_) handle_.destroy();
  }
  Handle handle_;
};

namespace detail {
template <class T>
Task<T> Promise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<Promise<T>>::from_promise(*this));
}
inline Task<void> Promise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<Promise<void>>::from_promise(*this));
}
}  // namespace detail

// A started Task. co_await it once; it may be done already.
template <class T = void>
class [[nodiscard]] Future {
 public:
  explicit Future(Task<T> task) : task_(std::move(task)) { task_.handle().resume(); }
  Future(Future&&) noexcept = default;
  Future& operator=(Future&&) noexcept = default;

  bool done() const { return task_.handle().done(); }
  T take() { return task_.handle().promise().take(); }  // REQUIRES: done()
  auto operator co_await() noexcept { return Awaiter(task_.handle()); }

 private:
  class Awaiter : detail::AwaiterLink {
   public:
    explicit Awaiter(typename Task<T>::Handle handle) noexcept
        : AwaiterLink(&handle.promise()), handle_(handle) {}
    bool await_ready() const noexcept { return handle_.done(); }
    void await_suspend(std::coroutine_handle<> caller) noexcept {
      CHECK(!handle_.promise().continuation, "a Future is awaited once at a time");
      handle_.promise().continuation = caller;
      handle_.promise().link = this;
    }
    T await_resume() { return handle_.promise().take(); }

   private:
    typename Task<T>::Handle handle_;
  };
  Task<T> task_;
};

template <class T>
Future<T> start(Task<T> task) {
  return Future<T>(std::move(task));
}

// Runs a Task that never truly suspends (an engine with everything local) and returns its value.
template <class T>
T run_inline(Task<T> task) {
  Future<T> future = start(std::move(task));
  CHECK(future.done(), "run_inline: the task waits for something that is not here");
  return future.take();
}

// One value that arrives once, awaited by at most one coroutine at a time. Neither copied nor
// moved: the awaiting side keeps it in its frame or object; the setting side keeps a pointer that
// the owner of the Slot revokes. A frame that is destroyed while it waits is forgotten, and so is a
// Slot.
template <class T>
class Slot {
  class Awaiter {
   public:
    explicit Awaiter(Slot* slot) noexcept : slot_(slot) {}
    Awaiter(const Awaiter&) = delete;
    Awaiter& operator=(const Awaiter&) = delete;
    ~Awaiter() {
      if (slot_ != nullptr && slot_->waiting_ == this) slot_->waiting_ = nullptr;
    }
    bool await_ready() const noexcept { return slot_->full(); }
    void await_suspend(std::coroutine_handle<> h) noexcept {
      CHECK(slot_->waiting_ == nullptr, "a Slot is awaited once at a time");
      slot_->waiting_ = this;
      handle_ = h;
    }
    T await_resume() { return std::move(*slot_->value_); }

   private:
    friend class Slot;
    Slot* slot_;  // null when it is gone
    std::coroutine_handle<> handle_;
  };

 public:
  Slot() = default;
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;
  ~Slot() {
    if (waiting_ != nullptr) waiting_->slot_ = nullptr;
  }

  bool full() const { return value_.has_value(); }
  // Stores the value and resumes who waits. The Slot may be gone when this returns.
  void set(T value) {
    CHECK(!full(), "a Slot is set once");
    value_.emplace(std::move(value));
    if (Awaiter* waiting = std::exchange(waiting_, nullptr)) waiting->handle_.resume();
  }
  auto operator co_await() noexcept { return Awaiter(this); }

 private:
  std::optional<T> value_;
  Awaiter* waiting_ = nullptr;
};

}  // namespace base
