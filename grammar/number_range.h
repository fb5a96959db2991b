// Numbers between two bounds, as rules over their decimal digits.
#pragma once
#include <optional>
#include <string>

#include "base/result.h"
#include "grammar/rules.h"

namespace grammar {

// A decimal number exactly as it was written.
struct Decimal {
  bool negative = false;
  std::string whole = "0";  // no leading zeros but "0"
  std::string fraction;     // no trailing zeros
  bool zero() const { return whole == "0" && fraction.empty(); }
};
// kTooLarge: more than 18 digits, or with a fraction more than 15.
base::Result<Decimal> parse_decimal(const std::string& text);
// −1, 0, 1
int compare(const Decimal& a, const Decimal& b);

struct NumberRange {
  std::optional<Decimal> least, most;
  bool above_least = false, below_most = false;  // the bound itself is out
  bool bounded() const { return least || most; }
};

// Integers of the range, of at most 18 digits. Matches nothing when there are none.
ExprId integer_between(Rules& rules, const NumberRange& range);
// Numbers of the range, without exponents.
ExprId number_between(Rules& rules, const NumberRange& range);

}  // namespace grammar
