"""How many servers a traffic needs, and what they take: from rates that were measured."""
