// proto_golden --rewrite: writes tests/proto/golden/<Name>.hex, one sample of each message. Only
// after an intended change of the wire format: peers of the former version must still be
// understood.
#include <cstdio>
#include <cstring>
#include <fstream>

#include "tests/proto/samples.h"

int main(int argc, char** argv) {
  if (argc != 2 || std::strcmp(argv[1], "--rewrite") != 0) {
    std::fputs("usage: proto_golden --rewrite\n", stderr);
    return 2;
  }
  proto_test::for_each_message([]<class M>() {
    std::ofstream file(std::string(SERVAL_SOURCE_DIR "/tests/proto/golden/") + M::kName + ".hex");
    file << proto_test::to_hex(encode(proto_test::sample<M>())) << '\n';
  });
  return 0;
}
