#include "base/bytes.h"

namespace base {

Blob::Blob(Bytes bytes) {
  auto owner = std::make_shared<const Bytes>(std::move(bytes));
  view_ = ByteView(owner->data(), owner->size());
  owner_ = std::move(owner);
}

Blob::Blob(std::shared_ptr<const void> owner, ByteView view)
    : owner_(std::move(owner)), view_(view) {}

Blob Blob::copy_of(ByteView view) { return Blob(Bytes(view.begin(), view.end())); }

}  // namespace base
