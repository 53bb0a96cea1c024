"""Studies of the research questions: own configs, own commands, own results; nothing imports them."""
