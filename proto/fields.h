// How a message lists its fields: once, in wire order, append only.
//
//   struct KvAck {
//     static constexpr uint16_t kType = 25;           // never reused, never changed
//     static constexpr const char* kName = "KvAck";
//     uint8_t status = 0;
//     uint32_t credits = 0;
//     FIELDS(status, credits)                          // append only
//   };
//
// On the wire a message is a msgpack array in this order. A shorter array leaves trailing fields at
// their defaults (old code spoke), further elements are ignored (new code spoke). A change of
// meaning is a new struct and number. Allowed field types: bool, sized integers, float, double,
// std::string, base::NodeId, base::RequestId, base::Hash128, std::vector and std::pair of these,
// structs with FIELDS.
#pragma once

#define FIELDS(...)               \
  template <class Visitor>        \
  void visit(Visitor&& v) {       \
    v(__VA_ARGS__);               \
  }                               \
  template <class Visitor>        \
  void visit(Visitor&& v) const { \
    v(__VA_ARGS__);               \
  }
