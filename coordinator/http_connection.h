// The HTTP thread from within: what all connections share, and the coroutine that serves one of
// them. Included by front_end.cc and http_connection.cc alone.
#pragma once
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <map>
#include <thread>

#include "base/rng.h"
#include "coordinator/api_grammar.h"
#include "coordinator/front_end.h"
#include "coordinator/http_generation.h"
#include "coordinator/http_reader.h"  // first: Boost's include order

namespace coordinator {

class Connection;

struct FrontEnd::Impl {
  Impl(FrontEndOptions o, const model::Tokenizer& t, const model::ChatFormat& f, Gateway& g,
       actor::Injector& i, base::Log l);

  base::Status listen();
  // Coroutines of the thread.
  static asio::awaitable<void> accept(Impl& impl);
  static asio::awaitable<void> sweep(Impl& impl);
  std::string new_id();

  // Constant after construction.
  const FrontEndOptions options;
  const model::Tokenizer& tokenizer;
  const model::ChatFormat& format;
  Gateway& gateway;  // touched only inside injector.post
  actor::Injector& injector;
  const base::Log log;
  const SteadyTime begun = std::chrono::steady_clock::now();
  // Owned by the HTTP thread.
  HttpMetrics metrics;
  std::map<uint64_t, Connection*> connections;
  uint64_t ids = 0, next_connection = 1;
  BodyBudget bodies;
  uint32_t jobs = 0;  // on the worker or waiting for it
  bool draining = false;
  std::atomic<uint32_t> answering{0};  // read by any thread
  GrammarCheck grammars;               // used on the worker alone
  Generations generations;
  // Destroyed first: coroutines end here and may still use all of the above.
  asio::io_context io{1};
  asio::thread_pool worker{1};
  asio::ip::tcp::acceptor acceptor{io};
  std::thread thread;
};

// Serves a client until it or the server has enough. The connection lives in the coroutine's frame.
asio::awaitable<void> serve(FrontEnd::Impl& impl, asio::ip::tcp::socket socket);
// Enforces the deadlines of all connections; a few times per second.
void sweep_connections(FrontEnd::Impl& impl, SteadyTime now);

}  // namespace coordinator
