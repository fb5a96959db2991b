// Actor: owns its state, handles one message at a time, never blocks, sees the world only through
// its Context.
//
//   class KvstoreActor final : public actor::Actor {
//    public:
//     using In = actor::Accepts<proto::LookupPrefix, proto::PutBlock>;
//     void start(Context&) override;
//     void receive(Context& ctx, Envelope&& e) override { In::dispatch(*this, ctx, std::move(e)); }
//     void on(Context&, const Incoming<proto::LookupPrefix>&);   // one on() per entry of In; a
//     missing one void on(Context&, const Incoming<proto::PutBlock>&);       // does not compile
//   };
//
// A handler that has to wait spawns a Task:  ctx.spawn(serve(ctx, in));
#pragma once
#include "actor/context.h"
#include "actor/message.h"

namespace actor {

class Actor {
 public:
  virtual ~Actor() = default;
  virtual void start(Context&) {}
  virtual void receive(Context&, Envelope&&) = 0;
  // The transport lost the connection to a linked node and could not get it back within 100 ms. A
  // hint only: the node may live, and a dead node may never be reported.
  virtual void peer_down(Context&, NodeId) {}
};

template <Message... Ms>
struct Accepts {
  // Decodes the envelope as the entry of its number and calls self.on(ctx, incoming). What cannot
  // be decoded or is not listed is dropped, counted and logged: bytes from outside are never a
  // reason to stop.
  template <class Self>
  static void dispatch(Self& self, Context& ctx, Envelope&& e) {
    const bool known = (try_one<Ms>(self, ctx, e) || ...);
    if (!known) ctx.log(base::Level::kWarn, "message.unexpected", {{"type", e.header.type}});
  }

 private:
  template <class M, class Self>
  static bool try_one(Self& self, Context& ctx, Envelope& e) {
    if (e.header.type != M::kType) return false;
    Incoming<M> in{e.from(), e.header.call, {}, std::move(e.blobs)};
    if (base::Status status = decode(base::as_bytes(e.body), in.msg); status) {
      self.on(ctx, in);
    } else {
      ctx.log(base::Level::kWarn, "message.undecodable",
              {{"message", M::kName}, {"from", in.from.node.value}, {"why", status.error().what}});
    }
    return true;
  }
};

}  // namespace actor
