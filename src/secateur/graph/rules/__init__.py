"""One short rule for each operator: how the types of its operands make the types of its result."""
