// Rules: a context-free grammar over Unicode characters and bytes, as every front end (JSON Schema,
// regex, EBNF, choice) leaves it for the automaton. Expressions live in one arena and are shared by
// id; what is used in many places is a rule, so that it stands once in the automaton.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace grammar {

using ExprId = uint32_t;
using RuleId = uint32_t;

struct CodeRange {
  uint32_t first = 0, last = 0;  // both in
  auto operator<=>(const CodeRange&) const = default;
};
using CodeSet = std::vector<CodeRange>;  // ascending, disjoint, not touching; no surrogates

inline constexpr uint32_t kLastCode = 0x10FFFF;

// Sorts, joins and removes the surrogates, which UTF-8 does not have.
CodeSet normal(CodeSet ranges);
CodeSet complement(const CodeSet& set);  // in all characters
CodeSet intersection(const CodeSet& a, const CodeSet& b);

struct Expr {
  enum class Kind : uint8_t { kBytes, kSet, kSequence, kAny, kRepeat, kRule };
  Kind kind = Kind::kBytes;
  std::string bytes;          // kBytes
  CodeSet set;                // kSet: one character of it, in UTF-8
  std::vector<ExprId> parts;  // kSequence; kAny: one of them; kRepeat: the one
  uint32_t least = 0, most = 0;
  RuleId rule = 0;
};

inline constexpr uint32_t kUnlimited = UINT32_MAX;  // of kRepeat

class Rules {
 public:
  ExprId bytes(std::string text);
  ExprId set(CodeSet set);  // as normal() gives
  ExprId sequence(std::vector<ExprId> parts);
  ExprId any(std::vector<ExprId> parts);  // of no parts: matches nothing
  ExprId repeat(ExprId part, uint32_t least, uint32_t most);
  ExprId rule(RuleId id);
  ExprId empty() { return bytes(""); }
  ExprId optional(ExprId part) { return repeat(part, 0, 1); }

  // `name` is for people. A rule is defined once, before the grammar is compiled.
  RuleId declare(std::string name);
  void define(RuleId id, ExprId body);
  RuleId add(std::string name, ExprId body);
  void set_root(RuleId id) { root_ = id; }

  const Expr& operator[](ExprId id) const { return exprs_[id]; }
  size_t size() const { return exprs_.size(); }
  size_t rules() const { return bodies_.size(); }
  ExprId body(RuleId id) const { return bodies_[id]; }
  const std::string& name(RuleId id) const { return names_[id]; }
  RuleId root() const { return root_; }

 private:
  ExprId push(Expr expr);
  std::vector<Expr> exprs_;
  std::vector<ExprId> bodies_;
  std::vector<std::string> names_;
  RuleId root_ = 0;
};

}  // namespace grammar
