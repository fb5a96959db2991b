// NgramService: reads n-gram rows for other ranks. Stateless between questions; a question that is
// repeated while it is being answered is answered once.
#pragma once
#include <set>
#include <utility>

#include "lookup/ngram_lookup.h"

namespace lookup {

class NgramService {
 public:
  static constexpr size_t kJobsMost = 256;  // at once; further questions are answered kNoRoom

  explicit NgramService(NgramCounters& counters) : counters_(counters) {}

  // `engine` is null while the model loads: the question is answered kUnknown, as it is by a node
  // without n-gram tables.
  void answer(actor::Context& ctx, const model::Engine* engine,
              const actor::Incoming<proto::NgramRows>& in);
  uint32_t reading() const { return static_cast<uint32_t>(jobs_.size()); }

 private:
  using Job = std::pair<actor::Address, uint64_t>;  // who asks, under which call
  base::Task<void> run(actor::Context& ctx, const model::NgramTables& tables,
                       actor::Incoming<proto::NgramRows> in);

  NgramCounters& counters_;
  std::set<Job> jobs_;
};

// Tables and ids are in range and the answer has a size that can be sent.
bool is_sound(const proto::NgramRows& question, const model::NgramTables& tables);

}  // namespace lookup
