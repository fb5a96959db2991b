// EndedAttempts: what late and doubled messages of jobs that are no more are answered. Remembers
// the highest ended attempt of the last `most` requests. Pure.
#pragma once
#include <deque>
#include <map>

#include "prefill_node/job_key.h"
#include "proto/common.h"

namespace prefill {

class EndedAttempts {
 public:
  explicit EndedAttempts(size_t most = 8192) : most_(most) {}

  // kOk: this attempt was done to its end. kStale: it was dropped, or overtaken by a later one.
  // kUnknown: not of the past.
  proto::Outcome of(const JobKey& key) const;
  void done(const JobKey& key) { remember(key, /*done=*/true); }
  void dropped(const JobKey& key) { remember(key, /*done=*/false); }
  void clear();

 private:
  struct End {
    uint32_t attempt;
    bool done;
  };
  void remember(const JobKey& key, bool done);

  const size_t most_;
  std::map<base::RequestId, End> ends_;
  std::deque<base::RequestId> order_;  // of first remembering; the same requests as ends_
};

}  // namespace prefill
