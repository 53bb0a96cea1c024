"""One reader per source of recordings; each gives `contracts.Recording`."""
