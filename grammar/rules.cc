#include "grammar/rules.h"

#include <algorithm>

namespace grammar {

namespace {

constexpr CodeRange kSurrogates{0xD800, 0xDFFF};

void add_without_surrogates(CodeRange range, CodeSet& out) {
  if (range.first < kSurrogates.first)
    out.push_back({range.first, std::min(range.last, kSurrogates.first - 1)});
  if (range.last > kSurrogates.last)
    out.push_back({std::max(range.first, kSurrogates.last + 1), range.last});
}

}  // namespace

CodeSet normal(CodeSet ranges) {
  CodeSet whole;
  for (const CodeRange& range : ranges)
    if (range.first <= range.last) add_without_surrogates(range, whole);
  std::sort(whole.begin(), whole.end());
  CodeSet out;
  for (const CodeRange& range : whole) {
    if (!out.empty() && range.first <= out.back().last + 1) {
      out.back().last = std::max(out.back().last, range.last);
    } else {
      out.push_back(range);
    }
  }
  return out;
}

CodeSet complement(const CodeSet& set) {
  CodeSet out;
  uint32_t next = 0;
  for (const CodeRange& range : set) {
    if (range.first > next) out.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kLastCode) out.push_back({next, kLastCode});
  return normal(std::move(out));
}

CodeSet intersection(const CodeSet& a, const CodeSet& b) {
  CodeSet out;
  for (const CodeRange& x : a) {
    for (const CodeRange& y : b) {
      const CodeRange both{std::max(x.first, y.first), std::min(x.last, y.last)};
      if (both.first <= both.last) out.push_back(both);
    }
  }
  return normal(std::move(out));
}

ExprId Rules::push(Expr expr) {
  exprs_.push_back(std::move(expr));
  return static_cast<ExprId>(exprs_.size() - 1);
}

ExprId Rules::bytes(std::string text) {
  Expr expr;
  expr.kind = Expr::Kind::kBytes;
  expr.bytes = std::move(text);
  return push(std::move(expr));
}

ExprId Rules::set(CodeSet set) {
  Expr expr;
  expr.kind = Expr::Kind::kSet;
  expr.set = std::move(set);
  return push(std::move(expr));
}

ExprId Rules::sequence(std::vector<ExprId> parts) {
  if (parts.size() == 1) return parts[0];
  Expr expr;
  expr.kind = Expr::Kind::kSequence;
  expr.parts = std::move(parts);
  return push(std::move(expr));
}

ExprId Rules::any(std::vector<ExprId> parts) {
  if (parts.size() == 1) return parts[0];
  Expr expr;
  expr.kind = Expr::Kind::kAny;
  expr.parts = std::move(parts);
  return push(std::move(expr));
}

ExprId Rules::repeat(ExprId part, uint32_t least, uint32_t most) {
  if (least == 1 && most == 1) return part;
  Expr expr;
  expr.kind = Expr::Kind::kRepeat;
  expr.parts = {part};
  expr.least = least;
  expr.most = most;
  return push(std::move(expr));
}

ExprId Rules::rule(RuleId id) {
  Expr expr;
  expr.kind = Expr::Kind::kRule;
  expr.rule = id;
  return push(std::move(expr));
}

RuleId Rules::declare(std::string name) {
  names_.push_back(std::move(name));
  bodies_.push_back(any({}));
  return static_cast<RuleId>(bodies_.size() - 1);
}

void Rules::define(RuleId id, ExprId body) { bodies_[id] = body; }

RuleId Rules::add(std::string name, ExprId body) {
  const RuleId id = declare(std::move(name));
  define(id, body);
  return id;
}

}  // namespace grammar
