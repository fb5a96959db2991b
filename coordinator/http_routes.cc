#include "coordinator/http_routes.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "base/hash.h"

namespace coordinator {

namespace {

struct Row {
  std::string_view method, path;
  Route route;
};

constexpr std::array kRoutes = {
    Row{"POST", "/v1/chat/completions", Route::kChat},
    Row{"POST", "/v1/completions", Route::kCompletions},
    Row{"GET", "/v1/models", Route::kModels},
    Row{"GET", "/health", Route::kHealth},
    Row{"GET", "/live", Route::kLive},
    Row{"GET", "/ready", Route::kReady},
    Row{"GET", "/version", Route::kVersion},
    Row{"GET", "/metrics", Route::kMetrics},
    Row{"GET", "/cluster", Route::kCluster},
    Row{"POST", "/tokenize", Route::kTokenize},
    Row{"POST", "/detokenize", Route::kDetokenize},
};
constexpr std::string_view kModelPrefix = "/v1/models/";
constexpr std::string_view kModelLabel = "/v1/models/{id}";

std::string_view path_of(std::string_view target) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (!target.starts_with(scheme)) continue;
    target.remove_prefix(scheme.size());
    const size_t slash = target.find('/');
    target = slash == std::string_view::npos ? "/" : target.substr(slash);
  }
  target = target.substr(0, target.find_first_of("?#"));
  if (target.size() > 1 && target.ends_with('/')) target.remove_suffix(1);
  return target;
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string percent_decoded(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const int high = text[i] == '%' && i + 2 < text.size() ? hex_value(text[i + 1]) : -1;
    const int low = high >= 0 ? hex_value(text[i + 2]) : -1;
    if (low < 0) {
      out += text[i];
      continue;
    }
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

bool accepts(std::string_view wanted, std::string_view method) {
  return method == wanted || (wanted == "GET" && method == "HEAD");
}

Routed refused(std::string_view label, std::string_view wanted) {
  Routed out;
  out.label = label;
  out.allow = wanted == "GET" ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
  out.error = invalid("", fmt::format("Use {} for {}", wanted, label), "method_not_allowed");
  out.error.status = 405;
  return out;
}

}  // namespace

Routed find_route(std::string_view method, std::string_view target) {
  if (method == "OPTIONS") return {Route::kPreflight, "OPTIONS", {}, {}, {}};
  const std::string_view path = path_of(target);
  for (const Row& row : kRoutes) {
    if (row.path != path) continue;
    if (!accepts(row.method, method)) return refused(row.path, row.method);
    return {row.route, row.path, {}, {}, {}};
  }
  if (path.starts_with(kModelPrefix)) {
    if (!accepts("GET", method)) return refused(kModelLabel, "GET");
    return {Route::kModel, kModelLabel, percent_decoded(path.substr(kModelPrefix.size())), {}, {}};
  }
  Routed out;
  out.label = "unknown";
  out.error = not_found("There is no such route", "route_not_found");
  return out;
}

std::string tenant_of(std::string_view authorization, std::string_view api_key) {
  std::string_view key = api_key;
  if (key.empty()) {
    key = authorization;
    constexpr std::string_view kBearer = "bearer ";
    const auto same = [](char a, char b) {
      return std::tolower(static_cast<unsigned char>(a)) == b;
    };
    if (key.size() > kBearer.size() &&
        std::equal(kBearer.begin(), kBearer.end(), key.begin(),
                   [&](char wanted, char got) { return same(got, wanted); })) {
      key.remove_prefix(kBearer.size());
    }
  }
  return key.empty() ? std::string() : base::hash128(key).hex();
}

std::string usable_request_id(std::string_view text) {
  const auto fits = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
           std::string_view("-_.:/+=@").find(c) != std::string_view::npos;
  };
  if (text.empty() || text.size() > 128 || !std::all_of(text.begin(), text.end(), fits)) return {};
  return std::string(text);
}

}  // namespace coordinator
