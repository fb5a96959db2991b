#include "cluster/http.h"

#include <curl/curl.h>

#include <memory>

namespace cluster {

namespace {

struct Close {
  void operator()(CURL* curl) const { curl_easy_cleanup(curl); }
  void operator()(curl_slist* list) const { curl_slist_free_all(list); }
};
using Curl = std::unique_ptr<CURL, Close>;
using Headers = std::unique_ptr<curl_slist, Close>;

struct Receiver {
  std::string* body;
  const std::function<bool(std::string_view)>* on_event;  // null: keep the body
  EventParser parser;
};

size_t receive(char* bytes, size_t, size_t count, void* user) {
  auto& receiver = *static_cast<Receiver*>(user);
  if (receiver.on_event == nullptr) receiver.body->append(bytes, count);
  bool go_on = true;
  if (receiver.on_event != nullptr) {
    if (receiver.body->size() < 65536) receiver.body->append(bytes, count);  // an error's text
    receiver.parser.push({bytes, count}, [&](std::string_view payload) {
      go_on = go_on && (*receiver.on_event)(payload);
    });
  }
  return go_on ? count : 0;
}

base::Result<HttpAnswer> perform(CURL* curl, Receiver& receiver, HttpAnswer& answer,
                                 const std::string& url) {
  curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, receive);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &receiver);
  const CURLcode code = curl_easy_perform(curl);
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &answer.status);
  if (code != CURLE_OK && code != CURLE_WRITE_ERROR) {
    return base::fail(base::Code::kUnavailable, "{}: {}", url, curl_easy_strerror(code));
  }
  return answer;
}

}  // namespace

base::Result<HttpAnswer> http_get(const std::string& url, long timeout_ms) {
  const Curl curl(curl_easy_init());
  HttpAnswer answer;
  Receiver receiver{&answer.body, nullptr, {}};
  curl_easy_setopt(curl.get(), CURLOPT_TIMEOUT_MS, timeout_ms);
  return perform(curl.get(), receiver, answer, url);
}

base::Result<HttpAnswer> http_stream(const std::string& url, const std::string& json,
                                     const std::function<bool(std::string_view)>& on_event) {
  const Curl curl(curl_easy_init());
  HttpAnswer answer;
  Receiver receiver{&answer.body, &on_event, {}};
  const Headers headers(curl_slist_append(nullptr, "Content-Type: application/json"));
  curl_easy_setopt(curl.get(), CURLOPT_HTTPHEADER, headers.get());
  curl_easy_setopt(curl.get(), CURLOPT_POSTFIELDS, json.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(json.size()));
  return perform(curl.get(), receiver, answer, url);
}

}  // namespace cluster
